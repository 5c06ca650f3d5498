package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

const pidVar = "LISTEN_PID="

// maxPid has as many digits as the kernel's PID_MAX_LIMIT, and more.
const maxPid = "4294967295"

// passSockets prepares the sockets that the workload gets, and the variables that tell
// of them (sd_listen_fds(3)).
func (p *prepared) passSockets(proc *initproto.Process, fds []int) error {
	n := len(proc.Listen)
	if n == 0 {
		return nil
	}
	if err := p.pass(proc.Listen, proc.Gate, fds); err != nil {
		return err
	}
	vars, err := cStrings([]string{fmt.Sprintf("LISTEN_FDS=%d", n), "LISTEN_FDNAMES=" + proc.ListenNames})
	if err != nil {
		return err
	}
	p.pidVar = append([]byte(pidVar), maxPid+"\x00"...)
	p.pidAt = len(pidVar)
	p.envv = append(append(p.envv, vars[:2]...), &p.pidVar[0])
	return nil
}

// pass prepares the descriptors that stage 2 gets from firstFD on, and the gate after
// them. Above all places that they are to be in they are out of each other's way.
func (p *prepared) pass(list []int32, gate int32, fds []int) error {
	p.gateAt = uintptr(firstFD + len(list))
	above := func(at int32) (uintptr, error) {
		if at < 0 || int(at) >= len(fds) {
			return 0, fmt.Errorf("%w: descriptor %d of %d", initproto.ErrMessage, at, len(fds))
		}
		fd, err := unix.FcntlInt(uintptr(fds[at]), unix.F_DUPFD_CLOEXEC, int(p.gateAt)+1)
		return uintptr(fd), os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	for _, at := range list {
		fd, err := above(at)
		if err != nil {
			return err
		}
		p.listen = append(p.listen, fd)
	}
	var err error
	p.gate, err = above(gate)
	return err
}

// passed closes what stage 2 has its own of.
func (p *prepared) passed() {
	for _, fd := range p.listen {
		_ = unix.Close(int(fd))
	}
	if len(p.listen) > 0 {
		_ = unix.Close(int(p.gate))
	}
}

// writePid is part of stage 2: it completes the variable, which is for it alone.
//
//go:norace
//go:noinline
//go:nosplit
func writePid(p *prepared, pid uintptr) {
	unit := uintptr(1)
	for pid/unit >= 10 {
		unit *= 10
	}
	at := p.pidAt
	for ; unit > 0; unit /= 10 {
		p.pidVar[at] = '0' + byte(pid/unit%10)
		at++
	}
	p.pidVar[at] = 0
}
