package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// process runs a plugin for go-plugin's client, in our way (runner.Runner).
type process struct {
	launch launch
	// socketDir is where the plugin makes its socket.
	socketDir string

	held           *os.File // our end of the lifeline
	stdout, stderr *os.File
	proc           *os.Process
	once           sync.Once
	done           chan struct{}
	state          *os.ProcessState
	err            error
}

func (p *process) Start(context.Context) (err error) {
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
		err = os.Chown(p.socketDir, int(p.launch.uid), int(p.launch.gid))
	}
	if err != nil {
		closeAll(theirs)
		return err
	}
	p.launch.stdout, p.launch.stderr, p.launch.lifeline = outW, errW, lifeR
	p.proc, err = p.launch.start()
	if err != nil {
		closeAll(theirs)
		return &Error{p.launch.program.Name, fmt.Errorf("starting %s: %w", p.launch.program.Path, err), ""}
	}
	closeAll([]*os.File{outW, errW, lifeR})
	p.stdout, p.stderr, p.held, p.done = outR, errR, lifeW, make(chan struct{})
	go func() {
		p.state, p.err = p.proc.Wait()
		close(p.done)
	}()
	return nil
}

func (p *process) Stdout() io.ReadCloser           { return p.stdout }
func (p *process) Stderr() io.ReadCloser           { return p.stderr }
func (p *process) Name() string                    { return p.launch.program.Name }
func (p *process) ID() string                      { return strconv.Itoa(p.proc.Pid) }
func (p *process) Diagnose(context.Context) string { return "" }

// Wait may be called more than once.
func (p *process) Wait(ctx context.Context) error {
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

// Kill ends the process, what it has started in its session's first process group,
// and waits for it. It is no error if it has ended.
func (p *process) Kill(ctx context.Context) error {
	p.once.Do(func() {
		_ = p.held.Close()
		select {
		case <-p.done: // its pid, and the group's, may be another's
		default:
			_ = unix.Kill(-p.proc.Pid, unix.SIGKILL)
			_ = p.proc.Kill()
		}
	})
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// PluginToHost looks at the address that a plugin claims to listen at: a socket in
// the directory that was made for it, and nothing else.
func (p *process) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" {
		return "", "", fmt.Errorf("it listens at %s %q: only Unix sockets are taken", network, address)
	}
	if err := within(p.socketDir, address); err != nil {
		return "", "", err
	}
	return network, address, nil
}

// HostToPlugin changes nothing: both see the same file system.
func (p *process) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// patience is how long a plugin that was asked to end may take.
const patience = time.Second
