// Package fakeinit does init's part of attaching a sandbox, for tests and benchmarks:
// it sets up and opens in the calling thread's network namespace what a plugin asked
// for. It needs all capabilities there.
package fakeinit

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Do gives the files that Attach gets, and the names of what this kernel has not.
func Do(r *network.PrepareResponse) (files []*os.File, missing []string, err error) {
	if err := loopbackUp(); err != nil {
		return nil, nil, err
	}
	step := func(name string, optional bool, err error) error {
		switch {
		case err == nil:
			return nil
		case optional:
			missing = append(missing, name)
			return nil
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	openAll := func(taps bool) error {
		for _, o := range r.Openings {
			if (o.Kind == network.Tap) != taps {
				continue
			}
			for range max(o.Count, 1) {
				fd, err := open(&o)
				if err == nil {
					files = append(files, os.NewFile(uintptr(fd), o.Name))
					continue
				}
				if err := step(o.Name, o.Optional, err); err != nil {
					return err
				}
				break
			}
		}
		return nil
	}
	if err := openAll(true); err != nil {
		return nil, nil, err
	}
	done := map[string]bool{}
	for _, s := range r.Setups {
		if s.After != "" && !done[s.After] {
			missing = append(missing, s.Name)
			continue
		}
		err := send(&s)
		done[s.Name] = err == nil
		if err := step(s.Name, s.Optional, err); err != nil {
			return nil, nil, err
		}
	}
	return files, missing, openAll(false)
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// send sends a setup, and stops at the first message that is refused.
func send(s *network.Setup) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(s.Protocol))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	if s.Protocol == unix.NETLINK_NETFILTER { // a batch is one datagram
		acks := 0
		for m := s.Messages; len(m) > 0; m = m[size(m):] {
			if binary.NativeEndian.Uint16(m[6:])&unix.NLM_F_ACK != 0 {
				acks++
			}
		}
		return exchange(fd, s.Messages, to, acks)
	}
	for m := s.Messages; len(m) > 0; m = m[size(m):] {
		if err := exchange(fd, m[:size(m)], to, 1); err != nil {
			return err
		}
	}
	return nil
}

func size(m []byte) int { return int(binary.NativeEndian.Uint32(m)+3) &^ 3 }

func exchange(fd int, m []byte, to unix.Sockaddr, acks int) error {
	if err := unix.Sendto(fd, m, 0, to); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for acks > 0 {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= 20; b = b[size(b):] {
			if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
				if e := int32(binary.NativeEndian.Uint32(b[16:])); e != 0 {
					return unix.Errno(-e)
				}
				acks--
			}
		}
	}
	return nil
}

func open(o *network.Opening) (int, error) {
	family := unix.AF_INET
	if o.Address.Addr().Is6() {
		family = unix.AF_INET6
	}
	stream, datagram := unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK
	switch o.Kind {
	case network.Tap:
		return openTap(o.IfName, o.Index)
	case network.RawSocket:
		return unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	case network.ListenTCP:
		return bound(family, stream, o)
	case network.ListenUDP:
		return bound(family, datagram, o)
	case network.TCPSocket:
		return socket(family, stream, o)
	case network.UDPSocket:
		return socket(family, datagram, o)
	default:
		return -1, unix.EINVAL
	}
}

func socket(family, kind int, o *network.Opening) (int, error) {
	fd, err := unix.Socket(family, kind, 0)
	if err == nil && o.Transparent {
		if family == unix.AF_INET {
			err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
		} else {
			err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
		}
	}
	return fd, err
}

func bound(family, kind int, o *network.Opening) (int, error) {
	fd, err := socket(family, kind, o)
	if err != nil {
		return fd, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fd, err
	}
	if err := unix.Bind(fd, sockaddr(o.Address)); err != nil {
		return fd, err
	}
	if o.Kind == network.ListenTCP {
		return fd, unix.Listen(fd, unix.SOMAXCONN)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func openTap(name string, index uint32) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	r, err := unix.NewIfreq(name)
	if err == nil && index != 0 {
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETIFINDEX, int(index))
	}
	if err == nil {
		r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
