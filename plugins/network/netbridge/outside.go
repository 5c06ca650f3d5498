package netbridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// outsideAt is where a sandbox whose network stack is not the kernel's finds its
// resolver, which is on the host then. RFC 7335 keeps the block for the two ends of a
// link: it is nobody's, and on no route.
var outsideAt = netip.AddrFrom4([4]byte{192, 0, 0, 1})

// sockets are those of a resolver.
type sockets struct {
	udp net.PacketConn
	tcp net.Listener
}

func (s sockets) close() {
	if s.udp != nil {
		_ = s.udp.Close()
	}
	if s.tcp != nil {
		_ = s.tcp.Close()
	}
}

func (s sandbox) resolverAt() netip.Addr {
	if len(s.asked) > 0 {
		return outsideAt
	}
	return resolverAt
}

// listen takes the sockets over that init has opened, or has some at the bridge.
func (a *attachment) listen(in files) (out sockets, err error) {
	defer func() {
		if err != nil {
			out.close()
			err = fmt.Errorf("the resolver's socket: %w", err)
		}
	}()
	if in.udp != nil {
		if out.udp, err = net.FilePacketConn(in.udp); err == nil {
			out.tcp, err = net.FileListener(in.tcp)
		}
		return out, err
	}
	at := net.JoinHostPort(a.pool.gateway4().String(), "0")
	hear := net.ListenConfig{Control: only(a.v4)}
	if out.udp, err = hear.ListenPacket(a.ctx, "udp4", at); err != nil {
		return out, err
	}
	if out.tcp, err = hear.Listen(a.ctx, "tcp4", at); err != nil {
		return out, err
	}
	a.sandbox.asked = map[byte]uint16{}
	for proto, addr := range map[byte]net.Addr{unix.IPPROTO_UDP: out.udp.LocalAddr(), unix.IPPROTO_TCP: out.tcp.Addr()} {
		p, err := netip.ParseAddrPort(addr.String())
		if err != nil {
			return out, err
		}
		a.sandbox.asked[proto] = p.Port()
	}
	return out, nil
}

// askElsewhere leads questions to the resolver.
func (c *change) askElsewhere(s sandbox) {
	f := inet4()
	for proto, port := range s.asked {
		c.rule(c.inet, s.name()+chainNames, f.only(), header(f.dst, f.size, r0), eq(r0, outsideAt.AsSlice()), protocol(proto), dport(r0), eq(r0, binaryutil.BigEndian.PutUint16(53)),
			load(r0, s.pool.gateway4().AsSlice()), load(r0+f.words, binaryutil.BigEndian.PutUint16(port)),
			exprs{&expr.NAT{Type: expr.NATTypeDestNAT, Family: f.nfproto, RegAddrMin: r0, RegProtoMin: r0 + f.words, Specified: true}})
	}
}

// answer passes questions that were led to the resolver, and no other way to its port.
func (c *change) answer(s sandbox) {
	f := inet4()
	for proto, port := range s.asked {
		c.rule(c.inet, s.name()+chainNo, f.only(), translated(true), header(f.dst, f.size, r0), eq(r0, s.pool.gateway4().AsSlice()), protocol(proto), dport(r0), eq(r0, binaryutil.BigEndian.PutUint16(port)), s.tag.pass())
	}
}

// load puts a value into a register.
func load(reg uint32, data []byte) exprs {
	return exprs{&expr.Immediate{Register: reg, Data: data}}
}

// only lets a socket hear nobody but one IPv4 address. What the host's own programs send
// to a port passes no rule, and would fill what the socket has room for: it is dropped
// before (packet filter of socket(7)).
func only(from netip.Addr) func(string, string, syscall.RawConn) error {
	const (
		networkHeader = 1<<32 - 0x100000 // SKF_NET_OFF of linux/filter.h
		sourceAt      = 12               // in the header of IPv4
	)
	b := from.As4()
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: networkHeader + sourceAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: binary.BigEndian.Uint32(b[:])},
		{Code: unix.BPF_RET | unix.BPF_K, K: math.MaxUint32},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		failed := c.Control(func(fd uintptr) {
			err = os.NewSyscallError("setsockopt", unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
				&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}))
		})
		return errors.Join(failed, err)
	}
}
