// Package journald hands the output of a workload to systemd's journal, in its native
// protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL). It never holds the workload up: what
// the journal does not take in time is counted, and told.
package journald

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/logs"
)

// Socket is where the journal of the host listens; one of a namespace listens at
// /run/systemd/journal.NAMESPACE/socket.
const Socket = "/run/systemd/journal/socket"

const (
	// maxQueue is how many bytes wait for a journal that is slow.
	maxQueue = 1 << 20
	// maxLine is where a line is cut, as the journal cuts those of a service (LineMax=
	// in journald.conf(5)).
	maxLine = 48 << 10
	// patience is for one message, and closeTime for all that wait at the end.
	patience  = time.Second
	closeTime = time.Second
)

// The priorities of syslog(3).
const (
	priorityErr     = 3
	priorityWarning = 4
	priorityInfo    = 6
)

// Destination reads how a journal is named, "journald" or "journald:SOCKET", and gives
// its socket.
func Destination(text string) (socket string, ok bool) {
	kind, path, named := strings.Cut(text, ":")
	if kind != "journald" || named && !filepath.IsAbs(path) {
		return "", false
	}
	return cmp.Or(path, Socket), true
}

// MissingError tells that no journal listens there.
type MissingError struct {
	Path string
	Err  error
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("no journal listens at %q: %v", e.Path, e.Err)
}
func (e *MissingError) Unwrap() error { return e.Err }

// Sender is the way to a journal.
type Sender struct {
	fd     int
	to     unix.SockaddrUnix
	fields []byte // that every entry has
	parts  map[logs.Stream][]byte
	sent   chan struct{}

	mu      sync.Mutex
	more    sync.Cond
	queue   [][]byte
	queued  int // bytes of it
	lost    uint64
	untold  uint64    // of those that are lost, what the journal has not been told of
	closing time.Time // when the sender gives up, zero before Close
}

// Open makes sure that a journal listens.
func Open(path string) (*Sender, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &Sender{fd: fd, to: unix.SockaddrUnix{Name: path}, parts: map[logs.Stream][]byte{}, sent: make(chan struct{})}
	s.more.L = &s.mu
	// Connected for this once: a journal that is started anew has another socket.
	err = unix.Connect(fd, &s.to)
	if err == nil {
		_ = unix.Close(fd)
		fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		s.fd = fd
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, &MissingError{path, err}
	}
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt SO_SNDTIMEO", err)
	}
	return s, nil
}

// Begin begins to send for a sandbox.
func (s *Sender) Begin(id, name string) {
	s.fields = field(s.fields, "SYSLOG_IDENTIFIER", []byte("nucleus"))
	s.fields = field(s.fields, "NUCLEUS_ID", []byte(id))
	s.fields = field(s.fields, "NUCLEUS_NAME", []byte(name))
	go s.run()
}

// Send puts a line into the queue, or counts it if there is no room; a part of one
// waits for the rest. It does not wait, and keeps nothing of the record's.
func (s *Sender) Send(r logs.Record) {
	if r.Lost != 0 {
		return // that is about the file
	}
	line := append(s.parts[r.Stream], r.Text...)
	if r.Partial && len(line) < maxLine {
		s.parts[r.Stream] = line
		return
	}
	delete(s.parts, r.Stream)
	s.put(r.Stream, line, r.Partial)
}

func (s *Sender) put(stream logs.Stream, line []byte, partial bool) {
	priority := priorityInfo
	if stream == logs.Err {
		priority = priorityErr
	}
	if stream == logs.Terminal && !partial {
		line = bytes.TrimSuffix(line, []byte{'\r'}) // how lines end there
	}
	b := field(s.entry(priority, line), "NUCLEUS_STREAM", []byte(stream))
	if partial {
		b = field(b, "NUCLEUS_PARTIAL", []byte("1"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queued+len(b) > maxQueue {
		s.lose()
		return
	}
	s.queue, s.queued = append(s.queue, b), s.queued+len(b)
	s.more.Signal()
}

// Flush puts what waits for the rest of its line into the queue: there is none.
func (s *Sender) Flush() {
	for stream, line := range s.parts {
		s.put(stream, line, true)
	}
	clear(s.parts)
}

// lose is called with the lock held.
func (s *Sender) lose() {
	s.lost++
	s.untold++
}

func (s *Sender) entry(priority int, text []byte) []byte {
	b := make([]byte, 0, len(text)+len(s.fields)+96)
	b = field(b, "MESSAGE", text)
	b = field(b, "PRIORITY", strconv.AppendInt(nil, int64(priority), 10))
	return append(b, s.fields...)
}

// field adds one. A value with a newline, which would begin another field, has its
// length before it.
func field(b []byte, name string, value []byte) []byte {
	b = append(b, name...)
	if bytes.IndexByte(value, '\n') < 0 {
		b = append(b, '=')
	} else {
		b = append(b, '\n')
		b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	}
	b = append(b, value...)
	return append(b, '\n')
}

// run sends until Close, and what waits then.
func (s *Sender) run() {
	defer close(s.sent)
	for {
		b, last := s.next()
		if b == nil {
			s.tell(last)
			return
		}
		if err := s.write(b, last); err != nil {
			s.mu.Lock()
			s.lose()
			s.mu.Unlock()
			continue
		}
		s.tell(last)
	}
}

// tell has the journal know what is missing in it.
func (s *Sender) tell(last time.Time) {
	s.mu.Lock()
	n := s.untold
	s.mu.Unlock()
	if n == 0 {
		return
	}
	note := s.entry(priorityWarning, fmt.Appendf(nil, "%d lines of output are missing here: the journal did not take them in time; nucleus logs has them", n))
	if s.write(field(note, "NUCLEUS_LOST", strconv.AppendUint(nil, n, 10)), last) != nil {
		return
	}
	s.mu.Lock()
	s.untold -= n
	s.mu.Unlock()
}

// next waits for an entry; nil is the end. last is when there is no time any more.
func (s *Sender) next() (b []byte, last time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == 0 {
		if !s.closing.IsZero() {
			return nil, s.closing
		}
		s.more.Wait()
	}
	b, s.queue = s.queue[0], s.queue[1:]
	s.queued -= len(b)
	return b, s.closing
}

// write waits for the journal as long as patience, or not at all after last. Each time
// the socket is looked for anew: the journal may have been started again.
func (s *Sender) write(b []byte, last time.Time) error {
	flags := unix.MSG_NOSIGNAL
	if !last.IsZero() && time.Now().After(last) {
		flags |= unix.MSG_DONTWAIT
	}
	for {
		if err := unix.Sendto(s.fd, b, flags, &s.to); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Close sends what waits, for a second and the message that is on its way then, and
// tells how much the journal did not take. It is for a Sender that was begun or not.
func (s *Sender) Close() error {
	if s.fields != nil {
		s.Flush()
		s.mu.Lock()
		s.closing = time.Now().Add(closeTime)
		s.more.Signal()
		s.mu.Unlock()
		<-s.sent
	}
	_ = unix.Close(s.fd) // nothing waits in it
	if s.lost > 0 {
		return fmt.Errorf("the journal did not take %d lines of output, which the log has", s.lost)
	}
	return nil
}
