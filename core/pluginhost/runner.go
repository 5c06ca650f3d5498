package pluginhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/pluginhost/rundir"
)

// process runs a plugin for go-plugin's client, in our way (runner.Runner).
//
// What it has started ends with it, too: by its control group, or, where the host
// gives none, if it is in its process group, which is its session's first. Then a
// descendant that has made a session of its own gets away: no process can hold it but
// one that is its ancestor's reaper, and a library may not make itself the reaper of
// its whole process (PR_SET_CHILD_SUBREAPER). It has no privilege, no lifeline and
// nobody who listens to it, and nothing here waits for it.
type process struct {
	launch launch
	group  *group
	found  *rundir.Process // one that another host has started, of which the rest is not known

	held           *os.File // our end of the lifeline
	stdout, stderr *stream
	done           chan struct{} // closed when it has ended

	mu    sync.Mutex
	proc  *os.Process
	over  bool // Kill was called: nothing starts any more
	ours  bool // it was alive when Kill was called
	oom   bool // the kernel has killed it, or what it started, for want of memory
	state *os.ProcessState
	err   error
}

var errOver = errors.New("it was not wanted any more before it had started")

func (p *process) Start(context.Context) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return errOver
	}
	var theirs []*os.File
	pipe := func() (r, w *os.File) {
		if err == nil {
			r, w, err = os.Pipe()
			theirs = append(theirs, r, w)
		}
		return r, w
	}
	closeAll := func(fs []*os.File) {
		for _, f := range fs {
			if f != nil {
				_ = f.Close()
			}
		}
	}
	outR, outW := pipe()
	errR, errW := pipe()
	lifeR, lifeW := pipe()
	if err == nil && p.launch.switchU {
		err = os.Chown(p.launch.socketDir, int(p.launch.uid), int(p.launch.gid))
	}
	if err == nil {
		p.launch.group, err = p.group.ready()
	}
	if err != nil {
		closeAll(theirs)
		return err
	}
	p.launch.stdout, p.launch.stderr, p.launch.lifeline = outW, errW, lifeR
	proc, err := p.launch.start()
	if err != nil {
		closeAll(theirs)
		return fmt.Errorf("executing %s: %w", p.launch.program.Path, err)
	}
	if err := p.launch.verify(proc.Pid); err != nil {
		_ = unix.Kill(-proc.Pid, unix.SIGKILL)
		_, _ = proc.Wait() // killed: its state tells nothing
		closeAll(theirs)
		return err
	}
	// Else the end of the plugin would not be the end of the channel.
	closeAll([]*os.File{outW, errW, lifeR, p.launch.side})
	p.proc, p.held = proc, lifeW
	p.stdout, p.stderr = newStream(outR, maxHandshake, p.done), newStream(errR, 0, p.done)
	go p.reap()
	return nil
}

