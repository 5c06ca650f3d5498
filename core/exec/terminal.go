package exec

import (
	"errors"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// endOfFile is what a terminal's line discipline takes for end of file (VEOF).
const endOfFile = 4

// terminal connects the caller's terminal with the master of the workload's.
type terminal struct {
	master *os.File
	old    *term.State
	caller *os.File // nil if that is no terminal
	winch  chan os.Signal
}

// Terminal begins to relay between the caller's streams and the master, which
// it takes over. The caller's own terminal, if there is one, is in raw mode
// until Wait, and its size is the workload's.
func (s *Stdio) Terminal(master *os.File) error {
	if s.std.Console != "" {
		defer master.Close()
		return sendConsole(s.std.Console, master)
	}
	if err := unix.Pipe2(s.gone[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	sized, err := s.keys(master, true)
	if err != nil {
		return err
	}
	t, screen := s.term, &screen{master: master, gone: s.gone[0], left: maxScreen}
	var out io.Writer = io.Discard
	if s.std.Out != nil {
		out = s.std.Out
	}
	s.wg.Go(func() {
		_, _ = io.Copy(out, screen) // ends with EIO, which is how a terminal ends
		t.leaveSize(sized)
		// Should the caller's side be broken, the workload hears of it: a terminal
		// that nobody reads would hold it up for good.
		_ = master.Close()
	})
	return nil
}

// keys connects the caller's side of a terminal's input. With end the end of the
// caller's input is one for the workload as well. sized is closed when the size is left
// alone.
func (s *Stdio) keys(master *os.File, end bool) (sized chan struct{}, err error) {
	t := &terminal{master: master}
	s.mu.Lock()
	s.term = t
	s.mu.Unlock()
	sized = make(chan struct{})
	if s.std.In != nil && isTerminal(s.std.In) {
		t.caller = s.std.In
		t.resize()
		old, err := term.MakeRaw(int(t.caller.Fd()))
		if err != nil {
			return nil, err
		}
		t.old = old
		t.winch = make(chan os.Signal, 1)
		signal.Notify(t.winch, unix.SIGWINCH)
		s.wg.Go(func() {
			defer close(sized)
			for range t.winch {
				t.resize()
			}
		})
	}
	if s.std.In != nil {
		s.wg.Go(func() { s.feedTerminal(s.std.In, master, end) })
	}
	return sized, nil
}

// leaveSize ends the following of the caller's size.
func (t *terminal) leaveSize(sized <-chan struct{}) {
	if t.winch != nil {
		signal.Stop(t.winch)
		close(t.winch)
		<-sized
	}
}

func (t *terminal) resize() {
	SetSize(t.master, SizeOf(t.caller))
}

// Size is a terminal's, in characters.
type Size struct {
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

// SizeOf gives the size of a terminal, nothing for what is none.
func SizeOf(f *os.File) Size {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return Size{}
	}
	return Size{Rows: ws.Row, Columns: ws.Col}
}

// SetSize sets that of the terminal that a master belongs to.
func SetSize(master *os.File, s Size) {
	ws := unix.Winsize{Row: s.Rows, Col: s.Columns}
	_ = withFD(master, func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &ws) }) // a closed terminal has no size
}

// feedTerminal copies input; its end becomes an end-of-file character, since
// the master itself must stay open for output.
func (s *Stdio) feedTerminal(from, master *os.File, end bool) {
	buf := make([]byte, 4096)
	detach := keySequence{want: s.std.Detach}
	for s.readable(from) {
		n, err := from.Read(buf)
		keys, found := detach.pass(buf[:n])
		if len(keys) > 0 {
			if !s.press(master, keys) {
				return
			}
		}
		if found {
			close(s.left)
			return
		}
		if errors.Is(err, io.EOF) {
			if end {
				s.press(master, []byte{endOfFile}) // the workload may be gone
			}
			return
		}
		if err != nil {
			return
		}
	}
}

// piece is what is written to a master at once. One that poll(2) says can be written to has not
// reached its limit, and then the kernel gives it a buffer more, for as much as is written up to
// TTY_BUFFER_PAGE, which is 1792 bytes or more (tty_buffer_alloc and
// tty_insert_flip_string_fixed_flag in drivers/tty/tty_buffer.c, since Linux 3.14).
const piece = 1024

// press writes to the master, and tells whether to go on. A terminal that nobody reads takes
// 64 KiB; more would wait for as long as it is open, which may be for longer than the
// sandbox lives (screen).
func (s *Stdio) press(master *os.File, keys []byte) bool {
	for len(keys) > 0 {
		wrote := 0
		err := withFD(master, func(fd int) error {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}, {Fd: int32(s.stop[0]), Events: unix.POLLIN}}
			_, err := unix.Poll(fds, -1)
			if errors.Is(err, unix.EINTR) || err == nil && fds[0].Revents == 0 && fds[1].Revents == 0 {
				return nil
			}
			// While the last of the other side closes it poll(2) tells of that already, and a write
			// may still wait, for a place that nobody makes any more.
			if err != nil || fds[1].Revents != 0 || fds[0].Revents&unix.POLLOUT == 0 || fds[0].Revents&unix.POLLHUP != 0 {
				return io.EOF
			}
			n, err := unix.Write(fd, keys[:min(len(keys), piece)])
			wrote = max(n, 0)
			if errors.Is(err, unix.EINTR) {
				return nil
			}
			return err
		})
		if err != nil {
			return false
		}
		keys = keys[wrote:]
	}
	return true
}

// restore gives the caller its terminal back.
func (s *Stdio) restore() {
	if s.term == nil {
		return
	}
	if s.term.old != nil {
		_ = term.Restore(int(s.term.caller.Fd()), s.term.old) // nothing else is left to try
	}
	_ = s.term.master.Close()
	s.mu.Lock()
	s.term = nil
	s.mu.Unlock()
}

// Keys passes a caller's keys, and the size of its terminal, to the terminal of a
// workload whose output comes another way.
type Keys struct {
	io    *Stdio
	sized chan struct{}
}

// NewKeys begins; the master is its own from here. The end of the caller's input is
// not one for the workload, which goes on without.
func NewKeys(in, master *os.File, detach []byte) (*Keys, error) {
	s, err := NewStdio(Streams{In: in, Detach: detach}, true)
	if err != nil {
		_ = master.Close()
		return nil, err
	}
	k := &Keys{io: s}
	if err = s.Started(); err == nil {
		k.sized, err = s.keys(master, false)
	}
	if err != nil {
		s.Close()
		_ = master.Close()
		return nil, err
	}
	return k, nil
}

// Detached is closed when the keys to detach were typed.
func (k *Keys) Detached() <-chan struct{} { return k.io.left }

// Close gives the caller's terminal back as it was.
func (k *Keys) Close() {
	k.io.term.leaveSize(k.sized)
	k.io.Wait(nil)
}
