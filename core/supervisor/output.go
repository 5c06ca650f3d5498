package supervisor

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/journald"
	"github.com/nucleus-runtime/nucleus/core/logs"
	"github.com/nucleus-runtime/nucleus/core/state"
)

// Output is where the output of a detached workload goes: into its log, and to the
// clients that are attached.
type Output struct {
	ends [2]*os.File // what the workload writes to: stdout, stderr
	from [2]*os.File // what we read
	fans [2]fan
	tty  bool

	log     *logs.Log
	journal *journald.Sender // nil unless the output goes there, too
	wg      sync.WaitGroup
}

// NewOutput makes the pipes. A terminal mixes both streams: it has one. journal is the
// socket of a journal that gets the output beside the log, "" for none.
func NewOutput(tty bool, journal string) (*Output, error) {
	o := &Output{tty: tty}
	if journal != "" {
		var err error
		if o.journal, err = journald.Open(journal); err != nil {
			return nil, err
		}
	}
	n := 2
	if tty {
		n = 1
	}
	for i := range n {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, errors.Join(os.NewSyscallError("pipe2", err), o.Close())
		}
		o.from[i], o.ends[i] = r, w
	}
	return o, nil
}

// Streams are the workload's.
func (o *Output) Streams() exec.Streams { return exec.Streams{Out: o.ends[0], Err: o.ends[1]} }

// Begin opens the log and begins to read. Without it nothing is read.
func (o *Output) Begin(d *state.Dir) error {
	var options logs.Options
	if o.journal != nil {
		o.journal.Begin(d.ID, d.Name)
		options.Also = o.journal.Send
	}
	var err error
	if o.log, err = logs.Open(d.Path, options); err != nil {
		return err
	}
	names := [2]logs.Stream{logs.Out, logs.Err}
	if o.tty {
		names[0] = logs.Terminal
	} else {
		o.closeEnds() // the workload has its own
	}
	for i, r := range o.from {
		if r == nil {
			continue
		}
		// What cannot be written is counted there, and told in Finish.
		o.wg.Go(func() { _ = o.log.Copy(names[i], r, &o.fans[i]) })
	}
	return nil
}

func (o *Output) closeEnds() {
	for i, f := range o.ends {
		if f != nil {
			_ = f.Close()
			o.ends[i] = nil
		}
	}
}

// Finish waits for the end of the output, when no process of the sandbox is left to
// write any, and tells what could not be written down.
func (o *Output) Finish() error {
	o.closeEnds()
	o.wg.Wait()
	for i := range o.fans {
		o.fans[i].close()
	}
	var err error
	if o.log != nil {
		err = errors.Join(o.log.Err(), o.log.Close())
		o.log = nil
	}
	return errors.Join(err, o.Close())
}

// Close lets everything go, and tells what the journal did not take.
func (o *Output) Close() (err error) {
	if o.journal != nil {
		err = o.journal.Close()
		o.journal = nil
	}
	o.closeEnds()
	for i, f := range o.from {
		if f != nil {
			_ = f.Close()
			o.from[i] = nil
		}
	}
	return err
}

// Attach gives descriptors that the output from now on can be read from, the
// caller's, and what ends that.
func (o *Output) Attach() (files []*os.File, detach func(), err error) {
	var ends []*end
	detach = func() {
		for i, e := range ends {
			o.fans[i].remove(e)
		}
	}
	for i := range o.fans {
		if i == 1 && o.tty {
			break
		}
		r, w, err := os.Pipe()
		if err != nil {
			detach()
			for _, f := range files {
				_ = f.Close()
			}
			return nil, nil, os.NewSyscallError("pipe2", err)
		}
		files = append(files, r)
		e := &end{w: w}
		ends = append(ends, e)
		o.fans[i].add(e)
	}
	return files, detach, nil
}

// fan hands a stream on to those who are attached. Who reads too slowly loses output
// instead of holding the workload up; the log has all of it.
type fan struct {
	mu     sync.Mutex
	ends   []*end
	closed bool
}

type end struct {
	w    *os.File
	lost bool
}

// lostNote stands where an attached client was too slow.
const lostNote = "\n[nucleus: output left out here: this reader is too slow; nucleus logs has it]\n"

func (f *fan) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := f.ends[:0]
	for _, e := range f.ends {
		if e.write(b) {
			kept = append(kept, e)
		} else {
			_ = e.w.Close()
		}
	}
	f.ends = kept
	return len(b), nil
}

// write says whether the reader is there still.
func (e *end) write(b []byte) bool {
	if e.lost {
		n, err := tryWrite(e.w, []byte(lostNote))
		if n != len(lostNote) {
			return again(err)
		}
		e.lost = false
	}
	for len(b) > 0 {
		n, err := tryWrite(e.w, b)
		if err != nil {
			e.lost = true
			return again(err)
		}
		b = b[n:]
	}
	return true
}

func again(err error) bool { return err == nil || errors.Is(err, unix.EAGAIN) }

// tryWrite writes what a pipe takes at once. Short notes go whole or not at all
// (pipe(7), PIPE_BUF).
func tryWrite(w *os.File, b []byte) (n int, err error) {
	raw, err := w.SyscallConn()
	if err != nil {
		return 0, err
	}
	var werr error
	err = raw.Write(func(fd uintptr) bool {
		for {
			n, werr = unix.Write(int(fd), b)
			if !errors.Is(werr, unix.EINTR) {
				return true
			}
		}
	})
	return max(n, 0), errors.Join(err, werr)
}

func (f *fan) add(e *end) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		_ = e.w.Close()
		return
	}
	f.ends = append(f.ends, e)
}

func (f *fan) remove(e *end) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, x := range f.ends {
		if x == e {
			f.ends = append(f.ends[:i], f.ends[i+1:]...)
			_ = e.w.Close()
			return
		}
	}
}

func (f *fan) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, e := range f.ends {
		_ = e.w.Close()
	}
	f.ends = nil
}
