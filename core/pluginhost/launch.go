package pluginhost

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/internal/birth"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// launch is how a plugin process is started.
type launch struct {
	program *Program
	env     []string
	uid     uint32
	gid     uint32
	switchU bool     // to uid and gid
	caps    []string // canonical; all that it may ever have
	box     box
	apart   bool // in a user namespace of its own
	// socketDir is where it makes its socket, and may write.
	socketDir string
	// group is the control group that it is born in, nil for none.
	group *cgroups.Group
	// lifeline is the reading end of a pipe that ends with this process.
	lifeline *os.File
	stdout   *os.File
	stderr   *os.File
	// side is its end of the side channel, nil for none.
	side *os.File
}

// lifelineFD is where a plugin finds its lifeline.
const lifelineFD = 3

// programFD is where a plugin's own program is open, since it is executed by
// descriptor.
const programFD = 4

// sideFD is where a plugin that may be handed descriptors finds its end of the side
// channel.
const sideFD = 5

// limits of a plugin process. One that needs more is broken, or hostile.
func limits(as manifest.Service) map[int]uint64 {
	files := uint64(maxFiles)
	if as == manifest.Network {
		files = maxNetworkFiles
	}
	return map[int]uint64{
		unix.RLIMIT_CORE:    1, // and not 0, with which the kernel runs the host's program for core dumps (core(5))
		unix.RLIMIT_NOFILE:  files,
		unix.RLIMIT_MEMLOCK: 8 << 20,
		// The kernel counts these for its user with all that the user has elsewhere.
		unix.RLIMIT_SIGPENDING: 1024,
		unix.RLIMIT_MSGQUEUE:   0,
	}
}

const (
	maxFiles = 1024
	// A flow takes two sockets, and while bytes are on the way a pipe.
	maxNetworkFiles = 128 << 10
)

// start starts the process. What it must not have it takes from itself before it
// executes its program, in the steps of package birth.
func (l *launch) start() (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	from := make([]int, 0, sideFD+1)
	defer func() {
		for _, fd := range from {
			_ = unix.Close(fd)
		}
	}()
	files := []*os.File{null, l.stdout, l.stderr, l.lifeline, l.program.File}
	if l.side != nil {
		files = append(files, l.side)
	}
	for _, f := range files {
		// High ones, so that no copy lands on one that is still to be copied.
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, birth.HighFD)
		if err != nil {
			return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
		}
		from = append(from, fd)
	}
	domain, err := l.box.domain(l.socketDir)
	if err != nil {
		return nil, err
	}
	if domain >= 0 {
		defer unix.Close(domain)
	}
	cgroup, tasks, err := l.doors()
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range append(tasks, cgroup) {
			if f != nil {
				_ = f.Close()
			}
		}
	}()
	steps, err := l.steps(tasks, from, domain)
	if err != nil {
		return nil, err
	}
	into := -1
	if cgroup != nil {
		into = int(cgroup.Fd())
	}
	var flags uintptr
	if l.apart {
		flags = unix.CLONE_NEWUSER
	}
	child, err := steps.Clone(flags, into)
	if err == nil {
		err = child.Await(nil)
	}
	if err != nil {
		return nil, l.refused(err)
	}
	_ = unix.Close(child.PidFD)
	return os.FindProcess(child.Pid)
}

func (l *launch) doors() (cgroup *os.File, tasks []*os.File, err error) {
	if l.group == nil {
		return nil, nil, nil
	}
	return l.group.Doors()
}

