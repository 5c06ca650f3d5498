package namespaces

import (
	"errors"
	"os"
	"sync"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/birth"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
)

// Begun is an init that has its namespaces and nothing else: it waits to be told who it is,
// what it gets and what it executes. A network namespace takes the kernel longer than
// all others, and can be made while the rest is thought out.
//
// Until then it is as good as a descriptor of the process that has begun it. It ends with
// the thread that has made it, however that ends, and with the socket on which it waits for a message.
type Begun struct {
	flags   uintptr
	program *birth.Program
	child   *birth.Born // nil before it is made
	apart   *apart
	ours    int // end of the socket, -1 once it is closed
	theirs  int

	mu    sync.Mutex
	taken bool // by Start, or dismissed
}

// The descriptors of a begun init. Below are those that it keeps; until it has them their
// places are taken, so that what it is passed comes by number. All are below birth.HighFD.
const (
	execFD      = 4
	firstPassed = execFD + 1
	maxPassed   = 64
)

// message is what init waits for, and where the kernel puts it. (Not on a stack: these move.)
type message struct {
	header  unix.Msghdr
	data    unix.Iovec
	one     [8]byte
	control [unix.SizeofCmsghdr + maxPassed*4]byte
}

var errDismissed = errors.New("init is not wanted")

// Begin makes an init that Start may take. Like Start, it is called on a thread that lives as
// long as the sandbox. It gives nil where the steps of a process must be known when it is made.
func Begin(types []specs.LinuxNamespaceType) (*Begun, error) {
	if !birth.Shared {
		return nil, nil
	}
	f := uintptr(0)
	for _, t := range types {
		f |= flags[t]
	}
	g, err := newBegun(f)
	if err != nil {
		return nil, err
	}
	g.child, err = g.program.Begin(g.cloneFlags())
	g.closeTheirs() // with a copy of ours a message would be sent to nobody
	if err != nil {
		g.close()
		return nil, err
	}
	failpoint.Hit("init begun")
	return g, nil
}

// newBegun lays out init's first steps, those that are the same for all plans with these flags.
func newBegun(flags uintptr) (*Begun, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	g := &Begun{flags: flags, program: birth.New(), ours: pair[0], theirs: pair[1]}
	high, err := unix.FcntlInt(uintptr(g.theirs), unix.F_DUPFD_CLOEXEC, birth.HighFD)
	if err != nil {
		g.close()
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	_ = unix.Close(g.theirs)
	g.theirs = high

	p := g.program
	g.apart = keepApart(p)
	p.HoldExec(execFD)
	for fd := range execFD {
		p.Call(birth.Must, "dup3", unix.SYS_DUP3, uintptr(g.theirs), uintptr(fd), 0)
	}
	// Whoever started the supervisor may have left files of the host open in it (a shell's
	// `9<file`, a service manager's sockets). And with its own copy of our end it would wait
	// for ever, and hold the sandbox's lock, if its maker died now.
	p.Call(birth.Must, "close_range", unix.SYS_CLOSE_RANGE, firstPassed, uintptr(^uint32(0)), 0)
	// The clone takes the handlers away (CLONE_CLEAR_SIGHAND), and what was ignored
	// gets init's handlers, but for these: Go leaves them as it finds them, to hooks.
	p.DefaultSignals(unix.SIGHUP, unix.SIGINT, unix.SIGCONT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	for _, n := range beside {
		if flags&n.flag != 0 {
			p.Call(birth.Must, "unshare "+n.name, unix.SYS_UNSHARE, n.flag)
		}
	}
	if flags&unix.CLONE_NEWNET != 0 {
		if err := loopbackUp(p); err != nil {
			g.close()
			return nil, err
		}
	}
	// And here already, for until it executes its program it may be that a child of our
	// process that executes none has a copy of our end.
	p.Call(birth.Must, "prctl PR_SET_PDEATHSIG", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	m := &message{}
	p.Keep(m)
	m.data.Base = &m.one[0]
	m.data.SetLen(len(m.one))
	m.header.Iov = &m.data
	m.header.SetIovlen(1)
	m.header.Control = &m.control[0]
	m.header.SetControllen(len(m.control))
	p.Call(birth.One, "recvmsg", unix.SYS_RECVMSG, 0, uintptr(unsafe.Pointer(&m.header)), unix.MSG_CMSG_CLOEXEC)
	return g, nil
}

// loopbackUp brings up the loopback interface of the network namespace.
func loopbackUp(p *birth.Program) error {
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	p.Keep(lo)
	const fd = firstPassed // the lowest that is free
	p.Call(birth.Must, "socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM, 0)
	p.Call(birth.Must, "ioctl SIOCSIFFLAGS lo", unix.SYS_IOCTL, fd, unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(lo)))
	p.Call(birth.Must, "close", unix.SYS_CLOSE, fd)
	return nil
}

// beside are the namespaces that init makes by itself, while we go on: one by one, so that an
// error says which. A user namespace has to be there before them, and those of pids and time
// are for a process that is to come.
var beside = []struct {
	flag uintptr
	name string
}{
	{unix.CLONE_NEWNS, "CLONE_NEWNS"}, {unix.CLONE_NEWIPC, "CLONE_NEWIPC"}, {unix.CLONE_NEWUTS, "CLONE_NEWUTS"}, {unix.CLONE_NEWNET, "CLONE_NEWNET"},
}

// cloneFlags are those of its birth.
func (g *Begun) cloneFlags() uintptr {
	f := g.flags | unix.CLONE_CLEAR_SIGHAND
	for _, n := range beside {
		f &^= n.flag
	}
	return f
}

// take tells whether init is the one that is to be started, which must be born in its group.
// If it is not, it is dismissed.
func (g *Begun) take(b born) bool {
	if g == nil {
		return false
	}
	if g.flags != b.flags || b.cgroup >= 0 {
		g.Dismiss()
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	taken := g.taken
	g.taken = true
	return !taken
}

// pass tells init to go on, with these descriptors.
func (g *Begun) pass(fds []int) error {
	return os.NewSyscallError("sendmsg", unix.Sendmsg(g.ours, []byte{1}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL))
}

// Dismiss ends an init that was not started. It may be called at any time, of nil, too.
func (g *Begun) Dismiss() {
	if g == nil {
		return
	}
	g.mu.Lock()
	taken := g.taken
	g.taken = true
	g.mu.Unlock()
	if !taken {
		g.abandon(errDismissed)
		g.close()
	}
}

// abandon ends and collects what has been made.
func (g *Begun) abandon(why error) {
	if g.child != nil {
		_ = g.child.Await(why) // which it returns
		g.child = nil
	}
}

func (g *Begun) close() {
	g.closeTheirs()
	if g.ours >= 0 {
		_ = unix.Close(g.ours)
		g.ours = -1
	}
}

func (g *Begun) closeTheirs() {
	if g.theirs >= 0 {
		_ = unix.Close(g.theirs)
		g.theirs = -1
	}
}
