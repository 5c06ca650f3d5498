package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// maxText is how much of a line one record holds.
	maxText = 16 << 10
	// pause is how long a line may rest unfinished before it is written: then it
	// is a prompt, and somebody may be waiting to see it.
	pause = 100 * time.Millisecond

	firstBuffer = 2 << 10 // of a stream; many workloads never say more at once
	fullBuffer  = 32 << 10
)

// copying is one stream on its way. Its bytes lie in buf: before start they are
// written, before end they are read, and only Copy moves the end.
type copying struct {
	log    *Log
	stream Stream
	buf    []byte
	full   bool // the last read took all the room there was

	start, end int // under the log's lock
	idle       *time.Timer
}

// Copy writes a stream to the log until its end, and to more as it comes.
// Neither a log that cannot be written nor a writer of more that fails ends it;
// the latter gets nothing any more. A writer that blocks does hold the workload
// up, and none may keep what it is given.
func (l *Log) Copy(stream Stream, from io.Reader, more ...io.Writer) error {
	c := &copying{log: l, stream: stream, buf: make([]byte, firstBuffer)}
	c.idle = time.AfterFunc(pause, c.rest)
	defer func() {
		c.idle.Stop()
		c.rest() // should the timer have fired already, it finds nothing more
	}()
	more = slices.Clone(more)
	for {
		room := c.room()
		n, err := from.Read(room)
		if n > 0 {
			c.full = n == len(room)
			c.took(n)
			more = slices.DeleteFunc(more, func(w io.Writer) bool {
				_, err := w.Write(room[:n])
				return err != nil
			})
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), stream == Terminal && errors.Is(err, unix.EIO): // how a terminal ends
			return nil
		default:
			return fmt.Errorf("reading %s: %w", stream, err)
		}
	}
}

// room gives where to read to.
func (c *copying) room() []byte {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	to := c.buf
	if len(to) < fullBuffer && (c.full || len(to)-(c.end-c.start) < len(to)/2) {
		to = make([]byte, fullBuffer)
	}
	c.end = copy(to, c.buf[c.start:c.end])
	c.start, c.buf = 0, to
	return c.buf[c.end:]
}

// took writes what n more bytes have completed.
func (c *copying) took(n int) {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	c.end += n
	c.log.begin()
	for {
		rest := c.buf[c.start:c.end]
		i := bytes.IndexByte(rest[:min(len(rest), maxText+1)], '\n')
		if i >= 0 {
			c.put(i, false)
			c.start++
		} else if len(rest) > maxText {
			c.put(whole(rest[:maxText]), true)
		} else {
			break
		}
	}
	if c.stream == Terminal {
		// The half of a line's end must wait for the other: alone it says something else.
		rest := c.buf[c.start:c.end]
		c.put(whole(bytes.TrimSuffix(rest, []byte{'\r'})), true)
	}
	c.log.flush()
	if c.start < c.end {
		c.idle.Reset(pause)
	}
}

// rest writes what no read has completed for a while. A Copy that waits for the
// next bytes has them put behind.
func (c *copying) rest() {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	if c.start == c.end {
		return
	}
	c.log.begin()
	c.put(c.end-c.start, true)
	c.log.flush()
}

func (c *copying) put(n int, partial bool) {
	if n == 0 && partial {
		return
	}
	c.log.add(Record{Stream: c.stream, Partial: partial, Text: c.buf[c.start : c.start+n]})
	c.start += n
}

// whole gives the length of b without a character that is cut at its end.
func whole(b []byte) int {
	for i := len(b) - 1; i >= 0 && i > len(b)-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			if utf8.FullRune(b[i:]) {
				return len(b)
			}
			return i
		}
	}
	return len(b)
}
