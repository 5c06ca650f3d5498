// Package cell is the part of a sandbox's init for the rules about runtimes: it lays
// out the root that sdk/runtime promises to a program, in namespaces of its own, and
// executes it there. The program that links this package is that init, too: see guest.
package cell

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Layout is what a cell holds.
type Layout struct {
	Dir       string // empty, where its root is mounted
	Program   string
	Rootfs    string
	Config    []byte // of the bundle
	Libraries bool
	Devices   []string
}

// Command is a call of the program.
type Command struct {
	Args, Env []string
	Terminal  bool
	// Files are standard input, output and error, and, of a further process, what
	// describes it.
	Files []*os.File
}

// order is what init is told to do, and report what it answers: one for each order, and
// one for the end of each process.
type order struct {
	Layout   *Layout  `json:",omitempty"`
	Args     []string `json:",omitempty"`
	Env      []string `json:",omitempty"`
	Terminal bool     `json:",omitempty"`
	Signal   int      `json:",omitempty"`
	PID      int      `json:",omitempty"`
	Read     string   `json:",omitempty"`
	Count    bool     `json:",omitempty"`
}

type report struct {
	Error  string `json:",omitempty"`
	PID    int    `json:",omitempty"`
	Ended  bool   `json:",omitempty"`
	Status int    `json:",omitempty"` // 128 and the number of a signal
	Text   []byte `json:",omitempty"`
}

// guest is what init is called.
const guest = "nucleus-conformance-cell"

// Cell is namespaces with the program in them.
type Cell struct {
	pid     int
	control int
	asking  sync.Mutex
	answers chan report

	mu    sync.Mutex
	ended map[int]chan int // by the process's number inside
}

// ErrUnavailable is a host that lets the caller make no such namespaces.
var ErrUnavailable = errors.New("this host lets no user namespace with its own mounts be made")

// New makes a cell.
func New(l Layout) (*Cell, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[1])
	null, err := os.Open(os.DevNull)
	if err != nil {
		_ = unix.Close(pair[0])
		return nil, err
	}
	defer null.Close()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	groups := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	if os.Geteuid() == 0 {
		ids[0].Size, groups[0].Size = 65536, 65536
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{guest}, &syscall.ProcAttr{ //nolint:forbidigo // it is what this package is for
		Dir: "/", Env: []string{}, Files: []uintptr{null.Fd(), null.Fd(), 2, uintptr(pair[1])},
		Sys: &syscall.SysProcAttr{
			Setsid: true, UidMappings: ids, GidMappings: groups, GidMappingsEnableSetgroups: os.Geteuid() == 0,
			Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		},
	})
	if err != nil {
		_ = unix.Close(pair[0])
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	c := &Cell{pid: pid, control: pair[0], answers: make(chan report), ended: map[int]chan int{}}
	go c.listen()
	if _, err := c.ask(order{Layout: &l}, nil); err != nil {
		c.Close()
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return c, nil
}

// Close ends all that is in it.
func (c *Cell) Close() {
	_ = unix.Kill(c.pid, unix.SIGKILL) // it is not reaped, so the number is its own
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(c.pid, &status, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	_ = unix.Shutdown(c.control, unix.SHUT_RDWR)
	for range c.answers { // until listen is at its end
	}
	_ = unix.Close(c.control)
}

func (c *Cell) listen() {
	defer close(c.answers)
	b := make([]byte, maxPacket)
	for {
		n, err := unix.Read(c.control, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		var r report
		if err != nil || n == 0 || json.Unmarshal(b[:n], &r) != nil {
			return
		}
		if r.Ended {
			c.exit(r.PID) <- r.Status
			continue
		}
		c.answers <- r
	}
}

// exit is where the status of a process comes, which may be before its number is known.
func (c *Cell) exit(pid int) chan int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended[pid] == nil {
		c.ended[pid] = make(chan int, 1)
	}
	return c.ended[pid]
}

const maxPacket = 128 << 10

func (c *Cell) ask(o order, files []*os.File) (report, error) {
	c.asking.Lock()
	defer c.asking.Unlock()
	b, err := json.Marshal(o)
	if err != nil {
		return report{}, err
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(c.control, b, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return report{}, os.NewSyscallError("sendmsg", err)
	}
	r, ok := <-c.answers
	switch {
	case !ok:
		return r, errors.New("the cell's init has ended")
	case r.Error != "":
		return r, errors.New(r.Error)
	}
	return r, nil
}

// Process is one of the program's.
type Process struct {
	cell *Cell
	pid  int
	done chan int
}

// Start executes the program.
func (c *Cell) Start(x Command) (*Process, error) {
	r, err := c.ask(order{Args: x.Args, Env: x.Env, Terminal: x.Terminal}, x.Files)
	if err != nil {
		return nil, fmt.Errorf("executing the program: %w", err)
	}
	return &Process{c, r.PID, c.exit(r.PID)}, nil
}

// Wait gives the exit status as a shell does; not ok is that it runs on.
func (p *Process) Wait(limit time.Duration) (status int, ok bool) {
	select {
	case status = <-p.done:
		return status, true
	case <-time.After(limit):
		return 0, false
	}
}

// Signal sends one to the program itself.
func (p *Process) Signal(s syscall.Signal) error {
	_, err := p.cell.ask(order{PID: p.pid, Signal: int(s)}, nil)
	return err
}

// Read gives the content of a small file of the program's root.
func (c *Cell) Read(path string) (string, error) {
	r, err := c.ask(order{Read: path}, nil)
	return string(r.Text), err
}

// Others gives the names of the processes beside init.
func (c *Cell) Others() (string, error) {
	r, err := c.ask(order{Count: true}, nil)
	return string(r.Text), err
}

// Rootfs makes the root of a workload of one static program, busybox, by its names.
func Rootfs(dir, busybox string, names ...string) error {
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o600); err != nil {
		return err
	}
	for _, p := range []struct {
		name string
		mode os.FileMode
	}{{"bin/busybox", 0o755}, {"tmp", 0o777 | os.ModeSticky}, {".", 0o755}} {
		if err := os.Chmod(filepath.Join(dir, p.name), p.mode); err != nil {
			return err
		}
	}
	for _, n := range names {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", n)); err != nil {
			return err
		}
	}
	return nil
}

// Replace puts the words of a command in.
func Replace(args []string, words ...string) []string {
	r := strings.NewReplacer(words...)
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = r.Replace(a)
	}
	return out
}
