package inside

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// errCaptured ends what would else wait for the kernel's answers.
var errCaptured = errors.New("captured")

// serialize gives the messages that f would send.
func serialize(f func(*nftables.Conn)) ([]byte, error) {
	var out []byte
	c, err := nftables.New(nftables.WithTestDial(func(ms []netlink.Message) ([]netlink.Message, error) {
		for i, m := range ms {
			m.Header.Sequence, m.Header.PID = uint32(i), 0
			m.Header.Length = uint32(unix.NLMSG_HDRLEN + len(m.Data))
			b, err := m.MarshalBinary()
			if err != nil {
				return nil, err
			}
			out = append(out, b...)
		}
		return nil, errCaptured
	}))
	if err != nil {
		return nil, err
	}
	f(c)
	if err := c.Flush(); !errors.Is(err, errCaptured) {
		return nil, fmt.Errorf("making nftables messages: %w", err)
	}
	return out, nil
}

// Offsets in headers.
const (
	ttl4      = 8
	dst4      = 16
	hopLimit6 = 7
	dst6      = 24
	flagsTCP  = 13
)

func capture(f *family) ([]byte, error) {
	return serialize(func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Name: "nucleus", Family: f.nft()})
		mangle := nftables.ChainPriorityMangle
		in := c.AddChain(&nftables.Chain{Table: table, Name: "in", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: mangle})
		out := c.AddChain(&nftables.Chain{Table: table, Name: "out", Type: nftables.ChainTypeRoute, Hooknum: nftables.ChainHookOutput, Priority: mangle})
		rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
			var all []expr.Any
			for _, p := range parts {
				all = append(all, p...)
			}
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: all})
		}
		// What follows the first packet finds its socket without help.
		rule(in, f.foreign(), syn(), f.tproxy(), accept())
		rule(in, f.foreign(), protocol(unix.IPPROTO_UDP), f.tproxy(), accept())
		rule(out, f.foreign(), syn(), f.unsent(), mark(markTap), accept())
		rule(out, f.foreign(), protocol(unix.IPPROTO_TCP), mark(markLocal), accept())
		rule(out, f.foreign(), protocol(unix.IPPROTO_UDP), mark(markLocal), accept())
	})
}

func (f *family) nft() nftables.TableFamily {
	if f == v4 {
		return nftables.TableFamilyIPv4
	}
	return nftables.TableFamilyIPv6
}

func cmp(op expr.CmpOp, data []byte) expr.Any { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func header(base expr.PayloadBase, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: length}
}

func protocol(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, cmp(expr.CmpOpEq, []byte{p})}
}

// foreign is what goes to an address that is not the sandbox's own.
func (f *family) foreign() []expr.Any {
	offset, length := uint32(dst4), uint32(4)
	if f == v6 {
		offset, length = dst6, 16
	}
	mask := f.mask()
	return []expr.Any{
		header(expr.PayloadBaseNetworkHeader, offset, length), cmp(expr.CmpOpNeq, f.address.AsSlice()),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		cmp(expr.CmpOpNeq, f.loopback.Masked().Addr().AsSlice()),
	}
}

func (f *family) mask() []byte {
	all := make([]byte, f.bits/8)
	for i := range all {
		all[i] = 0xff
	}
	ones, _ := netip.AddrFromSlice(all)
	p, _ := ones.Prefix(f.loopback.Bits())
	return p.Addr().AsSlice()
}

// syn is the first packet of a TCP connection.
func syn() []expr.Any {
	return append(protocol(unix.IPPROTO_TCP),
		header(expr.PayloadBaseTransportHeader, flagsTCP, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x17}, Xor: []byte{0}}, // fin, syn, rst, ack
		cmp(expr.CmpOpEq, []byte{0x02}))
}

// unsent is what the plugin has not seen yet.
func (f *family) unsent() []expr.Any {
	offset := uint32(ttl4)
	if f == v6 {
		offset = hopLimit6
	}
	return []expr.Any{header(expr.PayloadBaseNetworkHeader, offset, 1), cmp(expr.CmpOpNeq, []byte{SentTTL})}
}

func mark(n uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint32(nil, n)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}
}

func (f *family) tproxy() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: f.listen.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: be16(f.listen.Port())},
		&expr.TProxy{Family: byte(f.nft()), TableFamily: byte(f.nft()), RegAddr: 1, RegPort: 2},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
