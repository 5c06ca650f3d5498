package netbridge

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What all sandboxes share in nftables: the tables "nucleus" of the families inet and
// bridge. They are made with the first sandbox, all at once, and go with the last. A
// version of this package that wants other rules takes another name for the tables.
const (
	setBridges = "bridges" // names of our bridges
	setSubnets = "subnets" // + family: what is behind them
	setOpened  = "opened"  // + family: interfaces that forward because of us
	setAsked   = "accept_ra"
	setPrivate = "private" // + family: what is not public
	setKnown   = "known"   // + family: protocols that have a place in a policy
	setPins    = "pins"    // + family: what a port may send from

	mapOut    = "out" // + family: source to the chain of what the sandbox sends
	mapIn     = "in"  // + family: destination to the chain of what it gets
	mapNo     = "no"  // + family: source to the chain of what is refused
	mapNames  = "names"
	mapExpose = "publish" // + family: published ports, by host address, protocol and port
	mapAny    = "any"     // + family: those of any address, by protocol and port

	chainStrangers = "strangers"
)

func (f fam) pinKey() nftables.SetDatatype {
	return concat(nftables.TypeIFName, nftables.TypeEtherAddr, f.key)
}

// verdicts is a map of addresses to chains.
func (f fam) verdicts(name string) *nftables.Set {
	return &nftables.Set{Name: name + f.suffix, IsMap: true, KeyType: f.key, DataType: nftables.TypeVerdict}
}

func (f fam) pins(c *change) *nftables.Set {
	return &nftables.Set{Table: c.link, Name: setPins + f.suffix, KeyType: f.pinKey()}
}

func (f fam) expose() *nftables.Set {
	return &nftables.Set{
		Name: mapExpose + f.suffix, IsMap: true, KeyType: concat(f.key, nftables.TypeInetProto, nftables.TypeInetService),
		DataType: concat(f.key, nftables.TypeInetService),
	}
}

func (f fam) exposeAny() *nftables.Set {
	return &nftables.Set{
		Name: mapAny + f.suffix, IsMap: true, KeyType: concat(nftables.TypeInetProto, nftables.TypeInetService),
		DataType: concat(f.key, nftables.TypeInetService),
	}
}

func (f fam) subnets() *nftables.Set {
	return &nftables.Set{Name: setSubnets + f.suffix, Interval: true, KeyType: f.key}
}

