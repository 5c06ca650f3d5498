package netlab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Packet is one that came out of the host. Of a fragment that is not the first the
// ports are zero.
type Packet struct {
	Protocol uint8 // unix.IPPROTO_TCP and its like
	Src, Dst netip.AddrPort
	// Flags are those of TCP; of ICMP it is the type.
	Flags   uint8
	Payload int
}

func (p Packet) String() string {
	name := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "icmpv6"}[p.Protocol]
	if name == "" {
		name = fmt.Sprint(p.Protocol)
	}
	return fmt.Sprintf("%s %s > %s flags %#02x length %d", name, p.Src, p.Dst, p.Flags, p.Payload)
}

// Capture keeps the packets that come over a link. Neighbour discovery and other talk
// of one link with itself is left out.
type Capture struct {
	t       testing.TB
	ns      *Namespace
	socket  int
	end     *os.File
	marks   atomic.Uint32
	mu      sync.Mutex
	seen    *sync.Cond
	packets []Packet
	last    uint32 // the mark that was seen last
}

// discardPort is that of marks, which are datagrams of a length of their own (RFC 863).
const discardPort = 9

const markSize = 11

func newCapture(t testing.TB, ns *Namespace, link string) *Capture {
	t.Helper()
	c := &Capture{t: t, ns: ns}
	c.seen = sync.NewCond(&c.mu)
	var err error
	ns.Do(func() { c.socket, err = packetSocket(link) })
	if err != nil {
		t.Fatalf("capturing on %s: %v", link, err)
	}
	read, end, err := os.Pipe()
	if err != nil {
		t.Fatalf("capturing on %s: %v", link, err)
	}
	c.end = end
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(int(read.Fd()))
	}()
	t.Cleanup(func() {
		_ = c.end.Close()
		<-done
		_ = read.Close()
		stats, err := unix.GetsockoptTpacketStats(c.socket, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil {
			t.Errorf("capturing on %s: %v", link, err)
		} else if stats.Drops > 0 {
			t.Errorf("the capture lost %d packets: what it proves is not proven", stats.Drops)
		}
		_ = unix.Close(c.socket)
	})
	return c
}

func packetSocket(link string) (int, error) {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return -1, err
	}
	// Protocol 0: nothing comes until it is bound to its link.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		return -1, os.NewSyscallError("setsockopt", err)
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}); err != nil {
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

func (c *Capture) run(end int) {
	buf := make([]byte, 256) // headers are enough
	for {
		fds := []unix.PollFd{{Fd: int32(c.socket), Events: unix.POLLIN}, {Fd: int32(end), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		for {
			n, from, err := unix.Recvfrom(c.socket, buf, unix.MSG_TRUNC)
			if err != nil {
				break // EAGAIN; a link that is gone says so once
			}
			if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype != unix.PACKET_OUTGOING {
				c.take(buf[:min(n, len(buf))], n)
			}
		}
	}
}

func (c *Capture) take(data []byte, size int) {
	p, ok := parsePacket(data, size)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.Protocol == unix.IPPROTO_UDP && p.Dst == netip.AddrPortFrom(GatewayV4, discardPort) && p.Payload == markSize {
		c.last++
		c.seen.Broadcast()
		return
	}
	c.packets = append(c.packets, p)
}

// Packets returns everything that has left the host so far; what was sent before the
// call is there.
func (l *Lab) Packets(t testing.TB) []Packet {
	t.Helper()
	c := l.Uplink
	// A mark goes the same way, and so comes after everything that has left already.
	conn, err := l.Host.Dial(context.Background(), "udp4", netip.AddrPortFrom(GatewayV4, discardPort).String())
	if err != nil {
		t.Fatalf("marking the capture: %v", err)
	}
	defer conn.Close()
	want := c.marks.Add(1)
	if _, err := conn.Write(make([]byte, markSize)); err != nil {
		t.Fatalf("marking the capture: %v", err)
	}
	alarm := time.AfterFunc(10*time.Second, c.seen.Broadcast)
	defer alarm.Stop()
	deadline := time.Now().Add(10 * time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.last < want {
		if !time.Now().Before(deadline) {
			t.Fatal("the capture does not see what leaves the host")
		}
		c.seen.Wait()
	}
	return slices.Clone(c.packets)
}

// ForgetPackets starts the capture anew.
func (l *Lab) ForgetPackets(t testing.TB) {
	t.Helper()
	l.Packets(t)
	l.Uplink.mu.Lock()
	defer l.Uplink.mu.Unlock()
	l.Uplink.packets = nil
}

// parsePacket leaves out what is no IP or stays on its link: neighbour discovery,
// router solicitations, multicast listener reports.
func parsePacket(data []byte, size int) (Packet, bool) {
	if len(data) < 20 {
		return Packet{}, false
	}
	var p Packet
	var src, dst netip.Addr
	var rest []byte
	var first bool
	switch data[0] >> 4 {
	case 4:
		header := int(data[0]&0xf) * 4
		if len(data) < header {
			return Packet{}, false
		}
		src, dst = netip.AddrFrom4([4]byte(data[12:16])), netip.AddrFrom4([4]byte(data[16:20]))
		first = binary.BigEndian.Uint16(data[6:])&0x1fff == 0
		p.Protocol, rest, p.Payload = data[9], data[header:], size-header
	case 6:
		if len(data) < 40 {
			return Packet{}, false
		}
		src, dst = netip.AddrFrom16([16]byte(data[8:24])), netip.AddrFrom16([16]byte(data[24:40]))
		p.Protocol, rest, p.Payload = data[6], data[40:], size-40
		p.Protocol, rest, first = skipExtensions(p.Protocol, rest)
	default:
		return Packet{}, false
	}
	if dst.IsLinkLocalMulticast() || dst.IsInterfaceLocalMulticast() {
		return Packet{}, false
	}
	if p.Protocol == unix.IPPROTO_ICMPV6 && len(rest) > 0 && rest[0] >= 130 && rest[0] <= 143 {
		return Packet{}, false
	}
	var sport, dport uint16
	if first && (p.Protocol == unix.IPPROTO_ICMP || p.Protocol == unix.IPPROTO_ICMPV6) && len(rest) > 0 {
		p.Flags = rest[0]
	}
	if first && (p.Protocol == unix.IPPROTO_TCP || p.Protocol == unix.IPPROTO_UDP) && len(rest) >= 8 {
		sport, dport = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
		if p.Protocol == unix.IPPROTO_UDP {
			p.Payload -= 8
		} else if len(rest) >= 20 {
			p.Flags = rest[13]
			p.Payload -= int(rest[12]>>4) * 4
		}
	}
	p.Src, p.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return p, true
}

func skipExtensions(next uint8, rest []byte) (protocol uint8, payload []byte, first bool) {
	first = true
	for len(rest) >= 8 {
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			size := 8 + int(rest[1])*8
			if len(rest) < size {
				return next, nil, false
			}
			next, rest = rest[0], rest[size:]
		case unix.IPPROTO_FRAGMENT:
			first = first && binary.BigEndian.Uint16(rest[2:])&^7 == 0
			next, rest = rest[0], rest[8:]
		default:
			return next, rest, first
		}
	}
	return next, rest, first
}
