package netbridge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/resolver"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// The sandboxes of a stack. Each says in two elements which member it is, and where, as
// long as it is there; what others may send it is in the rules of those. They have the
// member in them and no address: with each packet the kernel looks whether it goes to
// the member. So nobody has to be told when one comes, goes or is somewhere else, and
// its address is nobody's way in afterwards.
//
// Its name leads to the address itself. One that stands for it, as for other names,
// would have to be translated, and a host on which bridged frames pass the firewall
// (br_netfilter, as with Docker) sends what is translated to the same bridge from port
// to port (br_nf_pre_routing_finish), which is forbidden here.

const (
	mapJobs    = "jobs"    // + family: members to their addresses
	setMembers = "members" // + family: members with their addresses
	mapPeer    = "peer"    // + family: source to the chain of what it sends to others
	mapBack    = "back"    // + family: destination to the chain of what others answer

	chainPeer = "-peer"
	chainBack = "-back"
	// Counters by member, of one sandbox: flows, and bytes by direction.
	setCalls = "-calls"
	setSent  = "-sent"
	setGot   = "-got"
)

// member stands for a job of a stack of a state root.
type member [16]byte

func (p *Plugin) member(m network.Member, job string) member {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", p.root, m.Stack, job))
	return member(sum[:])
}

// peer is a job that the sandbox may reach.
type peer struct {
	name  dnsname.Name
	is    member
	rules []network.Rule
}

// join finds the sandbox's place in its stack, and whom it may reach there.
func (p *Plugin) join(a *attachment, r *network.AttachRequest) error {
	jobs := a.policy.Jobs()
	if r.Member == nil {
		if len(jobs) > 0 {
			return errs.ConfigErrorf(nil, "the policy has jobs, and the sandbox is of no stack")
		}
		return nil
	}
	self := p.member(*r.Member, r.Member.Job)
	a.self = &self
	for _, n := range jobs {
		x := peer{name: n, is: p.member(*r.Member, string(n))}
		for _, rule := range r.Egress.Allow {
			if slices.Contains(rule.Jobs, string(n)) {
				x.rules = append(x.rules, rule)
			}
		}
		a.peers = append(a.peers, x)
	}
	return nil
}

// memberKey is as long as a member, and nft prints it as an address.
func memberKey() nftables.SetDatatype { return nftables.TypeIP6Addr }

func (f fam) jobs() *nftables.Set {
	return &nftables.Set{Name: mapJobs + f.suffix, IsMap: true, KeyType: memberKey(), DataType: f.key}
}

func (f fam) members() *nftables.Set {
	return &nftables.Set{Name: setMembers + f.suffix, KeyType: concat(memberKey(), f.key)}
}

func counters(s slot, which string) *nftables.Set {
	return &nftables.Set{Name: s.name() + which, KeyType: memberKey(), Counter: true}
}

// between has what goes from a sandbox to another decided on by the rules of the one
// that began, in both directions.
func (c *change) between() {
	for _, f := range families() {
		c.rule(c.inet, "from-sandbox", oifOurs(), f.only(), state(established|related), exprs{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: r0}}, eq(r0, []byte{1}),
			header(f.dst, f.size, r0), verdictOf(mapBack+f.suffix, r0))
		c.rule(c.inet, "from-sandbox", oifOurs(), f.only(), header(f.src, f.size, r0), verdictOf(mapPeer+f.suffix, r0))
	}
}

// load puts a member into four registers.
func (m member) load() exprs { return exprs{&expr.Immediate{Register: r0, Data: m[:]}} }

// at matches packets that have the member's address where offset says.
func (m member) at(f fam, offset uint32) exprs {
	return seq(m.load(), header(offset, f.size, r0+4), in(setMembers+f.suffix, r0))
}

// counted adds to a counter of the sandbox.
func (m member) counted(s sandbox, which string) exprs {
	return seq(m.load(), in(counters(s.slot, which).Name, r0))
}

// families are those that the sandbox has.
func (s sandbox) families() []fam {
	if s.six {
		return families()
	}
	return families()[:1]
}

// claim says which member the sandbox is. One that was killed and not yet detached loses
// the place.
func (c *change) claim(s sandbox) error {
	if s.self == nil {
		return nil
	}
	for _, f := range families() {
		all, err := c.GetSetElements(c.in(f.jobs()))
		if err != nil {
			return fmt.Errorf("reading %s: %w", mapJobs, err)
		}
		for _, e := range all {
			if bytes.Equal(e.Key, s.self[:]) && len(e.Val) >= int(f.size) {
				c.without(c.in(f.jobs()), nftables.SetElement{Key: e.Key})
				c.without(c.in(f.members()), nftables.SetElement{Key: key(e.Key, e.Val[:f.size])})
			}
		}
	}
	for _, f := range s.families() {
		a := s.addr(f).AsSlice()
		c.elements(c.in(f.jobs()), nftables.SetElement{Key: s.self[:], Val: a})
		c.elements(c.in(f.members()), nftables.SetElement{Key: key(s.self[:], a)})
	}
	return nil
}

