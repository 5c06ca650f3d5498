// Package exec owns what connects a running workload with its caller: standard
// streams, terminal, signals, and how its end is told. It never decides what
// may run.
package exec

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Streams are the caller's ends. A nil stream is /dev/null.
type Streams struct {
	In, Out, Err *os.File
	// Piped puts terminals behind pipes, too: for a process beside a workload that runs,
	// which could open its terminal by /proc/PID/fd.
	Piped bool
	// Detach are the keys at a terminal that end its connection with the workload's.
	Detach []byte
	// Console is a Unix socket whose listener gets the master of the workload's terminal,
	// instead of the other streams.
	Console string
}

// Stdio is what stage 2 gets as 0, 1 and 2.
type Stdio struct {
	child   [3]*os.File
	owned   []*os.File // ends that are ours to close once the child has them
	ends    []*os.File // the other ends, which copying closes
	copies  []func()
	outputs []*Output // that are copied
	input   *os.File  // the workload's, if it is copied
	wg      sync.WaitGroup
	stop    [2]int // a pipe that ends the copying of input
	gone    [2]int // a pipe that tells of the end of the sandbox
	term    *terminal
	tty     bool
	std     Streams
	left    chan struct{} // closed when the keys to detach were typed

	mu   sync.Mutex
	lost error // why output did not arrive
}

// NewStdio prepares the streams. Terminals, pipes and /dev/null are inherited
// as they are. A regular file or a directory is put behind a pipe: through a
// descriptor of it the workload would have an open file of the host, with its
// position, its locks and, by /proc/self/fd, its path. So is a FIFO that has a
// name, and a socket, which could be asked for its peer, or be sent descriptors.
func NewStdio(s Streams, tty bool) (*Stdio, error) {
	io := &Stdio{tty: tty, std: s, stop: [2]int{-1, -1}, gone: [2]int{-1, -1}, left: make(chan struct{})}
	for i, f := range []*os.File{s.In, s.Out, s.Err} {
		if err := io.add(i, f); err != nil {
			io.Close()
			return nil, err
		}
	}
	return io, nil
}

func (s *Stdio) add(i int, f *os.File) error {
	if f == nil || s.tty {
		null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		s.child[i] = null
		s.owned = append(s.owned, null)
		return nil
	}
	direct, err := inheritable(f)
	direct = direct && !(s.std.Piped && isTerminal(f))
	if err != nil {
		return fmt.Errorf("standard stream %d: %w", i, err)
	}
	if direct {
		s.child[i] = f
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	end := w
	if i == 0 {
		end = r
	}
	// Go's pipes do not block, programs of a sandbox want one that does. It may be
	// passed on by a way that does not see to that.
	if err := unix.SetNonblock(int(end.Fd()), false); err != nil {
		_ = r.Close()
		_ = w.Close()
		return os.NewSyscallError("fcntl", err)
	}
	if i == 0 {
		s.ends, s.input = append(s.ends, w), w
		s.child[0] = r
		s.owned = append(s.owned, r)
		s.copies = append(s.copies, func() { s.feed(f, w) })
		return nil
	}
	s.ends = append(s.ends, r)
	s.child[i] = w
	s.owned = append(s.owned, w)
	out := &Output{From: r}
	s.outputs = append(s.outputs, out)
	s.copies = append(s.copies, func() { s.drain(f, out) })
	return nil
}

// Passed checks a descriptor that somebody else's Stdio has prepared.
func Passed(f *os.File) error {
	ok, err := inheritable(f)
	if err == nil && (!ok || isTerminal(f)) {
		err = errors.New("only pipes and /dev/null are passed to a process of a sandbox that runs")
	}
	return err
}

// inheritable reports whether a descriptor may be given to the workload.
func inheritable(f *os.File) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO:
		// A FIFO with a name is a file of the host: to own it, or to change its mode,
		// would last.
		var fs unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
			return false, os.NewSyscallError("fstatfs", err)
		}
		return fs.Type == unix.PIPEFS_MAGIC, nil
	case unix.S_IFCHR:
		// 1:3 is null; of the others only terminals are harmless.
		return st.Rdev == unix.Mkdev(1, 3) || isTerminal(f), nil
	}
	return false, nil
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Own gives the pipes among the streams to the workload's user, as the host
// numbers it: what opens /dev/stdout opens the pipe anew, by its owner and mode.
// Terminals stay the caller's. Where this process may not give a pipe away, the
// workload has the descriptor alone.
func (s *Stdio) Own(uid int) error {
	return Own(s.child, uid)
}

