package probe

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func failure(err error) Result {
	r := Result{Err: err.Error()}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		r.Errno = int(errno)
	}
	return r
}

// flow sends a line and wants the echo server's line and its own back.
func flow(ctx context.Context, p Probe) Result {
	host, port, err := net.SplitHostPort(p.To)
	if err != nil {
		return failure(err)
	}
	targets := []string{p.To}
	var resolved []string
	if _, err := netip.ParseAddr(host); err != nil {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip"+p.Family, host)
		if err != nil {
			return failure(err)
		}
		targets = nil
		for _, a := range addrs {
			resolved = append(resolved, a.String())
			targets = append(targets, net.JoinHostPort(a.Unmap().String(), port))
		}
	}
	// One after the other, as programs do.
	last := Result{Err: "the name has no address"}
	for _, to := range targets {
		last = exchange(ctx, p, to)
		if last.OK {
			break
		}
	}
	last.Addresses = resolved
	return last
}

func exchange(ctx context.Context, p Probe, to string) Result {
	var d net.Dialer
	conn, err := d.DialContext(ctx, p.Kind+p.Family, to)
	if err != nil {
		return failure(err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	payload := "probe " + p.ID + "\n"
	lines := bufio.NewReader(conn)
	if p.Kind == UDP {
		return datagrams(conn, lines, payload)
	}
	if _, err := conn.Write([]byte(payload)); err != nil {
		return failure(err)
	}
	return echoed(lines, payload)
}

// datagrams are sent more than once, since one may be lost.
func datagrams(conn net.Conn, lines *bufio.Reader, payload string) Result {
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(500 * time.Millisecond):
				_, _ = conn.Write([]byte(payload))
			}
		}
	}()
	if _, err := conn.Write([]byte(payload)); err != nil {
		return failure(err)
	}
	return echoed(lines, payload)
}

func echoed(lines *bufio.Reader, payload string) Result {
	line, err := lines.ReadString('\n')
	if err != nil {
		return failure(fmt.Errorf("no echo: %w", err))
	}
	back, err := lines.ReadString('\n')
	if err != nil || back != payload {
		return failure(fmt.Errorf("an echo of something else: %q, %w", back, err))
	}
	return Result{OK: true, Line: strings.TrimSpace(line)}
}

// mapped uses the socket interface itself, since the net package turns such addresses
// into IPv4's.
func mapped(p Probe) Result {
	at, err := netip.ParseAddrPort(p.To)
	if err != nil {
		return failure(err)
	}
	kind := unix.SOCK_STREAM
	if p.Kind == MappedUDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return failure(os.NewSyscallError("socket", err))
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	wait := unix.NsecToTimeval(p.Wait.Nanoseconds())
	// Of connect(2) too: socket(7).
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
	if err != nil {
		return failure(os.NewSyscallError("setsockopt", err))
	}
	if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}); err != nil {
		return failure(os.NewSyscallError("connect", err))
	}
	payload := "probe " + p.ID + "\n"
	if _, err := unix.Write(fd, []byte(payload)); err != nil {
		return failure(os.NewSyscallError("write", err))
	}
	return echoed(bufio.NewReader(f), payload)
}

// ping sends an echo request over a datagram socket of ICMP, which takes no privilege
// but the namespace's ping_group_range.
func ping(p Probe) Result {
	a, err := netip.ParseAddr(p.To)
	if err != nil {
		return failure(err)
	}
	domain, protocol, request, reply := unix.AF_INET, unix.IPPROTO_ICMP, byte(8), byte(0)
	var to unix.Sockaddr
	if a.Is4() {
		to = &unix.SockaddrInet4{Addr: a.As4()}
	} else {
		domain, protocol, request, reply = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128, 129
		to = &unix.SockaddrInet6{Addr: a.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return failure(os.NewSyscallError("socket", err))
	}
	defer func() { _ = unix.Close(fd) }()
	wait := unix.NsecToTimeval(p.Wait.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return failure(os.NewSyscallError("setsockopt", err))
	}
	message := make([]byte, 16)
	message[0] = request
	binary.BigEndian.PutUint16(message[6:], 1)
	if err := unix.Sendto(fd, message, 0, to); err != nil {
		return failure(os.NewSyscallError("sendto", err))
	}
	buf := make([]byte, 128)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return failure(os.NewSyscallError("recvfrom", err))
	}
	if n < 8 || buf[0] != reply {
		return failure(fmt.Errorf("no reply: type %d", buf[0]))
	}
	return Result{OK: true}
}
