package lifecycle

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// anew connects a socket to another address, as whoever has one may try: what it was
// connected to is undone first.
func anew(t *testing.T, fd int, to netip.AddrPort) error {
	t.Helper()
	disconnect(t, fd)
	if err := unix.Connect(fd, sockaddr(to.Addr(), to.Port())); !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(fds, 300); err != nil || n == 0 {
		return unix.ETIMEDOUT
	}
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil || n != 0 {
		return errors.Join(err, unix.Errno(n))
	}
	return nil
}

// filters: newer kernels let nobody but the owner of a network namespace filter TCP
// there. A supervisor is that of its sandbox's; these tests are in the host's.
func filters(t *testing.T) {
	t.Helper()
	testutil.Needs(t, testutil.Root)
}

// A socket that is given away leads to one port, whoever has it and whatever is tried
// with it.
func TestSocketLeadsToOnePort(t *testing.T) {
	filters(t)
	for _, at := range []string{"127.0.0.1", "::1"} {
		t.Run(at, func(t *testing.T) {
			allowed, other := greeter(t, at), greeter(t, at)
			family := unix.AF_INET
			if allowed.Addr().Is6() {
				family = unix.AF_INET6
			}
			fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := connectOnly(fd, allowed); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 8)
			poll(t, fd)
			if n, err := unix.Read(fd, b); err != nil || string(b[:n]) != "hello" {
				t.Fatalf("%q, %v", b[:n], err)
			}
			for what, option := range map[string]int{"SO_DETACH_FILTER": unix.SO_DETACH_FILTER, "SO_LOCK_FILTER": unix.SO_LOCK_FILTER} {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 0); !errors.Is(err, unix.EPERM) {
					t.Errorf("%s: %v, want EPERM", what, err)
				}
			}
			all := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff}}
			if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &all[0]}); !errors.Is(err, unix.EPERM) {
				t.Errorf("SO_ATTACH_FILTER: %v, want EPERM", err)
			}
			if err := anew(t, fd, other); !errors.Is(err, unix.ETIMEDOUT) {
				t.Errorf("connected to another port: %v, want no answer", err)
			}
			if allowed.Addr().Is6() {
				v4 := greeter(t, "127.0.0.1")
				mapped := netip.AddrPortFrom(netip.AddrFrom16(v4.Addr().As16()), v4.Port())
				if err := anew(t, fd, mapped); err == nil {
					t.Error("connected by IPv4")
				}
			}
			if err := anew(t, fd, allowed); err != nil {
				t.Errorf("connected to its own port again: %v", err)
			}
		})
	}
}

// An address that is not the namespace's own is not gone to, whoever tells it.
func TestSocketStaysInside(t *testing.T) {
	filters(t)
	for _, to := range []string{"192.0.2.1:80", "[2001:db8::1]:80"} {
		a := netip.MustParseAddrPort(to)
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			family := unix.AF_INET
			if a.Addr().Is6() {
				family = unix.AF_INET6
			}
			fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := connectOnly(fd, a); !errors.Is(err, unix.EADDRNOTAVAIL) {
				t.Errorf("%s: %v, want EADDRNOTAVAIL", to, err)
			}
			_ = unix.Close(fd)
		}
	}
}

// What a datagram socket gets comes from its port alone, and that nobody is there is
// told.
func TestDatagramsFromOnePort(t *testing.T) {
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	to := netip.MustParseAddrPort(server.LocalAddr().String())
	if err := connectOnly(fd, to); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	own := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: sa.(*unix.SockaddrInet4).Port}
	for _, from := range []net.PacketConn{other, server} {
		// Not connected it would take all that is sent to it.
		disconnect(t, fd)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: own.Port}); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Fatal(err)
		}
		if _, err := from.WriteTo([]byte("hello"), own); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		b := make([]byte, 8)
		n, _, err := unix.Recvfrom(fd, b, 0)
		if passed := err == nil && string(b[:n]) == "hello"; passed != (from == server) {
			t.Errorf("from the port it leads to: %t; it passed: %t (%v)", from == server, passed, err)
		}
	}
	server.Close()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		t.Fatal(err)
	}
	_ = unix.Send(fd, []byte("x"), 0)
	poll(t, fd)
	if _, err := unix.Read(fd, make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody is there: %v, want ECONNREFUSED", err)
	}
}

// disconnect makes a socket fit to connect again: connect(2), AF_UNSPEC.
func disconnect(t *testing.T, fd int) {
	t.Helper()
	var none [16]byte
	if _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), uintptr(len(none))); e != 0 {
		t.Fatalf("connect AF_UNSPEC: %v", e)
	}
}

func poll(t *testing.T, fd int) {
	t.Helper()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000); err != nil || n == 0 {
		t.Fatalf("nothing to read: %v", err)
	}
}

// greeter serves a port that says hello.
func greeter(t *testing.T, at string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(at, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("hello"))
			t.Cleanup(func() { c.Close() })
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// Answers that nobody waits for any more leave no descriptor, and one that is none of
// init's ends the sandbox.
func TestSocketsOfInit(t *testing.T) {
	var x insides
	id, came, err := x.add()
	if err != nil {
		t.Fatal(err)
	}
	fd := descriptor(t)
	if err := x.hear(said(id, 0), []int{fd}); err != nil {
		t.Fatal(err)
	}
	x.forget(id, came)
	if isOpen(fd) {
		t.Error("the descriptor of an answer that came too late is open")
	}
	fd = descriptor(t)
	if err := x.hear(said(id, 0), []int{fd}); err != nil || isOpen(fd) {
		t.Errorf("an answer to nothing: %v, descriptor open: %t", err, isOpen(fd))
	}
	fd = descriptor(t)
	if err := x.hear(said(id, 5), []int{fd}); err == nil || isOpen(fd) {
		t.Errorf("an error with a descriptor: %v, descriptor open: %t", err, isOpen(fd))
	}
	var busy *BusyError
	for range maxInsides {
		if _, _, err := x.add(); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := x.add(); !errors.As(err, &busy) {
		t.Errorf("one more than there may be: %v", err)
	}
	x.close()
	if _, _, err := x.add(); !errors.Is(err, errEnded) {
		t.Errorf("after the end: %v", err)
	}
}

func said(id, errno uint32) []byte {
	return initproto.Encode(initproto.KindSocketMade, &initproto.SocketMade{ID: id, Errno: errno})
}

func descriptor(t *testing.T) int {
	t.Helper()
	fd, err := unix.MemfdCreate("socket", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}
