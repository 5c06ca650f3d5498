package namespaces

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/birth"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
)

// program lays out init's first steps. from holds its descriptors-to-be, all of
// them above those that they become.
func program(b born, maps [2]int, from [4]int) (*birth.Program, error) {
	p := birth.New()
	if b.waitForMaps {
		// Its own copy of the writing end would keep it waiting, and with it the
		// sandbox's lock held, if its maker died now.
		p.Call(birth.Must, "close", unix.SYS_CLOSE, uintptr(maps[1]))
	}
	// The clone takes the handlers away (CLONE_CLEAR_SIGHAND), and what was ignored
	// gets init's handlers, but for these: Go leaves them as it finds them, to hooks.
	p.DefaultSignals(unix.SIGHUP, unix.SIGINT, unix.SIGCONT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	if len(b.tasks) > 0 {
		zero, err := p.String("0")
		if err != nil {
			return nil, err
		}
		for _, f := range b.tasks {
			p.Keep(f)
			p.Call(birth.Must, "write tasks", unix.SYS_WRITE, f.Fd(), zero, 1)
		}
	}
	if b.waitForMaps {
		one := new([8]byte)
		p.Keep(one)
		p.Call(birth.One, "read", unix.SYS_READ, uintptr(maps[0]), uintptr(unsafe.Pointer(one)), 1)
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
	// After the change of ids, which clears it.
	p.Call(birth.Must, "prctl PR_SET_PDEATHSIG", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	for to, fd := range from {
		p.Call(birth.Must, "dup3", unix.SYS_DUP3, uintptr(fd), uintptr(to), 0)
	}
	// Whoever started the supervisor may have left files of the host open in it (a shell's
	// `9<file`, a service manager's sockets); its own are close-on-exec.
	p.Call(birth.Must, "close_range", unix.SYS_CLOSE_RANGE, uintptr(len(from)), uintptr(^uint32(0)), unix.CLOSE_RANGE_CLOEXEC)
	if b.maxFiles > 0 {
		few := &unix.Rlimit{Cur: uint64(len(from)), Max: b.maxFiles}
		p.Keep(few)
		p.Call(birth.Must, "prlimit64", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(few)), 0)
	}
	p.Slack()
	path, err := p.String(b.path)
	if err != nil {
		return nil, err
	}
	argv, err := p.Strings(b.argv...)
	if err != nil {
		return nil, err
	}
	envv, err := p.Strings(b.env...)
	if err != nil {
		return nil, err
	}
	p.Unblock()
	if b.program >= 0 {
		p.Call(birth.Must, "execveat", unix.SYS_EXECVEAT, uintptr(b.program), path, argv, envv, unix.AT_EMPTY_PATH)
	} else {
		p.Call(birth.Must, "execve", unix.SYS_EXECVE, path, argv, envv)
	}
	return p, nil
}

// spawn makes init. The calling thread is its parent.
func spawn(b born) (pid, pidfd int, err error) {
	var maps [2]int
	if err := unix.Pipe2(maps[:], unix.O_CLOEXEC); err != nil {
		return 0, -1, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(maps[0])
	closeMaps := func() {
		if maps[1] >= 0 {
			_ = unix.Close(maps[1]) // the child sees the end and gives up
			maps[1] = -1
		}
	}
	defer closeMaps()
	var from [4]int
	for i, fd := range b.fds {
		// High ones, so that no copy lands on one that is still to be copied.
		if from[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 16); err != nil {
			return 0, -1, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
		}
		defer unix.Close(from[i])
	}
	p, err := program(b, maps, from)
	if err != nil {
		return 0, -1, err
	}
	child, err := p.Clone(b.flags|unix.CLONE_CLEAR_SIGHAND, b.cgroup)
	if err != nil {
		return 0, -1, err
	}
	failpoint.Hit("init cloned")
	if b.waitForMaps {
		if err = b.writeMaps(child.Pid); err == nil {
			_, err = unix.Write(maps[1], []byte{1})
		}
	}
	closeMaps()
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
		return 0, -1, err
	}
	return child.Pid, child.PidFD, nil
}
