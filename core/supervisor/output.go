package supervisor

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/journald"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/logs"
	"github.com/nucleus-runtime/nucleus/core/state"
)

// output is where the output of a detached workload goes: into its log, and to the
// clients that are attached. It outlives a workload that is started again.
type output struct {
	ends [2]*os.File // what the workload writes to: stdout, stderr
	from [2]*exec.Output
	fans [2]fan
	tty  bool

	log     *logs.Log
	journal *journald.Sender // nil unless the output goes there, too
	wg      sync.WaitGroup
}

// openOutput opens the log. A terminal mixes both streams: it has one. journal is the
// socket of a journal that gets the output beside the log, "" for none.
func openOutput(d *state.Dir, tty bool, journal string) (*output, error) {
	o := &output{tty: tty}
	var options logs.Options
	var err error
	if journal != "" {
		if o.journal, err = journald.Open(journal); err != nil {
			return nil, err
		}
		o.journal.Begin(d.ID, d.Name)
		options.Also = o.journal.Send
	}
	if o.log, err = logs.Open(d.Path, options); err != nil {
		return nil, errors.Join(lifecycle.StatePhase(err), o.closeJournal())
	}
	return o, nil
}

// closeJournal tells what the journal did not take.
func (o *output) closeJournal() error {
	if o.journal == nil {
		return nil
	}
	return o.journal.Close()
}

// pipes makes those of the next workload.
func (o *output) pipes() (exec.Streams, error) {
	n := 2
	if o.tty {
		n = 1
	}
	for i := range n {
		r, w, err := os.Pipe()
		if err != nil {
			o.drop()
			return exec.Streams{}, os.NewSyscallError("pipe2", err)
		}
		o.from[i], o.ends[i] = &exec.Output{From: r}, w
	}
	return exec.Streams{Out: o.ends[0], Err: o.ends[1]}, nil
}

// begin begins to read. Without it nothing is read.
func (o *output) begin() {
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
		// What cannot be written is counted there, and told in finish.
		o.wg.Go(func() { _ = o.log.Copy(names[i], r, &o.fans[i]) })
	}
}

func (o *output) closeEnds() {
	for i, f := range o.ends {
		if f != nil {
			_ = f.Close()
			o.ends[i] = nil
		}
	}
}

// drain waits for the end of a workload's output, when no process of the sandbox is
// left to write any. Who is attached to its terminal sees the end of that.
func (o *output) drain() {
	o.closeEnds()
	for _, r := range o.from {
		if r != nil {
			r.Gone()
		}
	}
	o.wg.Wait()
	if o.journal != nil {
		o.journal.Flush()
	}
	if o.tty {
		o.fans[0].dismiss()
	}
	o.drop()
}

// finish is the end of the last workload's output, and tells what could not be written
// down.
func (o *output) finish() error {
	o.drain()
	for i := range o.fans {
		o.fans[i].close()
	}
	return errors.Join(o.log.Err(), o.log.Close(), o.closeJournal())
}

// drop lets the pipes go.
func (o *output) drop() {
	o.closeEnds()
	for i, r := range o.from {
		if r != nil {
			_ = r.From.Close()
			o.from[i] = nil
		}
	}
}

// attach gives descriptors that the output from now on can be read from, the
// caller's, and what ends that.
func (o *output) attach() (files []*os.File, detach func(), err error) {
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
	f.closed = true
	f.mu.Unlock()
	f.dismiss()
}

// dismiss ends what those who are attached read.
func (f *fan) dismiss() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.ends {
		_ = e.w.Close()
	}
	f.ends = nil
}