// reap waits for the process, and ends what it leaves in its group: until it is
// waited for, its pid, and with it the group's, are no other's.
func (p *process) reap() {
	for {
		if err := unix.Waitid(unix.P_PID, p.proc.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.held.Close()
	_ = unix.Kill(-p.proc.Pid, unix.SIGKILL) // most have left nothing
	p.state, p.err = p.proc.Wait()
	p.oom = !p.ours && p.group.starved()
	// Whoever got away may hold the pipes, and would keep our readers for ever.
	p.stdout.expire()
	p.stderr.expire()
	close(p.done)
}

func (p *process) Stdout() io.ReadCloser           { return p.stdout }
func (p *process) Stderr() io.ReadCloser           { return p.stderr }
func (p *process) Name() string                    { return p.launch.program.Name }
func (p *process) Diagnose(context.Context) string { return "" }

// ID is "" for a process that has never started.
func (p *process) ID() string {
	if pid := p.pid(); pid != 0 {
		return strconv.Itoa(pid)
	}
	return ""
}

func (p *process) pid() int {
	if p.found != nil {
		return p.found.PID
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc == nil {
		return 0
	}
	return p.proc.Pid
}

// Wait may be called more than once.
func (p *process) Wait(ctx context.Context) error {
	if p.found != nil {
		return p.found.Wait(ctx)
	}
	select {
	case <-p.done:
		if p.err == nil && !p.state.Success() {
			return errors.New(p.state.String())
		}
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Kill ends the process and its group, and waits for it. It is no error if it has
// ended, or never started; after that it will not.
func (p *process) Kill(ctx context.Context) error {
	p.mu.Lock()
	p.over = true
	started := p.proc != nil
	if started && p.state == nil && p.err == nil {
		p.ours = true
		_ = p.held.Close()
		_ = unix.Kill(-p.proc.Pid, unix.SIGKILL)
		_ = p.proc.Kill()
	}
	p.mu.Unlock()
	if !started {
		return nil
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end is Kill, and waits until all that it has printed is read: then go-plugin's
// readers have ended, too.
func (p *process) end() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_ = p.Kill(ctx)
	p.drained(ctx)
	for _, s := range []*stream{p.stdout, p.stderr} {
		if s != nil {
			_ = s.Close()
		}
	}
}

// drained waits until all that an ended process has printed is read.
func (p *process) drained(ctx context.Context) {
	for _, s := range []*stream{p.stdout, p.stderr} {
		if s == nil {
			continue
		}
		select {
		case <-s.ended:
		case <-ctx.Done():
		}
	}
}

// ended tells whether it has.
func (p *process) ended() bool {
	if p.found != nil {
		return !p.found.Alive()
	}
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// say tells the process something by its lifeline.
func (p *process) say(what []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.held.Write(what)
	return err
}

// letGo leaves the process to others. One of ours is still waited for: it is our
// child.
func (p *process) letGo() {
	if p.found != nil {
		p.found.Close()
		return
	}
	// First of all, or what it prints would end what it has started.
	p.mu.Lock()
	_ = p.held.Close()
	p.mu.Unlock()
	_ = p.stdout.Close()
	_ = p.stderr.Close()
}

// fate tells how the process ended, "" if it lives, or was ended by us.
func (p *process) fate() string {
	if p.found != nil {
		if p.found.Alive() {
			return ""
		}
		return "it was kept from an earlier run"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ours || p.state == nil {
		return ""
	}
	if p.oom {
		return fmt.Sprintf("%s: its processes used more than %d MiB of memory", p.state, p.group.memory>>20)
	}
	return p.state.String()
}

// hungry tells whether it ended for want of memory.
func (p *process) hungry() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.oom
}

// PluginToHost looks at the address that a plugin claims to listen at: a socket in
// the directory that was made for it, and nothing else.
func (p *process) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" {
		return "", "", fmt.Errorf("it listens at %s %q: only Unix sockets are taken", network, address)
	}
	if err := within(p.launch.socketDir, address); err != nil {
		return "", "", err
	}
	return network, address, nil
}

func within(dir, path string) error {
	if rel, err := filepath.Rel(dir, path); err != nil || rel == ".." || strings.HasPrefix(rel, "../") || filepath.Clean(path) != path {
		return fmt.Errorf("it listens at %q, outside of the directory that was made for it", path)
	}
	return nil
}

// HostToPlugin changes nothing: both see the same file system.
func (p *process) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

const (
	// patience is how long a plugin that was killed may take to go.
	patience = 5 * time.Second
	// drainTime is how long the output of an ended plugin is read, if somebody else
	// holds the pipe.
	drainTime = 500 * time.Millisecond
	// maxHandshake is the longest first line, which is two numbers, a path and a word.
	maxHandshake = 4 << 10
)

// stream is the reading end of a plugin's standard output or error.
type stream struct {
	f *os.File
	// left is how much more of a first line may come; 0 once it is over, or if all
	// is passed on.
	left int
	// line says that only the first line is passed on. The rest is read, so that the
	// plugin is not blocked, and thrown away: go-plugin would stop to read at the
	// first long line.
	line  bool
	gone  <-chan struct{} // closed when the process has ended
	why   firstError      // there is no first line
	once  sync.Once
	ended chan struct{}
}

func newStream(f *os.File, firstLine int, gone <-chan struct{}) *stream {
	return &stream{f: f, left: firstLine, line: firstLine > 0, gone: gone, ended: make(chan struct{})}
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.read(b)
	if err != nil {
		s.once.Do(func() { close(s.ended) })
	}
	return n, err
}

func (s *stream) read(b []byte) (int, error) {
	switch {
	case !s.line:
		return s.f.Read(b)
	case s.left > 0:
		n, err := s.f.Read(b[:min(len(b), s.left)])
		if end := bytes.IndexByte(b[:n], '\n'); end >= 0 {
			s.left = 0
			return end + 1, err
		}
		if s.left -= n; s.left == 0 {
			return 0, s.why.note(errLong)
		}
		if err != nil {
			// A process that ends closes this first, and that it ended says more.
			select {
			case <-s.gone:
			case <-time.After(deathTime):
			}
			_ = s.why.note(errMute)
		}
		return n, err
	default:
		if _, err := io.Copy(io.Discard, s.f); err != nil {
			return 0, err
		}
		return 0, io.EOF
	}
}

var errLong = fmt.Errorf("its first line on standard output is longer than %d bytes, and is to say where it listens", maxHandshake)

var errMute = errors.New("it has closed its standard output, and has not said where it listens")

func (s *stream) expire() { _ = s.f.SetReadDeadline(time.Now().Add(drainTime)) }

func (s *stream) Close() error { return s.f.Close() }