// Own is the same for streams that were passed.
func Own(streams [3]*os.File, uid int) error {
	for i, f := range streams {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return fmt.Errorf("standard stream %d: %w", i, os.NewSyscallError("fstat", err))
		}
		if st.Mode&unix.S_IFMT != unix.S_IFIFO || st.Uid == uint32(uid) {
			continue
		}
		if err := unix.Fchown(int(f.Fd()), uid, -1); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("standard stream %d: %w", i, os.NewSyscallError("fchown", err))
		}
	}
	return nil
}

// Master gives another descriptor of the master of the workload's terminal, the
// caller's to close; nil if it has none.
func (s *Stdio) Master() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term == nil {
		return nil, nil
	}
	var fd int
	err := withFD(s.term.master, func(master int) (err error) {
		fd, err = unix.FcntlInt(uintptr(master), unix.F_DUPFD_CLOEXEC, 3)
		return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

// FDs gives the descriptors for init.
func (s *Stdio) FDs() [3]int {
	return [3]int{int(s.child[0].Fd()), int(s.child[1].Fd()), int(s.child[2].Fd())}
}

// Files gives the same as files, which stay this Stdio's.
func (s *Stdio) Files() []*os.File { return s.child[:] }

// Started closes our copies of the child's ends and begins to copy. Until init
// has closed its own copies, and every process of the sandbox is gone, output
// goes on.
func (s *Stdio) Started() error {
	for _, f := range s.owned {
		_ = f.Close() // the child has its own
	}
	s.owned = nil
	if !s.Copies() {
		return nil
	}
	if err := unix.Pipe2(s.stop[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	for _, c := range s.copies {
		s.wg.Go(c)
	}
	return nil
}

// Copies tells whether there is anything between the workload's streams and the caller's.
func (s *Stdio) Copies() bool { return len(s.copies) > 0 || s.tty }

// drain copies output to its end. A caller's stream that
// breaks ends the reading as well, so the workload gets EPIPE as it would have
// without a pipe between.
func (s *Stdio) drain(to *os.File, from *Output) {
	_, err := io.Copy(to, from)
	_ = from.From.Close()
	// The workload may have ended long before: a full disk would show nowhere. A
	// reader that went away wanted no more.
	if err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		s.mu.Lock()
		s.lost = errors.Join(s.lost, err)
		s.mu.Unlock()
	}
}

// Detached is closed when Streams.Detach has come in.
func (s *Stdio) Detached() <-chan struct{} { return s.left }

// Lost tells of output that the workload wrote and the caller's stream did not
// take. It is complete once Wait is over.
func (s *Stdio) Lost() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// feed copies input until its end, the workload's end, or Wait.
func (s *Stdio) feed(from *os.File, to *os.File) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for s.readable(from) {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// readable waits for input; false means that nobody wants it any more.
func (s *Stdio) readable(f *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}, {Fd: int32(s.stop[0]), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && fds[1].Revents == 0
	}
}

// Gone says that no process of the sandbox is left to write anything.
func (s *Stdio) Gone() {
	for _, o := range s.outputs {
		o.Gone()
	}
	if s.gone[1] >= 0 {
		_ = unix.Close(s.gone[1])
		s.gone[1] = -1
	}
}

// Wait ends the copying once the sandbox is gone: input is given up, output is
// copied to its end, or until giveUp is closed. Then the copying that hangs in a
// caller's stream is left behind: no write to it can be called back.
func (s *Stdio) Wait(giveUp <-chan struct{}) {
	if s.stop[1] >= 0 {
		_ = unix.Close(s.stop[1])
		s.stop[1] = -1
	}
	if s.input != nil {
		// A process of the sandbox can have sent its end to somebody who reads nothing.
		_ = s.input.SetWriteDeadline(time.Now()) // closed: the copying has ended
	}
	if !s.Copies() {
		s.restore()
		s.Close()
		return
	}
	copied := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(copied)
	}()
	select {
	case <-copied:
		s.restore()
		s.Close()
	case <-giveUp:
		s.restore()
	}
}

// Close lets everything go.
func (s *Stdio) Close() {
	for _, f := range s.owned {
		_ = f.Close() // nothing was written through them
	}
	s.owned = nil
	for _, f := range s.ends {
		_ = f.Close() // open still if copying never began
	}
	s.ends = nil
	for _, pipe := range []*[2]int{&s.stop, &s.gone} {
		for i, fd := range pipe {
			if fd >= 0 {
				_ = unix.Close(fd)
				pipe[i] = -1
			}
		}
	}
}
