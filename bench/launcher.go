package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// command is how to start one sandbox. "{ID}" in an argument becomes a name
// that no other start has.
type command struct {
	Argv []string
	Env  []string
	// Filter is a BPF file that the program gets as descriptor 3.
	Filter string
	// Exec runs a further command in the sandbox; its "{ID}" is the start's. Empty for
	// programs that cannot.
	Exec []string
	// Cleanup removes what the runtime keeps of a killed sandbox; its "{ID}" is the start's.
	Cleanup []string
}

// request asks a launcher for one measurement.
type request struct {
	Kind    string // cold, rate, idle, exec
	Command command
	// UID and GID, unless 0, are who the sandboxes are started by.
	UID, GID int
	Serial   string
	Count    int // starts (cold), sandboxes (idle), commands (exec)
	Parallel int // rate
	Millis   int // rate
}

// reply is the measurement; Error says why there is none.
type reply struct {
	Cold  coldReply // also of exec
	Rate  rateReply
	Idle  idleReply
	Error string
}

// launcher is a child process that starts sandboxes and holds the clock. Two
// are needed where the host has cgroup v1 hierarchies: runtimes such as crun
// refuse those, and get a mount namespace with a fresh cgroup v2 mount, while
// Nucleus uses the host as it is. Both do the same work by the same code.
type launcher struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func startLauncher(private bool) (*launcher, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "launcher")
	cmd.Stderr = os.Stderr
	if private {
		cmd.Args = append(cmd.Args, "-fresh-cgroup2")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting a launcher: %w", err)
	}
	return &launcher{cmd: cmd, in: in, out: json.NewDecoder(out)}, nil
}

func (l *launcher) measure(req request) (reply, error) {
	if err := json.NewEncoder(l.in).Encode(req); err != nil {
		return reply{}, fmt.Errorf("asking the launcher: %w", err)
	}
	var r reply
	if err := l.out.Decode(&r); err != nil {
		return reply{}, fmt.Errorf("hearing from the launcher: %w", err)
	}
	if r.Error != "" {
		return reply{}, errors.New(r.Error)
	}
	return r, nil
}

func (l *launcher) stop() error {
	if err := l.in.Close(); err != nil {
		return err
	}
	return l.cmd.Wait()
}

// serveLauncher is the launcher's main loop.
func serveLauncher(freshCgroup2 bool) error {
	if freshCgroup2 {
		if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("mounting a private cgroup2: %w", err)
		}
	}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var req request
		if err := in.Decode(&req); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var r reply
		var err error
		switch req.Kind {
		case "cold":
			r.Cold, err = measureCold(req)
		case "rate":
			r.Rate, err = measureRate(req)
		case "exec":
			r.Cold, err = measureExec(req)
		case "idle":
			r.Idle, err = measureIdle(req)
		default:
			err = fmt.Errorf("no measurement of kind %q", req.Kind)
		}
		if err != nil {
			r.Error = err.Error()
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
}

// starter starts sandboxes of one request with as little of its own as
// possible: no goroutine, no pipe, one descriptor table prepared beforehand.
type starter struct {
	req    request
	null   *os.File
	output *os.File
}

func newStarter(req request) (*starter, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	output, err := os.CreateTemp("", "nucleus-bench-output-")
	if err != nil {
		return nil, err
	}
	return &starter{req: req, null: null, output: output}, os.Remove(output.Name())
}

func (s *starter) close() {
	s.null.Close()
	s.output.Close()
}

// prepare returns a function that starts sandbox n. Opening the filter is not
// part of the start: each needs its own file offset.
func (s *starter) prepare(n int) (start func() (*os.Process, error), err error) {
	c := s.req.Command
	files := []*os.File{s.null, s.null, s.output}
	if c.Filter != "" {
		filter, err := os.Open(c.Filter)
		if err != nil {
			return nil, err
		}
		files = append(files, filter)
	}
	attr := &os.ProcAttr{Env: c.Env, Files: files, Dir: "/"}
	if s.req.UID != 0 {
		attr.Sys = credential(s.req.UID, s.req.GID)
	}
	argv := withID(c.Argv, s.req.Serial, n)
	return func() (*os.Process, error) {
		process, err := os.StartProcess(argv[0], argv, attr)
		if len(files) > 3 {
			files[3].Close()
		}
		return process, err
	}, nil
}

// complaint is the end of what the sandboxes wrote to standard error.
func (s *starter) complaint() string {
	size, err := s.output.Seek(0, io.SeekEnd)
	if err != nil {
		return err.Error()
	}
	tail := make([]byte, min(size, 400))
	if _, err := s.output.ReadAt(tail, size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return err.Error()
	}
	return strings.TrimSpace(string(tail))
}

func withID(argv []string, serial string, n int) []string {
	id := fmt.Sprintf("%s-%d", serial, n)
	replaced := make([]string, len(argv))
	for i, arg := range argv {
		replaced[i] = strings.ReplaceAll(arg, "{ID}", id)
	}
	return replaced
}
