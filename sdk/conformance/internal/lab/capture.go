package lab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Packet is one that came over a link.
type Packet struct {
	Protocol uint8
	Src, Dst netip.AddrPort // without ports, of what has none and of later fragments
	Type     uint8          // of ICMP
}

func (p Packet) String() string {
	name := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "icmp"}[p.Protocol]
	if name == "" {
		name = fmt.Sprintf("protocol %d", p.Protocol)
	}
	return fmt.Sprintf("%s to %s", name, p.Dst)
}

// Capture keeps what comes over a link.
type Capture struct {
	link   string
	socket int
	done   chan struct{}
	end    chan struct{}

	mu      sync.Mutex
	packets []Packet
	marks   uint32 // seen
	sent    uint32
	tell    func(Packet)
}

// Listen begins to capture what comes over a link of a namespace; nil is the calling
// thread's.
func Listen(n *Namespace, link string) (*Capture, error) {
	c := &Capture{link: link, done: make(chan struct{}), end: make(chan struct{})}
	open := func() error {
		index, err := Here.Index(link)
		if err != nil {
			return err
		}
		// Without a protocol: nothing comes until it is bound to its link.
		if c.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("socket", err)
		}
		// So that it sees when it is to end.
		_ = unix.SetsockoptTimeval(c.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000})
		_ = unix.SetsockoptInt(c.socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return os.NewSyscallError("bind", unix.Bind(c.socket, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(index)}))
	}
	var err error
	if n == nil {
		err = open()
	} else {
		err = n.Do(open)
	}
	if err != nil {
		return nil, fmt.Errorf("capturing on %s: %w", link, err)
	}
	go c.run()
	return c, nil
}

func (c *Capture) run() {
	defer close(c.done)
	buf := make([]byte, 256) // headers are enough
	for {
		select {
		case <-c.end:
			return
		default:
		}
		n, from, err := unix.Recvfrom(c.socket, buf, 0)
		if err != nil {
			continue // the time is over; a link that is gone says so once
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype != unix.PACKET_OUTGOING {
			c.take(buf[:n])
		}
	}
}

// markPort is that of marks (RFC 863).
const markPort = 9

func (c *Capture) take(b []byte) {
	p, ok := parse(b)
	if !ok {
		return
	}
	c.mu.Lock()
	tell := c.tell
	if p.Dst == netip.AddrPortFrom(gatewayV4.Addr(), markPort) {
		c.marks++
	} else {
		c.packets = append(c.packets, p)
	}
	c.mu.Unlock()
	if tell != nil {
		tell(p)
	}
}

// Tell has f called with each packet that comes from now on.
func (c *Capture) Tell(f func(Packet)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tell = f
}

// Left is what has left the host so far: what was sent before the call is there.
func (l *Lab) Left() ([]Packet, error) {
	c := l.Uplink
	// A mark goes the same way, and comes after everything that has left already.
	var conn net.Conn
	err := l.Host.Do(func() (err error) {
		conn, err = net.Dial("udp4", netip.AddrPortFrom(gatewayV4.Addr(), markPort).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("marking the capture: %w", err)
	}
	defer conn.Close()
	c.sent++
	if _, err := conn.Write([]byte{0}); err != nil {
		return nil, fmt.Errorf("marking the capture: %w", err)
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		c.mu.Lock()
		if c.marks >= c.sent {
			defer c.mu.Unlock()
			return slices.Clone(c.packets), nil
		}
		c.mu.Unlock()
	}
	return nil, fmt.Errorf("the capture on %s does not see what leaves the host", c.link)
}

// Close ends it.
func (c *Capture) Close() {
	close(c.end)
	<-c.done
	_ = unix.Close(c.socket)
}

// parse leaves out what is no IP.
func parse(b []byte) (p Packet, ok bool) {
	var src, dst netip.Addr
	var first bool
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && len(b) >= int(b[0]&0xf)*4:
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		first = binary.BigEndian.Uint16(b[6:])&0x1fff == 0
		p.Protocol, b = b[9], b[int(b[0]&0xf)*4:]
	case len(b) >= 40 && b[0]>>4 == 6:
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		p.Protocol, b, first = beyondExtensions(b[6], b[40:])
	default:
		return p, false
	}
	var from, to uint16
	switch {
	case !first:
	case (p.Protocol == unix.IPPROTO_TCP || p.Protocol == unix.IPPROTO_UDP) && len(b) >= 4:
		from, to = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	case len(b) > 0:
		p.Type = b[0]
	}
	p.Src, p.Dst = netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to)
	return p, true
}

func beyondExtensions(next uint8, b []byte) (protocol uint8, rest []byte, first bool) {
	first = true
	for len(b) >= 8 {
		size := 8 + int(b[1])*8
		switch next {
		case unix.IPPROTO_FRAGMENT:
			size = 8
			first = first && binary.BigEndian.Uint16(b[2:])&^7 == 0
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
		default:
			return next, b, first
		}
		if len(b) < size {
			return next, nil, false
		}
		next, b = b[0], b[size:]
	}
	return next, b, first
}
