package lab

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Open does the part of init in a sandbox: taps, setups, and then what else is to be
// opened, each in their order. What is optional and in without is as on a kernel that
// has no such thing.
func (n *Namespace) Open(want *network.PrepareResponse, without ...string) (files []*os.File, missing []string, err error) {
	o := opener{without: map[string]bool{}}
	for _, name := range without {
		o.without[name] = true
	}
	if err := n.Do(func() error { return o.all(want) }); err != nil {
		for _, f := range o.files {
			f.Close()
		}
		return nil, nil, err
	}
	return o.files, o.missing, nil
}

type opener struct {
	without map[string]bool
	files   []*os.File
	missing []string
}

func (o *opener) all(want *network.PrepareResponse) error {
	for _, taps := range []bool{true, false} {
		for i := range want.Openings {
			if x := &want.Openings[i]; (x.Kind == network.Tap) == taps {
				if err := o.optional(x.Name, x.Optional, func() error { return o.opening(x) }); err != nil {
					return err
				}
			}
		}
		if !taps {
			break
		}
		if err := o.setups(want.Setups); err != nil {
			return err
		}
	}
	return nil
}

// setups leaves out what comes after one that is missing.
func (o *opener) setups(all []network.Setup) error {
	done := map[string]bool{}
	for _, s := range all {
		if s.After != "" && !done[s.After] {
			o.missing = append(o.missing, s.Name)
			continue
		}
		if err := o.optional(s.Name, s.Optional, func() error {
			err := setUp(&s)
			done[s.Name] = err == nil
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (o *opener) optional(name string, optional bool, do func() error) error {
	err := error(unix.EOPNOTSUPP)
	if !o.without[name] {
		err = do()
	}
	switch {
	case err == nil:
		return nil
	case optional:
		o.missing = append(o.missing, name)
		return nil
	default:
		return fmt.Errorf("opening %q in the sandbox: %w", name, err)
	}
}

// opening opens all of one, or nothing.
func (o *opener) opening(x *network.Opening) error {
	before := len(o.files)
	for range max(x.Count, 1) {
		fd, err := open(x)
		if err != nil {
			for _, f := range o.files[before:] {
				f.Close()
			}
			o.files = o.files[:before]
			return err
		}
		o.files = append(o.files, os.NewFile(uintptr(fd), x.Name))
	}
	return nil
}

func open(x *network.Opening) (int, error) {
	switch x.Kind {
	case network.Tap:
		return Tap(x.IfName, x.Index)
	case network.RouteSocket:
		return netlinkSocket(unix.NETLINK_ROUTE)
	case network.NetfilterSocket:
		return netlinkSocket(unix.NETLINK_NETFILTER)
	case network.ListenTCP, network.TCPSocket:
		return socket(x, unix.SOCK_STREAM, 0)
	case network.ListenUDP, network.UDPSocket:
		return socket(x, unix.SOCK_DGRAM, 0)
	case network.RawSocket:
		return socket(x, unix.SOCK_RAW, unix.IPPROTO_RAW)
	case network.NetNS:
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return fd, os.NewSyscallError("open", err)
	}
	return -1, fmt.Errorf("an opening of kind %d", x.Kind)
}

// Tap makes a tap device in the calling thread's namespace, which is there as long as
// its descriptor.
func Tap(name string, index uint32) (int, error) {
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

func socket(x *network.Opening, kind, protocol int) (_ int, err error) {
	domain, level, transparent := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TRANSPARENT
	if x.Address.Addr().Is6() {
		domain, level, transparent = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if domain == unix.AF_INET6 && kind != unix.SOCK_RAW {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && x.Transparent {
		err = unix.SetsockoptInt(fd, level, transparent, 1)
	}
	if err != nil {
		return -1, os.NewSyscallError("setsockopt", err)
	}
	if x.Kind == network.ListenTCP || x.Kind == network.ListenUDP {
		err = os.NewSyscallError("bind", unix.Bind(fd, sockaddr(x.Address)))
	}
	if err == nil && x.Kind == network.ListenTCP {
		err = os.NewSyscallError("listen", unix.Listen(fd, unix.SOMAXCONN))
	}
	return fd, err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// setUp sends a batch as a whole, and waits for each answer that it asks for.
func setUp(s *network.Setup) error {
	if s.Protocol != unix.NETLINK_ROUTE && s.Protocol != unix.NETLINK_NETFILTER {
		return fmt.Errorf("netlink protocol %d", s.Protocol)
	}
	due := map[uint32]bool{}
	err := messages(s.Messages, func(_, flags uint16, seq uint32, _ []byte) error {
		if flags&unix.NLM_F_ACK != 0 {
			due[seq] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(due) == 0 {
		return fmt.Errorf("a netlink batch that asks for no answer")
	}
	fd, err := netlinkSocket(int(s.Protocol))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4*len(s.Messages)+64<<10) // a large one is rare
	if err := unix.Sendto(fd, s.Messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 64<<10)
	for len(due) > 0 {
		n, err := receive(fd, buf)
		if err != nil {
			return fmt.Errorf("%d messages have no answer: %w", len(due), err)
		}
		if err := messages(buf[:n], func(kind, _ uint16, seq uint32, payload []byte) error {
			if kind != unix.NLMSG_ERROR {
				return nil
			}
			delete(due, seq)
			return failure(payload)
		}); err != nil {
			return err
		}
	}
	return nil
}