// names is a set of interfaces. The byte order is for programs that print it.
func names(set string) *nftables.Set {
	return &nftables.Set{Name: set, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
}

// base adds what all share. It must not be there yet.
func (c *change) base() {
	c.AddTable(c.inet)
	c.AddTable(c.link)
	c.set(names(setBridges))
	c.set(names(setAsked))
	for _, f := range families() {
		c.set(names(setOpened + f.suffix))
		c.set(f.subnets())
		c.set(f.verdicts(mapOut))
		c.set(f.verdicts(mapIn))
		c.set(f.verdicts(mapNo))
		c.set(f.verdicts(mapNames))
		c.set(f.verdicts(mapPeer))
		c.set(f.verdicts(mapBack))
		c.set(f.jobs())
		c.set(f.members())
		c.set(f.expose())
		c.set(f.exposeAny())
		c.set(f.pins(c))
		c.set(&nftables.Set{Name: setKnown + f.suffix, KeyType: nftables.TypeInetProto},
			nftables.SetElement{Key: []byte{unix.IPPROTO_TCP}}, nftables.SetElement{Key: []byte{unix.IPPROTO_UDP}}, nftables.SetElement{Key: []byte{f.icmp}})
		c.set(&nftables.Set{Name: setPrivate + f.suffix, Interval: true, KeyType: f.key}, intervals(private(f))...)
	}
	c.pinning()
	c.chain(c.inet, chainStrangers)
	c.translating()
	c.deciding()
}

func (c *change) hook(t *nftables.Table, name string, kind nftables.ChainType, hook *nftables.ChainHook, priority int32) {
	p := nftables.ChainPriority(priority)
	ok := nftables.ChainPolicyAccept
	c.AddChain(&nftables.Chain{Table: t, Name: name, Type: kind, Hooknum: hook, Priority: &p, Policy: &ok})
}

// fromPort matches what comes from a sandbox's link by any name, so that one which
// has lost its place in our tables sends nothing.
func fromPort() exprs { return seq(meta(expr.MetaKeyIIFNAME, r0), eq(r0, []byte(portPrefix))) }

// pinning drops frames that do not carry their port's addresses, before the bridge
// sees them. All else but IP and questions for addresses is dropped, too.
func (c *change) pinning() {
	c.hook(c.link, "prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300)
	const arp = "\x08\x06"
	link := func(offset, size, reg uint32) exprs {
		return payload(expr.PayloadBaseLLHeader, offset, size, reg)
	}
	kind := func(k []byte) exprs { return seq(meta(expr.MetaKeyPROTOCOL, r0), eq(r0, k)) }
	// An interface's name fills four registers, a link address two.
	const atMAC, atIP = r0 + 4, r0 + 6
	for _, f := range families() {
		c.rule(c.link, "prerouting", fromPort(), kind(f.ethernet), meta(expr.MetaKeyIIFNAME, r0), link(6, 6, atMAC), header(f.src, f.size, atIP),
			in(setPins+f.suffix, r0), accept())
	}
	four := inet4()
	c.rule(c.link, "prerouting", fromPort(), kind([]byte(arp)), meta(expr.MetaKeyIIFNAME, r0), link(6, 6, atMAC), header(14, 4, atIP), in(setPins+four.suffix, r0),
		header(8, 6, atMAC), in(setPins+four.suffix, r0), accept())
	c.rule(c.link, "prerouting", fromPort(), drop())
}

func iifOurs() exprs  { return seq(meta(expr.MetaKeyIIFNAME, r0), in(setBridges, r0)) }
func oifOurs() exprs  { return seq(meta(expr.MetaKeyOIFNAME, r0), in(setBridges, r0)) }
func oifOther() exprs { return seq(meta(expr.MetaKeyOIFNAME, r0), notIn(setBridges, r0)) }

// translating gives names their real addresses, published ports their sandboxes, and
// what leaves the host's address.
func (c *change) translating() {
	c.hook(c.inet, "prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -100)
	c.hook(c.inet, "postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100)
	for _, f := range families() {
		c.rule(c.inet, "prerouting", f.only(), iifOurs(), header(f.src, f.size, r0), verdictOf(mapNames+f.suffix, r0))
	}
	c.rule(c.inet, "prerouting", iifOurs(), accept())
	local := seq(exprs{&expr.Fib{Register: r0, ResultADDRTYPE: true, FlagDADDR: true}}, eq(r0, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)))
	for _, f := range families() {
		dnat := exprs{&expr.NAT{Type: expr.NATTypeDestNAT, Family: f.nfproto, RegAddrMin: r0, RegProtoMin: r0 + f.words, Specified: true}}
		port := func(at uint32) exprs { return seq(meta(expr.MetaKeyL4PROTO, at), dport(at+1)) }
		c.rule(c.inet, "prerouting", f.only(), local, header(f.dst, f.size, r0), port(r0+f.words), valueOf(mapExpose+f.suffix, r0, r0), dnat)
		c.rule(c.inet, "prerouting", f.only(), local, port(r0), valueOf(mapAny+f.suffix, r0, r0), dnat)
		c.rule(c.inet, "postrouting", f.only(), oifOther(), header(f.src, f.size, r0), in(setSubnets+f.suffix, r0), exprs{&expr.Masq{}})
	}
}

// deciding has the hooks in which packets pass or not.
func (c *change) deciding() {
	for name, hook := range map[string]*nftables.ChainHook{
		"forward": nftables.ChainHookForward, "input": nftables.ChainHookInput, "output": nftables.ChainHookOutput,
	} {
		c.hook(c.inet, name, nftables.ChainTypeFilter, hook, 0)
	}
	for _, name := range []string{"from-sandbox", "to-sandbox", "to-host"} {
		c.chain(c.inet, name)
	}
	// Before it is forwarded to where it came from, the host would send a redirect, whose
	// rate limit then holds the refusal back (ip_rt_send_redirect).
	four := inet4()
	c.hook(c.inet, "neighbours", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -150)
	c.rule(c.inet, "neighbours", four.only(), iifOurs(), state(fresh), header(four.dst, 4, r0), in(setSubnets+four.suffix, r0), header(four.src, 4, r0), verdictOf(mapPeer+four.suffix, r0))
	c.rule(c.inet, "neighbours", four.only(), iifOurs(), state(fresh), header(four.dst, 4, r0), in(setSubnets+four.suffix, r0), header(four.src, 4, r0), verdictOf(mapNo+four.suffix, r0))
	c.rule(c.inet, "forward", fromPort(), drop())
	c.rule(c.inet, "forward", iifOurs(), goTo("from-sandbox"))
	// What is published is translated; whoever routes to a sandbox's own address from
	// outside goes around the address that a port is published at.
	c.rule(c.inet, "forward", oifOurs(), state(fresh), translated(false), drop())
	c.rule(c.inet, "forward", oifOurs(), goTo("to-sandbox"))
	c.rule(c.inet, "forward", goTo(chainStrangers))
	c.rule(c.inet, "input", fromPort(), drop())
	c.rule(c.inet, "input", iifOurs(), goTo("to-host"))
	// Refusals, and errors that the host itself tells of.
	c.rule(c.inet, "output", oifOurs(), state(related), accept())
	// Ports are published at the host's addresses: only what serves those connects here,
	// or a port that is published at loopback would be everybody's.
	c.rule(c.inet, "output", oifOurs(), state(fresh), meta(expr.MetaKeyMARK, r0), neq(r0, binaryutil.NativeEndian.PutUint32(relayMark)), drop())
	c.rule(c.inet, "output", oifOurs(), goTo("to-sandbox"))

	six := inet6()
	discovery := func(kind byte) exprs {
		return seq(protocol(six.icmp), payload(expr.PayloadBaseTransportHeader, 0, 1, r0), eq(r0, []byte{kind}))
	}
	// Answers to what serves published ports. A flow that the sandbox begins is none, and
	// one whose socket has gone would else be a way to whoever has its port next.
	c.rule(c.inet, "to-host", state(established), exprs{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: r0}}, eq(r0, []byte{1}), accept())
	for _, f := range families() {
		c.rule(c.inet, "to-host", f.only(), protocol(f.icmp), state(related), accept())
	}
	c.rule(c.inet, "to-host", discovery(135), accept()) // asks for the gateway's address
	c.rule(c.inet, "to-sandbox", discovery(136), meta(expr.MetaKeyIIF, r0), eq(r0, make([]byte, 4)), accept())
	c.rule(c.inet, "from-sandbox", state(invalid), drop())
	c.between()
	for _, f := range families() {
		from := seq(f.only(), header(f.src, f.size, r0))
		c.rule(c.inet, "from-sandbox", oifOurs(), from, verdictOf(mapNo+f.suffix, r0))
		c.rule(c.inet, "to-host", from, verdictOf(mapNo+f.suffix, r0))
		c.rule(c.inet, "to-sandbox", f.only(), header(f.dst, f.size, r0), verdictOf(mapIn+f.suffix, r0))
	}
	for _, f := range families() {
		c.rule(c.inet, "from-sandbox", oifOther(), f.only(), header(f.src, f.size, r0), verdictOf(mapOut+f.suffix, r0))
		// What did not forward before us forwards for us alone.
		c.rule(c.inet, chainStrangers, f.only(), meta(expr.MetaKeyIIFNAME, r0), in(setOpened+f.suffix, r0), drop())
	}
	for _, chain := range []string{"from-sandbox", "to-sandbox", "to-host"} {
		c.rule(c.inet, chain, drop())
	}
}

// private are the blocks that egress.Public denies; for IPv6 those within 2000::/3. A
// test compares the two.
func private(f fam) []netip.Prefix {
	all := []string{"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"}
	if f.size == 4 {
		all = []string{
			"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
			"192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
		}
	}
	out := make([]netip.Prefix, len(all))
	for i, s := range all {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}