// meet adds the rules of what passes between the sandbox and those that it may reach.
func (c *change) meet(s sandbox) {
	if len(s.peers) == 0 {
		return
	}
	peerChain, backChain := s.name()+chainPeer, s.name()+chainBack
	for _, chain := range []string{peerChain, backChain} {
		c.chain(c.inet, chain)
		c.FlushChain(&nftables.Chain{Table: c.inet, Name: chain})
	}
	for _, which := range []string{setCalls, setSent, setGot} {
		set := counters(s.slot, which)
		c.set(set)
		c.FlushSet(set)
		for _, x := range s.peers {
			c.elements(set, nftables.SetElement{Key: x.is[:]})
		}
	}
	each := func(f func(f fam, x peer)) {
		for _, fam := range s.families() {
			for _, x := range s.peers {
				f(fam, x)
			}
		}
	}
	each(func(f fam, x peer) {
		c.rule(c.inet, peerChain, f.only(), s.tag.mine(), x.is.at(f, f.dst), x.is.counted(s, setSent), accept())
		c.rule(c.inet, backChain, f.only(), s.tag.mine(), x.is.at(f, f.src), x.is.counted(s, setGot), accept())
	})
	c.rule(c.inet, backChain, drop())
	// The rest of a flow whose other end has gone: it was allowed, and is nothing to tell of.
	c.rule(c.inet, peerChain, s.tag.mine(), protocol(unix.IPPROTO_TCP), reset())
	c.rule(c.inet, peerChain, s.tag.mine(), drop())
	c.rule(c.inet, peerChain, state(fresh), exprs{&expr.Connlimit{Count: maxFlows, Flags: connlimitOver}}, goTo(s.name()+chainMany))
	each(func(f fam, x peer) {
		for _, r := range x.rules {
			for _, flow := range flowsOf(r, f) {
				c.rule(c.inet, peerChain, f.only(), state(fresh), translated(false), flow, x.is.at(f, f.dst), x.is.counted(s, setCalls), s.tag.pass())
			}
		}
	})
	c.rule(c.inet, peerChain, goTo(s.name()+chainNo))
	for _, f := range s.families() {
		a := s.addr(f).AsSlice()
		for m, chain := range map[string]string{mapPeer: peerChain, mapBack: backChain} {
			c.elements(c.in(f.verdicts(m)), nftables.SetElement{Key: a, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}})
		}
	}
}

// job tells the resolver where a job is now.
func (a *attachment) job(ctx context.Context, n dnsname.Name) (at resolver.Own, is bool, err error) {
	i := slices.IndexFunc(a.peers, func(x peer) bool { return x.name == n })
	if i < 0 {
		return at, false, nil
	}
	s, err := open(unix.NETLINK_NETFILTER)
	if err != nil {
		return at, true, err
	}
	defer s.close()
	for _, f := range a.families() {
		to, err := s.find(ctx, f, a.peers[i].is)
		if err != nil {
			return at, true, fmt.Errorf("looking for job %s: %w", n, err)
		}
		if f.size == 4 {
			at.V4 = to
		} else {
			at.V6 = to
		}
	}
	return at, true, nil
}

// jobAt tells which of the jobs that the sandbox may reach has an address.
func (a *attachment) jobAt(dst netip.Addr) (dnsname.Name, bool) {
	for _, x := range a.peers {
		at, _, err := a.job(a.ctx, x.name)
		if err == nil && (dst == at.V4 || dst == at.V6) {
			return x.name, true
		}
	}
	return "", false
}

// Of linux/netfilter/nf_tables.h.
const (
	elemListTable    = 1 // NFTA_SET_ELEM_LIST_TABLE
	elemListSet      = 2
	elemListElements = 3
	listElem         = 1 // NFTA_LIST_ELEM
	elemKey          = 1 // NFTA_SET_ELEM_KEY
	elemData         = 2
	dataValue        = 1 // NFTA_DATA_VALUE
)

// find gives the address that a member has; the zero value if it has none. To list all
// members, as the library does, would let a sandbox that asks for names read the whole
// host's again and again.
func (s socket) find(ctx context.Context, f fam, m member) (at netip.Addr, err error) {
	err = s.send(ctx, func(answer []byte) {
		for _, kind := range []uint16{elemListElements, listElem, elemData, dataValue} {
			if kind == elemListElements {
				answer = answer[min(len(answer), nflogHeader):]
			}
			answer = attributeOf(answer, kind)
		}
		at, _ = netip.AddrFromSlice(answer)
	}, request(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, unix.NLM_F_ACK, &nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET},
		attr(elemListTable, nl.ZeroTerminated(tableName)), attr(elemListSet, nl.ZeroTerminated(f.jobs().Name)),
		nested(elemListElements, nested(listElem, nested(elemKey, attr(dataValue, m[:]))))))
	if errors.Is(err, unix.ENOENT) {
		return netip.Addr{}, nil
	}
	return at, err
}

// jobFlows are the counts by job.
func (a *attachment) jobFlows(c *change) []network.FlowStats {
	if len(a.peers) == 0 {
		return nil
	}
	out := make([]network.FlowStats, len(a.peers))
	for which, add := range map[string]func(*network.FlowStats, *expr.Counter){
		setCalls: func(f *network.FlowStats, n *expr.Counter) { f.Connections += n.Packets },
		setSent:  func(f *network.FlowStats, n *expr.Counter) { f.TxBytes += n.Bytes },
		setGot:   func(f *network.FlowStats, n *expr.Counter) { f.RxBytes += n.Bytes },
	} {
		all, err := c.GetSetElements(c.in(counters(a.slot, which)))
		if err != nil {
			continue
		}
		for _, e := range all {
			i := slices.IndexFunc(a.peers, func(x peer) bool { return bytes.Equal(x.is[:], e.Key) })
			if i >= 0 && e.Counter != nil {
				add(&out[i], e.Counter)
			}
		}
	}
	for i := range out {
		out[i].Name = string(a.peers[i].name)
	}
	// The counters are there from the first.
	return slices.DeleteFunc(out, func(f network.FlowStats) bool { return f.Connections == 0 })
}
