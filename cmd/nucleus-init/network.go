package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
	"github.com/nucleus-runtime/nucleus/internal/netlink"
)

// connect has the backend connect the network namespace: it gets what it wants
// opened in here, and tells what the sandbox is to know.
func (b *builder) connect() error {
	allowPing(b.in.setup.Process.GID)
	// What comes late comes before what is said of the network.
	if err := b.in.receiveLate(b.fds); err != nil {
		return err
	}
	var files initproto.Connected
	if err := b.in.open(&files); err != nil {
		return err
	}
	for _, f := range files.Files {
		fd, ok := b.later[f.Path]
		if !ok {
			continue // the rootfs keeps its own
		}
		if err := unix.Ftruncate(fd, 0); err != nil {
			return fmt.Errorf("writing %q: %w", f.Path, os.NewSyscallError("ftruncate", err))
		}
		if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
			return fmt.Errorf("writing %q: %w", f.Path, os.NewSyscallError("lseek", err))
		}
		if err := writeAll(fd, f.Path, f.Data); err != nil {
			return err
		}
	}
	// A file that is open for writing keeps its mount from becoming read-only.
	for _, fd := range b.later {
		_ = unix.Close(fd)
	}
	b.later = nil
	return nil
}

// allowPing lets the workload's group make sockets for ICMP echo, which are no raw
// ones (icmp(7), net.ipv4.ping_group_range). What is asked of the network then is the
// policy's; without it there is no ping, which is no harm.
func allowPing(gid uint32) {
	fd, err := unix.Open("/proc/sys/net/ipv4/ping_group_range", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Write(fd, fmt.Appendf(nil, "%d %d", gid, gid)) // see above
}

// open answers the supervisor, and waits until the network is attached.
func (in *initProcess) open(files *initproto.Connected) error {
	msg, fds, err := in.receive(initproto.KindOpen)
	channel.CloseAll(fds)
	if err != nil {
		return err
	}
	var want initproto.Open
	if err := initproto.Decode(msg, &want); err != nil {
		return err
	}
	o := opener{}
	err = o.all(&want)
	if err == nil {
		err = in.conn.Send(initproto.Encode(initproto.KindOpened, &o.said), o.fds...)
	}
	channel.CloseAll(o.fds)
	if err != nil {
		return err
	}
	msg, fds, err = in.receive(initproto.KindConnected)
	channel.CloseAll(fds)
	if err != nil {
		return err
	}
	return initproto.Decode(msg, files)
}

// opener opens things in this network namespace, for somebody outside of it.
type opener struct {
	fds  []int
	said initproto.Opened
}

func (o *opener) all(want *initproto.Open) error {
	for i := range want.Openings {
		if x := &want.Openings[i]; x.Kind == initproto.OpenTap {
			if err := o.opening(x); err != nil {
				return err
			}
		}
	}
	if err := o.setups(want.Setups); err != nil {
		return err
	}
	for i := range want.Openings {
		if x := &want.Openings[i]; x.Kind != initproto.OpenTap {
			if err := o.opening(x); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *opener) setups(all []initproto.NetSetup) error {
	done := map[string]bool{}
	for i := range all {
		s := &all[i]
		if s.After != "" && !done[s.After] {
			o.missing(s.Name, fmt.Sprintf("it comes after %q, which is missing", s.After))
			continue
		}
		err := send(int(s.Protocol), s.Messages)
		done[s.Name] = err == nil
		if err := o.optional(s.Name, s.Optional, err); err != nil {
			return err
		}
	}
	return nil
}

func (o *opener) optional(name string, optional bool, err error) error {
	if err == nil {
		return nil
	}
	if !optional {
		return fmt.Errorf("opening %q for the network: %w", name, err)
	}
	o.missing(name, err.Error())
	return nil
}

func (o *opener) missing(name, why string) {
	o.said.Missing = append(o.said.Missing, name)
	o.said.Reasons = append(o.said.Reasons, why)
}

// opening opens all of one, or nothing.
func (o *opener) opening(x *initproto.Opening) error {
	var fds []int
	for range max(x.Count, 1) {
		fd, err := open(x)
		if err != nil {
			channel.CloseAll(fds)
			return o.optional(x.Name, x.Optional, err)
		}
		fds = append(fds, fd)
	}
	for _, fd := range fds {
		o.fds = append(o.fds, fd)
		o.said.Names = append(o.said.Names, x.Name)
	}
	return nil
}

func open(x *initproto.Opening) (int, error) {
	switch x.Kind {
	case initproto.OpenTap:
		return tap(x.IfName, x.Index)
	case initproto.OpenRoute:
		return netlink.Socket(unix.NETLINK_ROUTE, unix.SOCK_NONBLOCK)
	case initproto.OpenNetfilter:
		return netlink.Socket(unix.NETLINK_NETFILTER, unix.SOCK_NONBLOCK)
	case initproto.OpenListenTCP, initproto.OpenTCP:
		return socket(x, unix.SOCK_STREAM, 0)
	case initproto.OpenListenUDP, initproto.OpenUDP:
		return socket(x, unix.SOCK_DGRAM, 0)
	case initproto.OpenRaw:
		return socket(x, unix.SOCK_RAW, unix.IPPROTO_RAW)
	case initproto.OpenNetNS:
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return fd, os.NewSyscallError("open", err)
	}
	return -1, fmt.Errorf("%w: opening of kind %d", initproto.ErrMessage, x.Kind)
}

// tap makes a tap device. The device node is the host's: the root is not entered yet.
func tap(name string, index uint32) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/net/tun: %w", os.NewSyscallError("open", err))
	}
	r, err := unix.NewIfreq(name)
	if err == nil && index != 0 {
		err = os.NewSyscallError("ioctl TUNSETIFINDEX", unix.IoctlSetPointerInt(fd, unix.TUNSETIFINDEX, int(index)))
	}
	if err == nil {
		r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = os.NewSyscallError("ioctl TUNSETIFF", unix.IoctlIfreq(fd, unix.TUNSETIFF, r))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// socket makes a socket, and binds it if it is to listen.
func socket(x *initproto.Opening, kind, protocol int) (_ int, err error) {
	family := unix.AF_INET
	if len(x.IP) == 16 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if family == unix.AF_INET6 && kind != unix.SOCK_RAW {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return -1, os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	if x.Transparent {
		level, option := unix.IPPROTO_IP, unix.IP_TRANSPARENT
		if family == unix.AF_INET6 {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT
		}
		if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
			return -1, os.NewSyscallError("setsockopt IP_TRANSPARENT", err)
		}
	}
	listens := x.Kind == initproto.OpenListenTCP
	if !listens && x.Kind != initproto.OpenListenUDP {
		return fd, nil
	}
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: int(x.Port), Addr: [4]byte(append(x.IP, make([]byte, 4)...)[:4])}
	if family == unix.AF_INET6 {
		at = &unix.SockaddrInet6{Port: int(x.Port), Addr: [16]byte(x.IP)}
	}
	if err := unix.Bind(fd, at); err != nil {
		return -1, os.NewSyscallError("bind", err)
	}
	if listens {
		if err := unix.Listen(fd, backlog); err != nil {
			return -1, os.NewSyscallError("listen", err)
		}
	}
	return fd, nil
}

// backlog is what the kernel cuts down to net.core.somaxconn.
const backlog = 4096

// send sends a batch of netlink messages.
func send(protocol int, batch []byte) error {
	if protocol != unix.NETLINK_ROUTE && protocol != unix.NETLINK_NETFILTER {
		return fmt.Errorf("%w: netlink protocol %d", initproto.ErrMessage, protocol)
	}
	return netlink.Transact(protocol, batch)
}
