package pluginhost

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// Limits of a plugin process. One that needs more is broken, or hostile.
const (
	maxFiles = 1024
)

// launch is how a plugin process is started.
type launch struct {
	program *Program
	env     []string
	uid     uint32
	gid     uint32
	switchU bool     // to uid and gid
	caps    []string // canonical; all that it may ever have
	// lifeline is the reading end of a pipe that ends with this process.
	lifeline *os.File
	stdout   *os.File
	stderr   *os.File
}

// lifelineFD is where a plugin finds its lifeline.
const lifelineFD = 3

// programFD is where a plugin's own program is open, since it is executed by
// descriptor.
const programFD = 4

// start starts the process. What it must not have is taken from a thread that is
// made for it and ends with it; so the process starts without, and no code of the
// plugin runs before. The parent-death signal, which follows the thread, is of no
// use here: the lifeline stands for it.
func (l *launch) start() (*os.Process, error) {
	type result struct {
		p   *os.Process
		err error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread is thrown away with what it has lost.
		runtime.LockOSThread()
		p, err := l.onThisThread()
		done <- result{p, err}
	}()
	r := <-done
	return r.p, r.err
}

func (l *launch) onThisThread() (*os.Process, error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	keep, err := numbers(l.caps)
	if err != nil {
		return nil, err
	}
	if err := bound(keep, l.root()); err != nil {
		return nil, err
	}
	if err := inheritNone(); err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	attr := &syscall.SysProcAttr{Setsid: true, AmbientCaps: ambient(keep)}
	if l.switchU {
		attr.Credential = &syscall.Credential{Uid: l.uid, Gid: l.gid}
	}
	// A umask is the whole process's, and so is not set here: sdk/plugin does.
	p, err := os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", programFD), []string{l.program.Path}, &os.ProcAttr{
		Dir: "/", Env: l.env, Files: []*os.File{null, l.stdout, l.stderr, l.lifeline, l.program.File}, Sys: attr,
	})
	if err != nil {
		return nil, err
	}
	if err := limit(p.Pid); err != nil {
		_ = p.Kill()
		_, _ = p.Wait() // killed: its status tells nothing
		return nil, err
	}
	return p, nil
}

// root tells whether the process is to be uid 0.
func (l *launch) root() bool {
	if l.switchU {
		return l.uid == 0
	}
	return os.Geteuid() == 0
}

// numbers translates canonical names, which the host configuration has checked.
func numbers(names []string) (map[capability.Cap]bool, error) {
	keep := map[capability.Cap]bool{}
	for _, c := range capability.ListKnown() {
		keep[c] = false
	}
	for _, n := range names {
		found := false
		for c := range keep {
			if strings.EqualFold("CAP_"+c.String(), n) {
				keep[c], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("unknown capability %q", n)
		}
	}
	return keep, nil
}

// bound drops what is not kept from this thread's bounding set: execve can give
// no more than that, to root either.
//
// Without CAP_SETPCAP nothing can be dropped. Then only a plugin that is not root
// can be started: the kernel gives such a process nothing at execve, for it
// inherits nothing and no_new_privs is set (capabilities(7)).
func bound(keep map[capability.Cap]bool, root bool) error {
	for c, kept := range keep {
		if kept {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		switch {
		case errors.Is(err, unix.EINVAL): // newer than this kernel
		case errors.Is(err, unix.EPERM) && !root:
			return nil
		case err != nil:
			return os.NewSyscallError("prctl PR_CAPBSET_DROP", err)
		}
	}
	return nil
}

// inheritNone empties this thread's ambient and inheritable sets, which are the
// caller's and outlast an execve.
func inheritNone() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_CAP_AMBIENT_CLEAR_ALL", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&hdr, &sets[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	for i := range sets {
		sets[i].Inheritable = 0
	}
	return os.NewSyscallError("capset", unix.Capset(&hdr, &sets[0]))
}

func ambient(keep map[capability.Cap]bool) []uintptr {
	var out []uintptr
	for c, kept := range keep {
		if kept {
			out = append(out, uintptr(c))
		}
	}
	return out
}

// limit sets the limits of a process that has just been made.
func limit(pid int) error {
	for r, n := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: maxFiles, unix.RLIMIT_MEMLOCK: 8 << 20} {
		lim := unix.Rlimit{Cur: n, Max: n}
		if err := unix.Prlimit(pid, r, &lim, nil); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EPERM) {
			return os.NewSyscallError("prlimit", err)
		}
	}
	return nil
}

// Uids of plugins whose operator names none: each plugin has its own, in a range
// that systemd leaves to nobody (its UIDS-GIDS.md), so that no dynamic user and no
// container is the same.
const (
	firstUID = 2_000_000_000
	lastUID  = 2_099_999_999
)

// account tells whom a plugin runs as. As an ordinary user that is the caller.
func account(p *Program) (uid, gid uint32, switchTo bool, err error) {
	name := p.Host.User
	if os.Geteuid() != 0 {
		if name != "" && name != strconv.Itoa(os.Geteuid()) {
			u, err := user.Lookup(name)
			if err != nil || u.Uid != strconv.Itoa(os.Geteuid()) {
				return 0, 0, false, &Error{p.Name, fmt.Errorf("it is to run as user %q, and only root can change users", name), "leave user out, or run as root"}
			}
		}
		return uint32(os.Geteuid()), uint32(os.Getegid()), false, nil
	}
	if name == "" {
		h := fnv.New32a()
		_, _ = h.Write([]byte(p.Name)) // a hash takes everything
		id := firstUID + h.Sum32()%(lastUID-firstUID+1)
		return id, id, true, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return 0, 0, false, &Error{p.Name, fmt.Errorf("there is no user %q on this host", name), "name another: user = \"…\" in its block of the host configuration"}
		}
	}
	id, err := strconv.ParseUint(u.Uid, 10, 32)
	group, gerr := strconv.ParseUint(u.Gid, 10, 32)
	return uint32(id), uint32(group), true, errors.Join(err, gerr)
}

// environment is all that a plugin finds: what the handshake needs, and what its
// operator says.
func environment(handshake []string, host map[string]string) []string {
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/", fmt.Sprintf("NUCLEUS_LIFELINE_FD=%d", lifelineFD)}
	env = append(env, handshake...)
	for k, v := range host {
		env = append(env, k+"="+v)
	}
	return env
}
