package lab

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Attempt is a packet to be sent from inside.
type Attempt struct {
	Protocol uint8 // unix.IPPROTO_TCP, unix.IPPROTO_UDP, or unix.IPPROTO_ICMP for an echo request of either family
	To       netip.AddrPort
}

// Attempts are all that is tried: of both families, to ports and hosts of which only
// TCP to Port of Somewhere is ever allowed.
func Attempts() []Attempt {
	var out []Attempt
	for _, a := range []netip.Addr{SomewhereV4, SomewhereV6, ElsewhereV4, ElsewhereV6} {
		out = append(
			out, Attempt{unix.IPPROTO_TCP, netip.AddrPortFrom(a, Port)}, Attempt{unix.IPPROTO_TCP, netip.AddrPortFrom(a, OtherPort)},
			Attempt{unix.IPPROTO_UDP, netip.AddrPortFrom(a, Port)}, Attempt{unix.IPPROTO_UDP, netip.AddrPortFrom(a, 53)},
			Attempt{unix.IPPROTO_ICMP, netip.AddrPortFrom(a, 0)},
		)
	}
	return out
}

// keptOpen connections are held while later ones are tried: what carries flows may
// look at one only when it is there.
const keptOpen = 64

// Try sends rounds of all attempts, with a little time in between.
func (n *Namespace) Try(rounds int, between time.Duration) error {
	return n.Do(func() error {
		var open []int
		for range rounds {
			open = round(open)
			time.Sleep(between)
		}
		closeAll(open)
		return nil
	})
}

// Hammer tries all over and over, until it is told to stop.
func (n *Namespace) Hammer() (stop func() error) {
	end := make(chan struct{})
	var err error
	var all sync.WaitGroup
	all.Go(func() {
		err = n.Do(func() error {
			var open []int
			for {
				select {
				case <-end:
					closeAll(open)
					return nil
				case <-time.After(200 * time.Microsecond): // others are to work, too
					open = round(open)
				}
			}
		})
	})
	return func() error {
		close(end)
		all.Wait()
		return err
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// round tries each once. That it fails is what is wanted.
func round(open []int) []int {
	for _, a := range Attempts() {
		domain, kind, protocol := unix.AF_INET, unix.SOCK_STREAM, 0
		if a.To.Addr().Is6() {
			domain = unix.AF_INET6
		}
		var packet []byte
		switch a.Protocol {
		case unix.IPPROTO_UDP:
			kind, packet = unix.SOCK_DGRAM, []byte("?")
		case unix.IPPROTO_ICMP:
			kind, protocol, packet = unix.SOCK_RAW, unix.IPPROTO_ICMP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0} // with its checksum
			if domain == unix.AF_INET6 {
				protocol, packet = unix.IPPROTO_ICMPV6, []byte{128, 0, 0, 0, 0, 0, 0, 0} // the kernel adds it
			}
		}
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		if err != nil {
			continue
		}
		if packet == nil {
			_ = unix.Connect(fd, sockaddr(a.To))
		} else {
			to := a.To
			if kind == unix.SOCK_RAW {
				to = netip.AddrPortFrom(to.Addr(), 0)
			}
			_ = unix.Sendto(fd, packet, 0, sockaddr(to))
		}
		if open = append(open, fd); len(open) > keptOpen {
			_ = unix.Close(open[0])
			open = open[1:]
		}
	}
	return open
}

// Denied are the packets that no policy of the rules allows: what Attempts has but for
// TCP to one port, or all of it.
func Denied(packets []Packet, all bool) []Packet {
	var out []Packet
	for _, p := range packets {
		dst := p.Dst.Addr()
		somewhere := dst == SomewhereV4 || dst == SomewhereV6
		if !somewhere && dst != ElsewhereV4 && dst != ElsewhereV6 {
			continue
		}
		switch {
		case p.Protocol == unix.IPPROTO_TCP && somewhere && p.Dst.Port() == Port && !all:
		case p.Protocol == unix.IPPROTO_ICMP && p.Type != 8, p.Protocol == unix.IPPROTO_ICMPV6 && p.Type != 128: // errors
		default:
			out = append(out, p)
		}
	}
	return out
}
