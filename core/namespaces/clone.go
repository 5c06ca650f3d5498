package namespaces

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/birth"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
)

// follow adds to what a begun init does all that depends on the plan.
func (g *Begun) follow(b born) error {
	p := g.program
	if len(b.tasks) > 0 {
		zero, err := p.String("0")
		if err != nil {
			return err
		}
		for i := range b.tasks {
			p.Call(birth.Must, "write tasks", unix.SYS_WRITE, uintptr(firstPassed+len(b.fds)+i), zero, 1)
		}
	}
	p.Call(birth.Must, "setsid", unix.SYS_SETSID)
	if b.root {
		if b.setGroups {
			p.Call(birth.Must, "setgroups", unix.SYS_SETGROUPS, 0, 0)
		}
		p.Call(birth.Must, "setresgid", unix.SYS_SETRESGID, 0, 0, 0)
		p.Call(birth.Must, "setresuid", unix.SYS_SETRESUID, 0, 0, 0)
	}
	if len(b.ambient) > 0 {
		caps := new([2]unix.CapUserData)
		for _, n := range b.ambient {
			for i := range caps {
				if n/32 == uintptr(i) {
					bit := uint32(1) << (n % 32)
					caps[i].Effective |= bit
					caps[i].Permitted |= bit
					caps[i].Inheritable |= bit
				}
			}
		}
		header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		p.Keep(caps)
		p.Keep(header)
		p.Call(birth.Must, "capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(caps)))
		for _, n := range b.ambient {
			p.Call(birth.Must, "prctl PR_CAP_AMBIENT", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, n, 0, 0)
		}
	}
	// Once more after the change of ids, which clears it.
	p.Call(birth.Must, "prctl PR_SET_PDEATHSIG", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	for to := range b.fds {
		p.Call(birth.Must, "dup3", unix.SYS_DUP3, uintptr(firstPassed+to), uintptr(to), 0)
	}
	if b.maxFiles > 0 {
		few := &unix.Rlimit{Cur: uint64(len(b.fds)), Max: b.maxFiles}
		p.Keep(few)
		p.Call(birth.Must, "prlimit64", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(few)), 0)
	}
	p.Slack()
	path, err := p.String(b.path)
	if err != nil {
		return err
	}
	argv, err := p.Strings(b.argv...)
	if err != nil {
		return err
	}
	envv, err := p.Strings(b.env...)
	if err != nil {
		return err
	}
	p.Unblock()
	if b.program >= 0 {
		p.Call(birth.Must, "execveat", unix.SYS_EXECVEAT, uintptr(firstPassed+len(b.fds)+len(b.tasks)), path, argv, envv, unix.AT_EMPTY_PATH)
	} else {
		p.Call(birth.Must, "execve", unix.SYS_EXECVE, path, argv, envv)
	}
	return nil
}

// passed are the descriptors that init gets.
func (b born) passed() []int {
	fds := append([]int(nil), b.fds[:]...)
	for _, f := range b.tasks {
		fds = append(fds, int(f.Fd()))
	}
	if b.program >= 0 {
		fds = append(fds, b.program)
	}
	return fds
}

// spawn makes init. The calling thread is its parent, but of one that was begun.
func spawn(b born) (in *Init, err error) {
	fds := b.passed()
	if len(fds) > maxPassed {
		return nil, fmt.Errorf("init cannot be given %d descriptors", len(fds))
	}
	g := b.begun
	if !g.take(b) {
		if g, err = newBegun(b.flags); err != nil {
			return nil, err
		}
	}
	defer g.close()
	if err := g.follow(b); err != nil {
		g.abandon(err)
		return nil, err
	}
	if g.child == nil {
		g.child, err = g.program.Clone(g.cloneFlags(), b.cgroup)
		g.closeTheirs()
	} else {
		err = g.child.Proceed()
	}
	if err != nil {
		g.abandon(err)
		return nil, err
	}
	child := g.child
	failpoint.Hit("init cloned")
	if b.writes {
		err = b.writeMaps(child.Pid)
	}
	if err == nil {
		err = g.pass(fds)
	}
	if err == nil && !b.helpers {
		b.mapped(child.Pid)
	}
	awaited := make(chan error, 1)
	go func(err error) {
		err = child.Await(err)
		b.execed(child.Pid, err)
		awaited <- err
	}(err)
	if err == nil && !b.helpers {
		b.beside()
	}
	if err := <-awaited; err != nil {
		return nil, err
	}
	return &Init{Pid: child.Pid, PidFD: child.PidFD, CPUs: g.apart.restored()}, nil
}
