package netbridge

import (
	"bytes"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// r0 is the first of the 32-bit registers of nftables; a concatenation is in
// consecutive ones.
const r0 = unix.NFT_REG32_00

// exprs are a rule, or a part of one.
type exprs = []expr.Any

func seq(parts ...exprs) exprs { return slices.Concat(parts...) }

// fam is what differs between the families.
type fam struct {
	proto      byte
	src, dst   uint32 // where the addresses are in the header
	size       uint32
	words      uint32
	key        nftables.SetDatatype
	suffix     string
	icmp       byte
	nfproto    uint32
	ethernet   []byte
	synthetics netip.Prefix
}

var (
	synthetic4 = netip.MustParsePrefix("198.18.0.0/15")
	synthetic6 = netip.MustParsePrefix("fd00:6e75:636c::/64")
)

func families() []fam { return []fam{inet4(), inet6()} }

func inet4() fam {
	return fam{
		proto: unix.NFPROTO_IPV4, src: 12, dst: 16, size: 4, words: 1, key: nftables.TypeIPAddr, suffix: "4", icmp: unix.IPPROTO_ICMP,
		nfproto: unix.NFPROTO_IPV4, ethernet: []byte{0x08, 0x00}, synthetics: synthetic4,
	}
}

func inet6() fam {
	return fam{
		proto: unix.NFPROTO_IPV6, src: 8, dst: 24, size: 16, words: 4, key: nftables.TypeIP6Addr, suffix: "6", icmp: unix.IPPROTO_ICMPV6,
		nfproto: unix.NFPROTO_IPV6, ethernet: []byte{0x86, 0xdd}, synthetics: synthetic6,
	}
}

func (f fam) has(a netip.Addr) bool { return a.IsValid() && a.BitLen() == int(f.size)*8 }

// only matches packets of the family.
func (f fam) only() exprs { return seq(meta(expr.MetaKeyNFPROTO, r0), eq(r0, []byte{f.proto})) }

func meta(k expr.MetaKey, reg uint32) exprs { return exprs{&expr.Meta{Key: k, Register: reg}} }

func eq(reg uint32, data []byte) exprs {
	return exprs{&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}}
}

func neq(reg uint32, data []byte) exprs {
	return exprs{&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data}}
}

func payload(base expr.PayloadBase, offset, size, reg uint32) exprs {
	return exprs{&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: reg, Base: base, Offset: offset, Len: size}}
}

func header(offset, size, reg uint32) exprs {
	return payload(expr.PayloadBaseNetworkHeader, offset, size, reg)
}

// dport is the destination port; of ICMP it is something else, which must not matter.
func dport(reg uint32) exprs { return payload(expr.PayloadBaseTransportHeader, 2, 2, reg) }

// faces is how many numbers dice may give.
const faces = 256

// dice is a random number, in network order, for intervals.
func dice(reg uint32) exprs {
	return exprs{
		&expr.Numgen{Register: reg, Modulus: faces, Type: unix.NFT_NG_RANDOM},
		&expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: 4, Size: 4},
	}
}

func masked(reg uint32, mask []byte) exprs {
	return exprs{&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))}}
}

// state matches packets whose connection is in one of the states.
func state(bits uint32) exprs { return ctBits(expr.CtKeySTATE, bits, true) }

const (
	established = expr.CtStateBitESTABLISHED
	related     = expr.CtStateBitRELATED
	invalid     = expr.CtStateBitINVALID
	fresh       = expr.CtStateBitNEW

	statusDNAT = 1 << 5 // IPS_DST_NAT
)

func ctBits(key expr.CtKey, bits uint32, set bool) exprs {
	zero := make([]byte, 4)
	out := seq(exprs{&expr.Ct{Key: key, Register: r0}}, masked(r0, binaryutil.NativeEndian.PutUint32(bits)))
	if set {
		return seq(out, neq(r0, zero))
	}
	return seq(out, eq(r0, zero))
}

func translated(yes bool) exprs { return ctBits(expr.CtKeySTATUS, statusDNAT, yes) }

// mine matches flows that the sandbox's own rules have passed. Its address may have
// been another sandbox's before, whose flows the kernel still knows: those are
// established, and get through no more than a new one would. The label is kept with
// the flow, and setting it adds bits: so that a flow that is taken over becomes ours, it
// is asked whether all bits of ours are there. The first four bytes are left to others.
func (t tag) mine() exprs {
	return seq(exprs{&expr.Ct{Key: expr.CtKeyLABELS, Register: r0}}, masked(r0, t[:]), eq(r0, t[:]))
}

// pass accepts, and makes the flow one of ours.
func (t tag) pass() exprs {
	return seq(exprs{&expr.Immediate{Register: r0, Data: t[:]}, &expr.Ct{Key: expr.CtKeyLABELS, Register: r0, SourceRegister: true}}, accept())
}

// tag is random, and of one attachment.
type tag [16]byte

func in(set string, reg uint32) exprs { return exprs{&expr.Lookup{SourceRegister: reg, SetName: set}} }

func notIn(set string, reg uint32) exprs {
	return exprs{&expr.Lookup{SourceRegister: reg, SetName: set, Invert: true}}
}

// verdictOf goes where a map of verdicts says.
func verdictOf(set string, reg uint32) exprs {
	return exprs{&expr.Lookup{SourceRegister: reg, SetName: set, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true}}
}

