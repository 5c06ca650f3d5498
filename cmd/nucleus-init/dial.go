package main

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// dialing is what a stage 2 does in place of execve: it connects, asks, and notes
// how the answer begins. It is laid out before the fork, as all of prepared is.
type dialing struct {
	addrs   []sockaddr
	request []byte
	answer  int
	own     sockaddr
	rest    [4096]byte // of the answer; nobody looks at it
	wait    unix.Timeval
	ignore  sigaction
}

// sockaddr is an address as connect(2) takes it.
type sockaddr struct {
	family, size uintptr
	raw          [unix.SizeofSockaddrInet6]byte
}

// Whoever serves the answer may end by a signal, or write a trace into its log, if
// the connection is gone before all of it is sent. So some more of it is read, as
// long as it comes without a pause of restWait; its end ends nothing.
const (
	restReads = 16
	restWait  = 1 // seconds
)

func dialOf(d initproto.Dial) (*dialing, error) {
	if d.Answer > initproto.MaxAnswer {
		return nil, fmt.Errorf("%w: an answer of %d bytes", initproto.ErrMessage, d.Answer)
	}
	out := &dialing{request: d.Request, answer: int(d.Answer), wait: unix.Timeval{Sec: restWait}, ignore: sigaction{handler: 1}} // SIG_IGN
	for _, a := range d.Addrs {
		var s sockaddr
		// sockaddr_in(3type), sockaddr_in6(3type): the family in the byte order of the
		// machine, the port in that of the network.
		switch at := s.raw[:]; len(a.IP) {
		case 4:
			s.family, s.size = unix.AF_INET, unix.SizeofSockaddrInet4
			copy(at[4:], a.IP)
		case 16:
			s.family, s.size = unix.AF_INET6, unix.SizeofSockaddrInet6
			copy(at[8:], a.IP)
		default:
			return nil, fmt.Errorf("%w: an address of %d bytes", initproto.ErrMessage, len(a.IP))
		}
		binary.NativeEndian.PutUint16(s.raw[:], uint16(s.family))
		binary.BigEndian.PutUint16(s.raw[2:], uint16(a.Port))
		out.addrs = append(out.addrs, s)
	}
	return out, nil
}

// heard is what a stage 2 has noted of an answer. How much that is, it says itself.
func (n *progress) heard() []byte {
	got := min(n.answered, initproto.MaxAnswer)
	return append([]byte(nil), n.answer[:got]...)
}

// dial runs in the child of fork: raw system calls only. Its end is the caller's, as
// is its time limit: the supervisor kills what takes longer.
//
//go:norace
//go:noinline
//go:nosplit
func dial(p *prepared) {
	var (
		d           = p.dial
		fd, n, done uintptr
		e, first    syscall.Errno
		step        uint32
		i           int
	)
	for i = 0; i < len(d.addrs); i++ {
		if fd, e = connected(p, i); e == 0 {
			break
		}
		if i == 0 {
			step, first = p.note.step, e
		}
	}
	if e != 0 { // what the first has to say, which is the one that the job names
		p.note.step, p.note.execIndex, p.note.errno = step, 0, uint32(first)
		return
	}
	p.note.step = uint32(initproto.StepSend)
	for done = 0; done < uintptr(len(d.request)); done += n {
		n, _, e = syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(&d.request[done])), uintptr(len(d.request))-done)
		if e == syscall.EINTR {
			n = 0
		} else if e != 0 {
			p.note.errno = uint32(e)
			return
		}
	}
	p.note.step = uint32(initproto.StepReceive)
	for done = 0; done < uintptr(d.answer); done += n {
		n, _, e = syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&p.note.answer[done])), uintptr(d.answer)-done)
		if e == syscall.EINTR {
			n = 0
		} else if e != 0 {
			p.note.errno = uint32(e)
			return
		} else if n == 0 {
			break
		}
		p.note.answered = uint32(done + n)
	}
	p.note.step = uint32(initproto.StepAnswered)
	if d.answer == 0 || done < uintptr(d.answer) {
		return
	}
	if _, _, e = syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, uintptr(unsafe.Pointer(&d.wait)), unsafe.Sizeof(d.wait), 0); e != 0 {
		return
	}
	for i = 0; i < restReads; i++ {
		n, _, e = syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&d.rest)), unsafe.Sizeof(d.rest))
		if e != 0 || n == 0 {
			return
		}
	}
}

// connected gives a socket that is connected to one of the addresses.
//
//go:norace
//go:noinline
//go:nosplit
func connected(p *prepared, i int) (fd uintptr, e syscall.Errno) {
	a := &p.dial.addrs[i]
	p.note.execIndex = uint32(i)
	p.note.step = uint32(initproto.StepSocket)
	fd, _, e = syscall.RawSyscall(syscall.SYS_SOCKET, a.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if e == syscall.EMFILE { // its standard input, which it does not read, has a number below any limit but 0
		syscall.RawSyscall(syscall.SYS_CLOSE, 0, 0, 0)
		fd, _, e = syscall.RawSyscall(syscall.SYS_SOCKET, a.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	}
	if e != 0 {
		return 0, e
	}
	p.note.step = uint32(initproto.StepConnect)
	for {
		_, _, e = syscall.RawSyscall(syscall.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&a.raw)), a.size)
		if e != syscall.EINTR {
			break
		}
	}
	if e == 0 && len(p.dial.request) == 0 && isItself(p.dial, fd, a) {
		e = syscall.ECONNREFUSED
	}
	if e != 0 {
		syscall.RawSyscall(syscall.SYS_CLOSE, fd, 0, 0)
	}
	return fd, e
}

// isItself reports whether a socket is connected to itself: where nobody listens on a
// port of ip_local_port_range (ip(7)), the kernel may choose just that one for this end,
// and then TCP's simultaneous open is a connection (RFC 9293, 3.5). An http probe would
// see its own request come back.
//
//go:norace
//go:noinline
//go:nosplit
func isItself(d *dialing, fd uintptr, a *sockaddr) bool {
	var i uintptr
	d.own.size = a.size
	if _, _, e := syscall.RawSyscall(syscall.SYS_GETSOCKNAME, fd, uintptr(unsafe.Pointer(&d.own.raw)), uintptr(unsafe.Pointer(&d.own.size))); e != 0 {
		return false
	}
	for i = 2; i < a.size; i++ { // port and address; the rest is zero in both
		if d.own.raw[i] != a.raw[i] {
			return false
		}
	}
	return true
}