// steps are what the process does before it executes its program, in an order in
// which none takes away what a later one needs: the filter is last.
func (l *launch) steps(tasks []*os.File, from []int, domain int) (*birth.Program, error) {
	keep, err := numbers(l.caps)
	if err != nil {
		return nil, err
	}
	p := birth.New()
	p.DefaultSignals()
	p.Call(birth.Must, "setsid", unix.SYS_SETSID)
	if l.apart {
		if err := l.maps(p); err != nil {
			return nil, err
		}
	}
	zero, err := p.String("0")
	if err != nil {
		return nil, err
	}
	for _, f := range tasks {
		p.Keep(f)
		p.Call(birth.Must, "write tasks", unix.SYS_WRITE, f.Fd(), zero, 1)
	}
	p.Call(birth.Ignore, "umask", unix.SYS_UMASK, 0o077)
	root, err := p.String("/")
	if err != nil {
		return nil, err
	}
	p.Call(birth.Must, "chdir", unix.SYS_CHDIR, root)
	for r, n := range limits(l.box.as) {
		lim := &unix.Rlimit{}
		if err := unix.Prlimit(0, r, nil, lim); err != nil {
			return nil, os.NewSyscallError("prlimit", err)
		}
		lim.Max = min(lim.Max, n)
		lim.Cur = lim.Max
		p.Keep(lim)
		p.Call(birth.Must, "prlimit", unix.SYS_PRLIMIT64, 0, uintptr(r), uintptr(unsafe.Pointer(lim)), 0)
	}
	p.Call(birth.Must, "prctl PR_SET_NO_NEW_PRIVS", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	if err := l.privileges(p, keep); err != nil {
		return nil, err
	}
	for to, fd := range from {
		p.Call(birth.Must, "dup3", unix.SYS_DUP3, uintptr(fd), uintptr(to), 0)
	}
	// What somebody has opened without O_CLOEXEC; before Linux 5.11 there is no such flag.
	p.Call(birth.Ignore, "close_range", unix.SYS_CLOSE_RANGE, uintptr(len(from)), uintptr(^uint32(0)), unix.CLOSE_RANGE_CLOEXEC)
	path, err := p.String(fmt.Sprintf("/proc/self/fd/%d", programFD))
	if err != nil {
		return nil, err
	}
	argv, err := p.Strings(l.program.Path)
	if err != nil {
		return nil, err
	}
	envv, err := p.Strings(l.env...)
	if err != nil {
		return nil, err
	}
	p.Unblock()
	l.box.enter(p, domain)
	p.Call(birth.Must, "execve", unix.SYS_EXECVE, path, argv, envv)
	return p, nil
}

// privileges leaves the process with the capabilities that it keeps, and its user.
//
// Without CAP_SETPCAP the bounding set cannot be emptied. Then only a plugin that is
// not root can be started: the kernel gives such a process nothing at execve, for it
// inherits nothing and no_new_privs is set (capabilities(7)).
func (l *launch) privileges(p *birth.Program, keep []capability.Cap) error {
	last, err := capability.LastCap()
	if err != nil {
		return err
	}
	dropped := birth.Ignore
	if l.root() || l.apart {
		dropped = birth.Must
	}
	for c := capability.Cap(0); c <= last; c++ {
		if !slices.Contains(keep, c) {
			p.Call(dropped, "prctl PR_CAPBSET_DROP", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		}
	}
	// The ambient and inheritable sets are the caller's, and outlast an execve.
	p.Call(birth.Must, "prctl PR_CAP_AMBIENT_CLEAR_ALL", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if l.apart {
		p.Call(birth.Must, "prctl PR_SET_SECUREBITS", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, rootIsNobody, 0, 0, 0)
	}
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	now, then := new([2]unix.CapUserData), new([2]unix.CapUserData)
	if !l.apart {
		if err := unix.Capget(header, &now[0]); err != nil {
			return os.NewSyscallError("capget", err)
		}
		for i := range now {
			now[i].Inheritable = 0
		}
	}
	p.Keep(header)
	p.Keep(now)
	p.Call(birth.Must, "capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(now)))
	if len(keep) > 0 {
		p.Call(birth.Must, "prctl PR_SET_KEEPCAPS", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	}
	if l.switchU {
		u, g := uintptr(l.uid), uintptr(l.gid)
		p.Call(birth.Must, "setgroups", unix.SYS_SETGROUPS, 0, 0)
		p.Call(birth.Must, "setresgid", unix.SYS_SETRESGID, g, g, g)
		p.Call(birth.Must, "setresuid", unix.SYS_SETRESUID, u, u, u)
	}
	if len(keep) == 0 {
		return nil
	}
	for _, c := range keep {
		bit := uint32(1) << (c % 32)
		d := &then[c/32]
		d.Effective, d.Permitted, d.Inheritable = d.Effective|bit, d.Permitted|bit, d.Inheritable|bit
	}
	p.Keep(then)
	p.Call(birth.Must, "capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(then)))
	for _, c := range keep {
		p.Call(birth.Must, "prctl PR_CAP_AMBIENT_RAISE", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0)
	}
	return nil
}

// root tells whether the process is to be uid 0.
func (l *launch) root() bool {
	if l.switchU {
		return l.uid == 0
	}
	return os.Geteuid() == 0
}

// numbers translates canonical names, which the host configuration has checked.
func numbers(names []string) ([]capability.Cap, error) {
	var keep []capability.Cap
	for _, n := range names {
		i := slices.IndexFunc(capability.ListKnown(), func(c capability.Cap) bool { return strings.EqualFold("CAP_"+c.String(), n) })
		if i < 0 {
			return nil, fmt.Errorf("unknown capability %q", n)
		}
		keep = append(keep, capability.ListKnown()[i])
	}
	return keep, nil
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
// operator says. Temporary files go to the one place that it may write to.
func environment(handshake []string, socketDir string, host map[string]string) []string {
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/", "TMPDIR=" + socketDir, fmt.Sprintf("NUCLEUS_LIFELINE_FD=%d", lifelineFD)}
	env = append(env, handshake...)
	for k, v := range host {
		env = append(env, k+"="+v)
	}
	return env
}
