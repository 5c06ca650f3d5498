package netbridge

import (
	"bytes"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// The chains and sets of one sandbox are named after its slot.
const (
	chainOut   = "-out"
	chainIn    = "-in"
	chainNo    = "-no"
	chainPass  = "-pass"
	chainMany  = "-many"
	chainNames = "-names"
	chainCount = "-count" // of what was sent to a name
	chainPairs = "-pairs" // of what was sent to a name, and goes where it stands for

	setReal  = "-real" // + family: name's address, protocol, port and a random number to a real address
	setPairs = "-pair" // + family: what a name's address may have become
	setFlows = "-flow" // + family: bytes by direction and name's address
)

// realMap is what a name's address stands for, by protocol and port. A random number
// spreads connections over several real addresses; in network order, it is printed as an
// address.
func (f fam) realMap(s slot) *nftables.Set {
	return &nftables.Set{
		Name: s.name() + setReal + f.suffix, IsMap: true, Interval: true, Concatenation: true,
		KeyType: concat(f.key, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeIPAddr), DataType: f.key,
	}
}

func (f fam) pairSet(s slot) *nftables.Set {
	return &nftables.Set{Name: s.name() + setPairs + f.suffix, KeyType: concat(f.key, f.key), Counter: true}
}

func (f fam) flowSet(s slot) *nftables.Set {
	return &nftables.Set{Name: s.name() + setFlows + f.suffix, KeyType: concat(nftables.TypeCTDir, f.key), Counter: true}
}

// sandbox is what the rules of one are made of.
type sandbox struct {
	slot
	mac    net.HardwareAddr
	egress network.Egress
	names  bool // there is a resolver
	six    bool // it has an IPv6 address
	group  uint16
	tag    tag
	ports  []network.PortMap
	self   *member // nil for a sandbox of no stack
	peers  []peer
	// asked are the host's ports of the resolver, by protocol, of a sandbox that finds
	// none in its namespace.
	asked map[byte]uint16
}

func (s sandbox) addr(f fam) netip.Addr {
	if f.size == 4 {
		return s.v4
	}
	return s.v6
}

// admit adds the rules of a sandbox, in place of what has its slot's name.
func (c *change) admit(s sandbox) {
	name := s.name()
	for _, chain := range []string{chainNo, chainMany, chainPass, chainIn, chainOut} {
		c.chain(c.inet, name+chain)
		c.FlushChain(&nftables.Chain{Table: c.inet, Name: name + chain})
	}
	if s.names {
		c.nameSets(s)
	}
	c.refuse(s)
	c.pass(s)
	c.incoming(s)
	c.outgoing(s)
	c.meet(s)
	to := func(chain string) *expr.Verdict {
		return &expr.Verdict{Kind: expr.VerdictGoto, Chain: name + chain}
	}
	for _, f := range families() {
		a := s.addr(f).AsSlice()
		c.elements(c.in(f.verdicts(mapOut)), nftables.SetElement{Key: a, VerdictData: to(chainOut)})
		c.elements(c.in(f.verdicts(mapIn)), nftables.SetElement{Key: a, VerdictData: to(chainIn)})
		c.elements(c.in(f.verdicts(mapNo)), nftables.SetElement{Key: a, VerdictData: to(chainNo)})
		if s.names {
			c.elements(c.in(f.verdicts(mapNames)), nftables.SetElement{Key: a, VerdictData: to(chainNames)})
		}
		c.elements(f.pins(c), nftables.SetElement{Key: key(ifname(name), s.mac, a)})
	}
}

// in puts a set into the table that most are in.
func (c *change) in(s *nftables.Set) *nftables.Set {
	s.Table = c.inet
	return s
}

func (c *change) nameSets(s sandbox) {
	for _, chain := range []string{chainNames, chainCount, chainPairs} {
		c.chain(c.inet, s.name()+chain)
		c.FlushChain(&nftables.Chain{Table: c.inet, Name: s.name() + chain})
	}
	for _, f := range families() {
		for _, set := range []*nftables.Set{f.realMap(s.slot), f.pairSet(s.slot), f.flowSet(s.slot)} {
			c.set(set)
			c.FlushSet(set)
		}
		c.rule(c.inet, s.name()+chainNames, f.only(), header(f.dst, f.size, r0), meta(expr.MetaKeyL4PROTO, r0+f.words), dport(r0+f.words+1), dice(r0+f.words+2),
			valueOf(s.name()+setReal+f.suffix, r0, r0), exprs{&expr.NAT{Type: expr.NATTypeDestNAT, Family: f.nfproto, RegAddrMin: r0}})
	}
	c.askElsewhere(s)
	c.rule(c.inet, s.name()+chainNames, accept())
}

// maxFlows is how many connections a sandbox may have that the kernel follows. Without
// a bound one could take all ports of the host towards a destination, or fill the
// table of all connections.
const maxFlows = 16384

const connlimitOver = 1 // NFT_CONNLIMIT_F_INV

// snap is how much of a refused packet is told: headers, with all options of IPv4.
const snap = 128

// refuse tells of a packet, not more often than somebody could read, and answers it so
// that whoever has sent it need not wait.
func (c *change) refuse(s sandbox) {
	c.answer(s)
	for chain, prefix := range map[string]string{chainNo: s.name(), chainMany: s.name() + manySuffix} {
		rule := func(parts ...exprs) { c.rule(c.inet, s.name()+chain, parts...) }
		rule(exprs{&expr.Counter{}})
		rule(s.tell(prefix))
		rule(protocol(unix.IPPROTO_TCP), reset())
		rule(exprs{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
	}
}

// tell tells this process of a packet, with a word that says why.
func (s sandbox) tell(prefix string) exprs {
	return exprs{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: 50, Unit: expr.LimitTimeSecond, Burst: 100},
		&expr.Log{
			Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_QTHRESHOLD,
			Group: s.group, Snaplen: snap, QThreshold: 1, Data: []byte(prefix),
		},
	}
}

func reset() exprs { return exprs{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

const (
	// manySuffix marks what was refused for being one too many.
	manySuffix = "+"
	// silentSuffix marks what passes, and was not answered the first time.
	silentSuffix = "?"
)

// passRules is how many rules pass makes.
const passRules = 3

// pass counts a flow that is allowed by address, once: until it is answered all its
// packets are of a new flow, and decided on again.
func (c *change) pass(s sandbox) {
	chain := s.name() + chainPass
	c.rule(c.inet, chain, s.tag.mine(), accept())
	c.rule(c.inet, chain, exprs{&expr.Counter{}})
	c.rule(c.inet, chain, s.tag.pass())
}

// known passes what belongs to a flow that passed, and errors about one. Related means
// more where somebody has set up helpers, which open ports for what a protocol says.
func (c *change) known(s sandbox, chain string) {
	c.rule(c.inet, chain, state(established), s.tag.mine(), accept())
	for _, f := range families() {
		c.rule(c.inet, chain, f.only(), protocol(f.icmp), state(related), s.tag.mine(), accept())
	}
}

// incoming passes answers, and new connections to published ports.
func (c *change) incoming(s sandbox) {
	chain := s.name() + chainIn
	c.counting(s, chain)
	c.known(s, chain)
	for _, p := range s.ports {
		c.rule(c.inet, chain, protocol(protocolNumber(p.Protocol)), dport(r0), eq(r0, binaryutil.BigEndian.PutUint16(p.ContainerPort)), state(fresh), s.tag.pass())
	}
	c.rule(c.inet, chain, drop())
}

// counting adds up bytes by name, in both directions.
func (c *change) counting(s sandbox, chain string) {
	if s.names {
		c.rule(c.inet, chain, translated(true), jump(s.name()+chainCount))
	}
}

// outgoing decides on new flows.
func (c *change) outgoing(s sandbox) {
	chain, refuse, pass := s.name()+chainOut, goTo(s.name()+chainNo), goTo(s.name()+chainPass)
	rule := func(parts ...exprs) { c.rule(c.inet, chain, parts...) }
	c.counting(s, chain)
	c.known(s, chain)
	rule(state(fresh), exprs{&expr.Connlimit{Count: maxFlows, Flags: connlimitOver}}, goTo(s.name()+chainMany))
	if s.names {
		// What begins a second time has not been answered: another address may do better.
		rule(state(fresh), protocol(unix.IPPROTO_TCP), translated(true), s.tag.mine(), s.tell(s.name()+silentSuffix))
		rule(translated(true), jump(s.name()+chainPairs))
	}
	for _, f := range families() {
		rule(f.only(), within(c, f, []netip.Prefix{f.synthetics}), refuse)
	}
	// Somebody else's translation: a service of the host, a container's port.
	rule(translated(true), refuse)
	for _, r := range s.egress.Allow {
		for _, f := range families() {
			c.literal(s, f, r)
		}
	}
	switch s.egress.Default {
	case network.Allow:
		rule(pass)
	case network.Public:
		c.public(s)
	}
	rule(refuse)
}

// literal passes what a rule allows by address.
func (c *change) literal(s sandbox, f fam, r network.Rule) {
	var blocks []netip.Prefix
	for _, b := range r.CIDRs {
		if f.has(b.Addr()) {
			blocks = append(blocks, b)
		}
	}
	if len(blocks) == 0 {
		return
	}
	for _, flow := range flowsOf(r, f) {
		c.rule(c.inet, s.name()+chainOut, f.only(), flow, within(c, f, blocks), goTo(s.name()+chainPass))
	}
}

// flowsOf matches the protocols and ports of a rule, one after the other.
func flowsOf(r network.Rule, f fam) []exprs {
	if len(r.Ports)+len(r.Protocols) == 0 {
		return []exprs{protocol(unix.IPPROTO_TCP), protocol(unix.IPPROTO_UDP), protocol(f.icmp)}
	}
	var out []exprs
	for _, p := range r.Ports {
		first, last := binaryutil.BigEndian.PutUint16(p.First), binaryutil.BigEndian.PutUint16(p.Last)
		out = append(out, seq(protocol(protocolNumber(p.Protocol)), dport(r0), between(r0, first, last)))
	}
	if len(r.Protocols) > 0 { // icmp is the only one
		out = append(out, protocol(f.icmp))
	}
	return out
}

// public passes what egress.Public says is public, by protocols that have a place in a
// policy.
func (c *change) public(s sandbox) {
	four, six := inet4(), inet6()
	refuse, pass := goTo(s.name()+chainNo), goTo(s.name()+chainPass)
	rule := func(f fam, parts ...exprs) { c.rule(c.inet, s.name()+chainOut, f.only(), seq(parts...)) }
	protocols := func(f fam) exprs { return seq(meta(expr.MetaKeyL4PROTO, r0), in(setKnown+f.suffix, r0)) }
	rule(four, protocols(four), header(four.dst, 4, r0), notIn(setPrivate+four.suffix, r0), pass)
	// The IPv4 address in the last four bytes.
	embedded := header(six.dst+12, 4, r0)
	nat64 := netip.MustParseAddr("64:ff9b::").As16()
	is64 := seq(header(six.dst, 12, r0), eq(r0, nat64[:12]))
	rule(six, is64, embedded, in(setPrivate+four.suffix, r0), refuse)
	rule(six, is64, protocols(six), pass)
	rule(six, header(six.dst, 1, r0), masked(r0, []byte{0xe0}), neq(r0, []byte{0x20}), refuse)
	isatap := seq(header(six.dst+8, 4, r0), masked(r0, []byte{0xfc, 0xff, 0xff, 0xff}), eq(r0, []byte{0, 0, 0x5e, 0xfe}))
	rule(six, isatap, embedded, in(setPrivate+four.suffix, r0), refuse)
	rule(six, protocols(six), header(six.dst, 16, r0), notIn(setPrivate+six.suffix, r0), pass)
}

func protocolNumber(name string) byte {
	switch name {
	case "tcp":
		return unix.IPPROTO_TCP
	case "udp":
		return unix.IPPROTO_UDP
	default:
		// Nothing is sent by the protocol that is reserved.
		return 255
	}
}

func between(reg uint32, first, last []byte) exprs {
	if bytes.Equal(first, last) {
		return eq(reg, first)
	}
	return exprs{&expr.Range{Op: expr.CmpOpEq, Register: reg, FromData: first, ToData: last}}
}

// within matches destinations in any of the blocks.
func within(c *change, f fam, blocks []netip.Prefix) exprs {
	load := header(f.dst, f.size, r0)
	all := merged(blocks)
	if len(all) == 1 {
		return seq(load, between(r0, all[0].first.AsSlice(), all[0].last.AsSlice()))
	}
	s := &nftables.Set{Anonymous: true, Constant: true, Interval: true, KeyType: f.key}
	c.set(s, intervals(blocks)...)
	return seq(load, exprs{&expr.Lookup{SourceRegister: r0, SetName: s.Name, SetID: s.ID}})
}
