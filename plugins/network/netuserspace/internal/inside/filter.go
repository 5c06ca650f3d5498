package inside

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// errCaptured ends what would else wait for the kernel's answers.
var errCaptured = errors.New("captured")

// serialize gives the messages that f would send.
func serialize(f func(*nftables.Conn) error) ([]byte, error) {
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
	err = f(c)
	if err == nil {
		err = c.Flush()
	}
	if !errors.Is(err, errCaptured) {
		return nil, fmt.Errorf("making nftables messages: %w", err)
	}
	return out, nil
}

// Offsets in headers.
const (
	ttl4      = 8
	src4      = 12
	dst4      = 16
	hopLimit6 = 7
	src6      = 8
	dst6      = 24
	dportTCP  = 2
	flagsTCP  = 12 // the four bytes that have them: what the kernel compares fastest
)

func capture(f *family) ([]byte, error) {
	return serialize(func(c *nftables.Conn) error {
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
		answers := f.answers(table)
		if err := c.AddSet(answers, nil); err != nil {
			return err
		}
		// What follows the first packet finds its way and its socket without help: it comes
		// first, since it is most of all.
		rule(in, later(), accept())
		rule(out, via(expr.CmpOpEq), later(), accept())
		// A first packet needs nothing of the plugin while the answer to another one like it
		// is fresh.
		rule(in, f.foreign(), syn(), f.tproxy(), accept())
		rule(in, f.foreign(), protocol(unix.IPPROTO_UDP), f.tproxy(), accept())
		// The plugin is not there any more. A program that listens is not who was meant.
		rule(in, f.foreign(), syn(), drop())
		rule(in, f.foreign(), protocol(unix.IPPROTO_UDP), drop())
		if f == v6 {
			// Nothing comes from outside this way. A program that is bound to an address which
			// is not the sandbox's (IPV6_FREEBIND) could meet another that is connecting there.
			rule(in, f.from(), syn(), drop())
		}
		rule(out, f.foreign(), syn(), f.sent(), mark(markLocal), f.target(), []expr.Any{remember(answers)}, accept())
		rule(out, f.foreign(), syn(), f.unsent(), f.target(), []expr.Any{unknown(answers)}, mark(markTap), accept())
		rule(out, via(expr.CmpOpNeq), f.foreign(), protocol(unix.IPPROTO_TCP), mark(markLocal), accept())
		rule(out, f.foreign(), protocol(unix.IPPROTO_UDP), mark(markLocal), accept())
		return nil
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

// foreign is what goes to an address that is not the sandbox's own, and from what comes
// from one.
func (f *family) foreign() []expr.Any { return f.stranger(dst4, dst6) }
func (f *family) from() []expr.Any    { return f.stranger(src4, src6) }

func (f *family) stranger(at4, at6 uint32) []expr.Any {
	offset, length := at4, uint32(4)
	if f == v6 {
		offset, length = at6, 16
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

// syn is the first packet of a TCP connection, and later is what follows.
func syn() []expr.Any   { return flags(expr.CmpOpEq) }
func later() []expr.Any { return flags(expr.CmpOpNeq) }

func flags(op expr.CmpOp) []expr.Any {
	return append(protocol(unix.IPPROTO_TCP),
		header(expr.PayloadBaseTransportHeader, flagsTCP, 4),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{0, 0x17, 0, 0}, Xor: make([]byte, 4)}, // fin, syn, rst, ack
		cmp(op, []byte{0, 0x02, 0, 0}))
}

// via is what leaves over lo, or does not.
func via(op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIF, Register: 1}, cmp(op, binary.NativeEndian.AppendUint32(nil, loIndex))}
}

// sent is what the plugin has seen and sends again.
func (f *family) sent() []expr.Any { return f.ttl(expr.CmpOpEq) }

// unsent is what it has not seen yet.
func (f *family) unsent() []expr.Any { return f.ttl(expr.CmpOpNeq) }

func (f *family) ttl(op expr.CmpOp) []expr.Any {
	offset := uint32(ttl4)
	if f == v6 {
		offset = hopLimit6
	}
	return []expr.Any{header(expr.PayloadBaseNetworkHeader, offset, 1), cmp(op, []byte{SentTTL})}
}

const (
	// fresh is how long what came of a connection is taken to be what will come of the next.
	fresh = 100 * time.Millisecond
	// mostAnswers is of how many destinations that is known at once; the kernel clears old ones
	// out once a second. What there is no room for goes by the plugin.
	mostAnswers = 1024
)

// answers are the addresses and ports where connections were accepted a moment ago.
func (f *family) answers(t *nftables.Table) *nftables.Set {
	address := nftables.TypeIPAddr
	if f == v6 {
		address = nftables.TypeIP6Addr
	}
	key := nftables.MustConcatSetType(address, nftables.TypeInetService)
	return &nftables.Set{Table: t, Name: "answers", KeyType: key, Dynamic: true, HasTimeout: true, Timeout: fresh, Size: mostAnswers}
}

// first32 is NFT_REG32_00: parts of a key lie in registers of four bytes.
const first32 = 8

// target gives where a packet goes, as a key of answers.
func (f *family) target() []expr.Any {
	offset, length := uint32(dst4), uint32(4)
	if f == v6 {
		offset, length = dst6, 16
	}
	return []expr.Any{
		&expr.Payload{DestRegister: first32, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Payload{DestRegister: first32 + length/4, Base: expr.PayloadBaseTransportHeader, Offset: dportTCP, Len: 2},
	}
}

// remember puts the key into a set, if there is room.
func remember(s *nftables.Set) expr.Any {
	return &expr.Dynset{SrcRegKey: first32, SetName: s.Name, SetID: s.ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: fresh}
}

// unknown is a key that is not in a set.
func unknown(s *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: first32, SetName: s.Name, SetID: s.ID, Invert: true}
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
func drop() []expr.Any   { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