func valueOf(set string, reg, to uint32) exprs {
	return exprs{&expr.Lookup{SourceRegister: reg, SetName: set, DestRegister: to, IsDestRegSet: true}}
}

func accept() exprs            { return exprs{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() exprs              { return exprs{&expr.Verdict{Kind: expr.VerdictDrop}} }
func jump(chain string) exprs  { return exprs{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }
func goTo(chain string) exprs  { return exprs{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}} }
func protocol(p ...byte) exprs { return seq(meta(expr.MetaKeyL4PROTO, r0), eq(r0, p)) }

// ifname is a name as a register has it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// rules is this process's connection to nftables. It stays open: when a socket of
// nftables is closed, the kernel waits until nobody reads what was removed lately, and
// whoever changes rules meanwhile waits, too.
type rules struct {
	mu   sync.Mutex
	conn *nftables.Conn
}

// change is a transaction that is being put together, by one goroutine at a time.
type change struct {
	*nftables.Conn
	inet *nftables.Table
	link *nftables.Table
	ids  uint32
	err  error
	// idle means that nothing waits in Conn for a commit.
	idle bool
	of   *rules
}

const tableName = "nucleus"

// change begins one. Nobody else has one until it is closed.
func (r *rules) change() (*change, error) {
	r.mu.Lock()
	if r.conn == nil {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
			// An acknowledgement comes for each of a few hundred messages.
			return c.SetReadBuffer(4 << 20)
		}))
		if err != nil {
			r.mu.Unlock()
			return nil, err
		}
		r.conn = c
	}
	return &change{
		Conn: r.conn, inet: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet},
		link: &nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge}, of: r, idle: true,
	}, nil
}

func (c *change) close() {
	defer c.of.mu.Unlock()
	if !c.idle || c.err != nil {
		// What was not committed must not be with the next change.
		_ = c.CloseLasting()
		c.of.conn = nil
	}
}

// commit makes the change whole, or not at all.
func (c *change) commit() error {
	if c.err != nil {
		return c.err
	}
	c.idle = true
	return c.Flush()
}

func (c *change) rule(t *nftables.Table, chain string, parts ...exprs) {
	c.idle = false
	c.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Table: t, Name: chain}, Exprs: seq(parts...)})
}

func (c *change) chain(t *nftables.Table, name string) {
	c.idle = false
	c.AddChain(&nftables.Chain{Table: t, Name: name})
}

// set adds one with its elements; those of the library share a counter for their ids
// that is not safe beside other goroutines.
func (c *change) set(s *nftables.Set, elements ...nftables.SetElement) {
	c.idle = false
	c.ids++
	s.ID = c.ids
	if s.Anonymous {
		s.Name = "__set%d" // the kernel gives each a number; with no name they would be one
	}
	if s.Table == nil {
		s.Table = c.inet
	}
	if err := c.AddSet(s, elements); err != nil && c.err == nil {
		c.err = err
	}
}

func (c *change) elements(s *nftables.Set, elements ...nftables.SetElement) {
	c.idle = false
	if len(elements) == 0 {
		return
	}
	if err := c.SetAddElements(s, elements); err != nil && c.err == nil {
		c.err = err
	}
}

func (c *change) without(s *nftables.Set, elements ...nftables.SetElement) {
	c.idle = false
	if len(elements) == 0 {
		return
	}
	if err := c.SetDeleteElements(s, elements); err != nil && c.err == nil {
		c.err = err
	}
}

func concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	t, err := nftables.ConcatSetType(types...)
	if err != nil {
		// Only more than five types are too many.
		return nftables.TypeInvalid
	}
	return t
}

// key makes the bytes of a concatenation: each part fills whole registers.
func key(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
		out = append(out, make([]byte, (4-len(p)%4)%4)...)
	}
	return out
}

// intervals gives the elements of a set of blocks, which must not overlap.
func intervals(blocks []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	for _, b := range merged(blocks) {
		out = append(out, nftables.SetElement{Key: b.first.AsSlice()})
		// The end is the first address behind; the last of all has none.
		if end := b.last.Next(); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

type block struct{ first, last netip.Addr }

// merged sorts blocks and joins those that overlap or touch.
func merged(blocks []netip.Prefix) []block {
	all := make([]block, len(blocks))
	for i, b := range blocks {
		all[i] = block{b.Masked().Addr(), lastOf(b)}
	}
	slices.SortFunc(all, func(a, b block) int { return a.first.Compare(b.first) })
	var out []block
	for _, b := range all {
		if n := len(out); n > 0 && (b.first.Compare(out[n-1].last) <= 0 || b.first == out[n-1].last.Next()) {
			if b.last.Compare(out[n-1].last) > 0 {
				out[n-1].last = b.last
			}
			continue
		}
		out = append(out, b)
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		if rest := p.Bits() - 8*i; rest <= 0 {
			b[i] = 0xff
		} else if rest < 8 {
			b[i] |= 0xff >> rest
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// leadsTo tells whether an element of a map of verdicts leads to the chain. The
// library leaves what it reads as it came.
func leadsTo(e nftables.SetElement, chain string) bool {
	return bytes.Contains(e.Val, append([]byte(chain), 0))
}
