package netstack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/packet"
)

const ethernet = 14 // the size of its header

// link is the sandbox's tap device as an interface of the stack. It asks for no neighbours:
// whatever the stack sends goes to the sandbox.
type link struct {
	file *os.File
	mtu  uint32
	// mac is the sandbox's end's, far the gateway's.
	mac, far   packet.MAC
	dispatcher atomic.Pointer[stack.NetworkDispatcher]
}

var _ stack.LinkEndpoint = (*link)(nil)

func newLink(file *os.File, mtu uint32) (*link, error) {
	l := &link{file: file, mtu: mtu}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var req [40]byte
	var failed unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, failed = unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCGIFHWADDR, uintptr(unsafe.Pointer(&req)))
	})
	if err == nil && failed != 0 {
		err = os.NewSyscallError("ioctl", failed)
	}
	copy(l.mac[:], req[18:])
	l.far = l.mac
	l.far[5] ^= 1
	return l, err
}

// give sends a packet to the sandbox.
func (l *link) give(b []byte) {
	kind := uint16(unix.ETH_P_IP)
	if b[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	l.frame(b, kind)
}

func (l *link) frame(b []byte, kind uint16) {
	frame := make([]byte, ethernet, ethernet+len(b))
	l.head(frame, kind)
	_, _ = l.file.Write(append(frame, b...)) // a network may lose packets
}

func (l *link) head(b []byte, kind uint16) {
	copy(b, l.mac[:])
	copy(b[6:], l.far[:])
	binary.BigEndian.PutUint16(b[12:], kind)
}

// WritePackets sends what the stack has for the sandbox.
func (l *link) WritePackets(all stack.PacketBufferList) (int, tcpip.Error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return 0, &tcpip.ErrClosedForSend{}
	}
	o, _ := outs.Get().(*outgoing)
	defer func() {
		clear(o.parts[:cap(o.parts)])
		outs.Put(o)
	}()
	n := 0
	for _, pkt := range all.AsSlice() {
		l.head(o.head[:], uint16(pkt.NetworkProtocolNumber))
		o.parts = append(append(o.parts[:0], o.head[:]), pkt.AsSlices()...)
		if len(o.parts) > maxParts {
			o.parts = append(o.parts[:0], bytes.Join(o.parts, nil))
		}
		o.err = nil
		if err := raw.Write(o.send); err != nil || o.err != nil {
			return n, &tcpip.ErrClosedForSend{}
		}
		n++
	}
	return n, nil
}

// maxParts is how many the kernel takes at once (UIO_MAXIOV). A segment that was put
// together of what a server has sent byte by byte has more.
const maxParts = 1024

// outgoing is a packet in parts, which are not put together to be sent.
type outgoing struct {
	head  [ethernet]byte
	parts [][]byte
	err   error
	send  func(fd uintptr) bool // made once: it would be garbage of each packet
}

var outs = sync.Pool{New: func() any {
	o := &outgoing{}
	o.send = func(fd uintptr) bool {
		_, o.err = unix.Writev(int(fd), o.parts)
		return !errors.Is(o.err, unix.EAGAIN)
	}
	return o
}}

// large is from how many bytes on a packet keeps the memory that it was read into.
// Smaller ones are copied: it is as much for all, while the windows of connections count
// bytes.
const large = 32 << 10

// neighbour answers a frame that asks for the gateway's hardware address over IPv4, and
// tells whether it is one of ARP. A kernel asks for none (NOARP).
func (p *Path) neighbour(frame []byte) bool {
	if binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_ARP {
		return false
	}
	if answer := packet.ARPReply(frame[ethernet:], inside.Gateway4, p.link.far); answer != nil {
		p.link.frame(answer, unix.ETH_P_ARP)
	}
	return true
}

// room is for a packet to be read into.
func (l *link) room() *buffer.View { return buffer.NewViewSize(ethernet + int(l.mtu)) }

// inject hands the stack a packet of the sandbox's, and the memory with it.
func (l *link) inject(v *buffer.View) {
	d := l.dispatcher.Load()
	if d == nil {
		v.Release()
		return
	}
	kind := header.IPv4ProtocolNumber
	if v.AsSlice()[0]>>4 == 6 {
		kind = header.IPv6ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	(*d).DeliverNetworkPacket(kind, pkt)
	pkt.DecRef()
}

// Attach is told who takes packets.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

// IsAttached reports whether there is somebody.
func (l *link) IsAttached() bool { return l.dispatcher.Load() != nil }

// MTU is that of IP packets.
func (l *link) MTU() uint32 { return l.mtu }

// SetMTU does nothing: it is the sandbox's interface that has one.
func (l *link) SetMTU(uint32) {}

// MaxHeaderLength is none: frames are put together here.
func (l *link) MaxHeaderLength() uint16 { return 0 }

// LinkAddress is none.
func (l *link) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress does nothing.
func (l *link) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities are none. Checksums are not looked at: between the two ends is a copy
// in memory.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Wait has nothing to wait for: reading is the path's.
func (l *link) Wait() {}

// ARPHardwareType is none.
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader does nothing.
func (l *link) AddHeader(*stack.PacketBuffer) {}

// ParseHeader does nothing.
func (l *link) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close does nothing: the file is the path's.
func (l *link) Close() {}

// SetOnCloseAction does nothing.
func (l *link) SetOnCloseAction(func()) {}
