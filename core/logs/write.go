package logs

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// batchSize is when a batch is written before it is complete: a read of empty
// lines is sixty times as long when it is encoded.
const batchSize = 64 << 10

// begin begins a batch. All its records have one time, that of their read.
func (l *Log) begin() { l.stamp = appendTime(l.stamp[:0], l.now()) }

// add adds a record to the batch, and rotates if the file would become too long.
func (l *Log) add(r Record) {
	if l.also != nil {
		l.also(r)
	}
	n := len(l.batch)
	l.batch = appendRecord(l.batch, l.stamp, r)
	if l.size+int64(len(l.batch)) <= l.max {
		l.raw += r.length()
		if len(l.batch) >= batchSize {
			l.flush()
		}
		return
	}
	record := l.batch[n:]
	l.batch = l.batch[:n]
	l.flush()
	if l.size > 0 && l.size+int64(len(record)) > l.max {
		if err := l.rotate(); err != nil {
			l.lose(r.length(), err)
			return
		}
	}
	l.batch = append(l.batch, record...) // to the front of where it is
	l.raw = r.length()
}

// length is how many bytes of output a record stands for.
func (r Record) length() int64 {
	if r.Partial {
		return int64(len(r.Text))
	}
	return int64(len(r.Text)) + 1
}

// flush writes the batch. It is over then, whether it could be written or not.
func (l *Log) flush() {
	batch, raw := l.batch, l.raw
	l.batch, l.raw = l.batch[:0], 0
	if len(batch) == 0 && l.lost == 0 {
		return
	}
	err := l.ready()
	if err == nil {
		var kept int
		kept, err = l.append(batch)
		for line := range bytes.Lines(batch[:kept]) {
			if err == nil {
				break
			}
			if r, ok := parse(line); ok {
				raw -= r.length()
			}
		}
	}
	if err != nil {
		l.lose(raw, err)
	}
}

// ready makes the file fit for the next record: there, whole, and with a record
// of what is missing.
func (l *Log) ready() error {
	if l.f == nil {
		f, err := openFile(l.dir, current, os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND)
		if err != nil {
			return err
		}
		l.f = f
	}
	if l.torn {
		if err := l.f.Truncate(l.size); err != nil {
			return err
		}
		l.torn = false
	}
	if l.lost == 0 {
		return nil
	}
	if _, err := l.append(appendRecord(nil, l.stamp, Record{Lost: l.lost})); err != nil {
		return err
	}
	l.lost = 0
	return nil
}

// append writes records in one write(2), and gives how many bytes of them the
// file has kept. Whole records stay even if others have failed: a reader may
// have them already, and goes on after them.
func (l *Log) append(records []byte) (int, error) {
	if len(records) == 0 {
		return 0, nil
	}
	n, err := l.f.Write(records)
	if err == nil {
		l.size += int64(n)
		return n, nil
	}
	kept := bytes.LastIndexByte(records[:n], '\n') + 1
	l.size += int64(kept)
	if kept < n {
		cerr := l.f.Truncate(l.size)
		l.torn = cerr != nil
		err = errors.Join(err, cerr)
	}
	return kept, err
}

func (l *Log) lose(raw int64, err error) {
	l.lost += raw
	if l.err == nil {
		l.err = fmt.Errorf("log: %w", err)
	}
}

// rotate gives each file the name of the next older one. It begins with the
// oldest: a file only ever moves on to a higher number, so a reader who looks
// from the lowest on cannot miss one. When it fails, it can be done again.
func (l *Log) rotate() error {
	if l.f == nil {
		return nil
	}
	for n := l.files - 1; n > 0; n-- {
		if err := l.rename(n-1, n); err != nil {
			return err
		}
	}
	if l.files == 1 {
		if err := l.remove(0); err != nil {
			return err
		}
	}
	_ = l.f.Close() // every write to it has told whether it failed
	l.f, l.size, l.torn = nil, 0, false
	return nil
}

// rename and remove find it well if there is no such file: a rotation that was
// cut short has left a gap, or the sandbox's directory is removed beside us.
func (l *Log) rename(from, to int) error {
	dir := int(l.dir.Fd())
	err := unix.Renameat(dir, fileName(from), dir, fileName(to))
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &os.LinkError{Op: "renameat", Old: fileName(from), New: fileName(to), Err: err}
}

func (l *Log) remove(n int) error {
	err := unix.Unlinkat(int(l.dir.Fd()), fileName(n), 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &os.PathError{Op: "unlinkat", Path: fileName(n), Err: err}
}
