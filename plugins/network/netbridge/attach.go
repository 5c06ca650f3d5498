package netbridge

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/dump"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/hostport"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/ledger"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/egress"
)

// attachment is a sandbox that this process serves: its resolver, its published ports
// and what tells of denials. All of it ends with ctx.
type attachment struct {
	sandbox
	mark   string
	rules  *rules
	policy *egress.Policy
	ledger *ledger.Ledger
	answer *network.AttachResponse

	ctx    context.Context // of what runs for it
	cancel context.CancelFunc
	names  *bound
	heard  sockets
	public *published
	log    *denials
	guard  *guard
	made   string // the census of rules
}

// Attach connects a sandbox. The link comes up last, when all else is in force.
func (p *Plugin) Attach(ctx context.Context, r *network.AttachRequest) (*network.AttachResponse, error) {
	mark := p.alias(r.Call.SandboxID, r.Call.InstanceID)
	if a := p.serving(r.Call.SandboxID, r.Call.InstanceID); a != nil {
		return a.answer, nil
	}
	policy, err := egress.New(r.Egress)
	if err != nil {
		return nil, &errs.Error{Code: errs.Config, Err: err}
	}
	if err := hostport.Check(r.Ports); err != nil {
		return nil, err
	}
	files, err := filesOf(r)
	if err != nil {
		return nil, err
	}
	h, err := p.host()
	if err != nil {
		return nil, err
	}
	defer h.close()
	a := &attachment{mark: mark, rules: &p.rules, policy: policy, ledger: ledger.New()}
	a.egress, a.sandbox.names = r.Egress, policy.Names() || files.udp == nil
	if err := p.join(a, r); err != nil {
		return nil, err
	}
	// What runs for the sandbox outlives the call.
	a.ctx, a.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err == nil {
			return
		}
		a.stop()
		// The caller may have given up; what was made goes all the same.
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerLimit)
		defer cancel()
		if _, undo := h.detach(late, mark); undo != nil {
			err = errs.Residue(errors.Join(err, undo), mark)
		}
	}()
	pl := p.poolOf(r.Call.InstanceID)
	if r.MTU != 0 {
		pl.mtu = int(r.MTU)
	}
	if err = a.connect(ctx, h, &pl, r, files); err != nil {
		return nil, err
	}
	files.netns.Close()
	files.route.Close()
	p.mu.Lock()
	p.live[mark] = a
	p.mu.Unlock()
	return a.answer, nil
}

// files are the openings of a sandbox.
type files struct{ netns, route, udp, tcp *os.File }

func filesOf(r *network.AttachRequest) (files, error) {
	var out files
	for _, f := range r.Files {
		switch f.Name() {
		case openNetNS:
			out.netns = f
		case openRoute:
			out.route = f
		case openDNSUDP:
			out.udp = f
		case openDNSTCP:
			out.tcp = f
		}
	}
	if out.netns == nil || out.route == nil || !r.OwnStack && (out.udp == nil || out.tcp == nil) {
		return out, errs.Preconditionf("the sandbox's openings did not come: this network needs %s, %s, %s and %s", openNetNS, openRoute, openDNSUDP, openDNSTCP)
	}
	return out, nil
}

// connect does what Attach promises, in its order.
func (a *attachment) connect(ctx context.Context, h *host, pl *pool, r *network.AttachRequest, in files) error {
	if pl.mtu == 0 {
		pl.mtu = h.mtu()
	}
	ifname := r.IfName
	if ifname == "" {
		ifname = "eth0"
	}
	port, bridge, err := h.reserve(ctx, a, pl, r, in.netns, ifname)
	if err != nil {
		return err
	}
	a.six = h.v6
	if _, err := rand.Read(a.tag[4:]); err != nil {
		return err
	}
	if a.log, err = listenDenials(a); err != nil {
		return err
	}
	a.group = a.log.group
	if a.public, err = publish(a, r.Ports); err != nil {
		return err
	}
	a.ports = a.public.ports
	if a.heard, err = a.listen(in); err != nil {
		return err
	}
	if err := a.enforce(); err != nil {
		return errs.Preconditionf("putting the policy in force: %w", err)
	}
	if a.guard, err = newGuard(); err != nil {
		return err
	}
	if a.made, err = a.census(ctx); err != nil {
		return fmt.Errorf("looking at the rules that were made: %w", err)
	}
	if err := h.fence(ctx, a.slot, port, bridge, a.mac); err != nil {
		return err
	}
	if err := h.inside(ctx, in.route, a.slot, ifname, r.OwnStack); err != nil {
		return err
	}
	if err := a.resolve(r.DNS); err != nil {
		return err
	}
	if err := h.up(ctx, port); err != nil {
		return err
	}
	inside := socket{int(in.route.Fd())}
	if err := errors.Join(inside.carrier(ctx, ifname), h.batch.carrier(ctx, a.name()), h.batch.carrier(ctx, pl.bridge)); err != nil {
		return err
	}
	a.guard.start(a, port)
	a.log.start(a)
	a.public.start(a)
	a.answer, err = a.answerTo(h, r, ifname)
	return err
}

// enforceTries is how often a port's earlier rule may go while it is looked at.
const enforceTries = 3

// enforce puts the sandbox's rules in force, all at once. A port that is published may
// have a rule of a process that is gone: the socket says whose it is now.
func (a *attachment) enforce() error {
	c, err := a.rules.change()
	if err != nil {
		return err
	}
	defer c.close()
	for try := 0; ; try++ {
		c.admit(a.sandbox)
		if err := c.claim(a.sandbox); err != nil {
			return err
		}
		if err := c.exposePorts(a.sandbox, try > 0); err != nil {
			return err
		}
		err := c.commit()
		switch {
		case err == nil && a.sandbox.names:
			return a.byOriginal(a.ctx)
		case try == enforceTries || !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOENT):
			return err
		}
	}
}

// mtu is that of the way out.
func (h *host) mtu() int {
	routes, err := dump.Whole(func() ([]netlink.Route, error) { return h.route.RouteList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return 1500
	}
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		if l, err := h.route.LinkByIndex(r.LinkIndex); err == nil && l.Attrs().MTU >= 1280 {
			return l.Attrs().MTU
		}
	}
	return 1500
}

func (a *attachment) answerTo(h *host, r *network.AttachRequest, ifname string) (*network.AttachResponse, error) {
	handle, err := handleOf(a.slot)
	if err != nil {
		return nil, err
	}
	out := &network.AttachResponse{
		Handle:     handle,
		Interfaces: []network.Interface{{Name: ifname, MAC: a.mac.String(), MTU: uint32(a.pool.mtu), HostName: a.name()}},
		DNS:        &network.DNS{Servers: []netip.Addr{a.resolverAt()}},
		Ports:      a.ports,
	}
	if r.DNS != nil {
		out.DNS.Search, out.DNS.Options = r.DNS.Search, r.DNS.Options
	}
	leg := func(addr netip.Addr, bits int, gateway netip.Addr, all string) {
		out.IPs = append(out.IPs, network.IPConfig{Address: netip.PrefixFrom(addr, bits), Gateway: gateway, IfName: ifname})
		out.Routes = append(out.Routes, network.Route{Dst: netip.MustParsePrefix(all), Via: gateway, IfName: ifname})
	}
	leg(a.v4, a.pool.v4.Bits(), a.pool.gateway4(), "0.0.0.0/0")
	if h.v6 {
		leg(a.v6, a.pool.v6.Bits(), a.pool.gateway6(), "::/0")
	}
	return out, nil
}

// stop ends what runs for the sandbox.
func (a *attachment) stop() {
	a.cancel()
	if a.guard != nil {
		a.guard.close()
	}
	if a.log != nil {
		a.log.close()
	}
	if a.public != nil {
		a.public.close()
	}
	if a.names != nil {
		a.names.close()
	}
	a.heard.close()
	a.ledger.Close() // last: a watcher is told what the log had
}

// reserve takes a slot by making the link, on a bridge that stays as long as there are
// links on it. It holds the lock, and nothing that follows does.
func (h *host) reserve(ctx context.Context, a *attachment, pl *pool, r *network.AttachRequest, netns *os.File, ifname string) (port, bridge int, err error) {
	unlock, err := h.locks.lock(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer unlock()
	have, err := h.links()
	if err != nil {
		return 0, 0, err
	}
	// What is this sandbox's already is of a process that is gone.
	first := pl.first(r, a.self)
	for name, l := range have.ports {
		if l.Attrs().Alias != a.mark {
			continue
		}
		if n, ok := pl.index(addrOf(name)); ok {
			first = n
		}
		if err := h.removeLink(name); err != nil {
			return 0, 0, fmt.Errorf("removing the sandbox's earlier link %s: %w", name, err)
		}
		delete(have.ports, name)
	}
	c, err := h.rules.change()
	if err != nil {
		return 0, 0, err
	}
	defer c.close()
	if err := c.ensure(); err != nil {
		return 0, 0, err
	}
	if bridge, err = h.ensureBridge(ctx, pl, have); err != nil {
		return 0, 0, err
	}
	if err := c.serve(pl); err != nil {
		return 0, 0, err
	}
	have.bridges[pl.bridge] = nil
	if err := h.forward(c, have, bridge); err != nil {
		return 0, 0, err
	}
	if err := c.besides(pl.bridge); err != nil {
		return 0, 0, err
	}
	if err := h.take(ctx, a, pl, first, have, bridge, netns, ifname, r.MACHint); err != nil {
		return 0, 0, err
	}
	// Rules of a sandbox that had the slot, has gone with its link, and was never detached.
	if ch, err := c.ListChain(c.inet, a.name()+chainNo); err == nil && ch != nil {
		if err := c.expel([]string{a.name()}); err != nil {
			return 0, 0, fmt.Errorf("removing what an earlier sandbox has left: %w", err)
		}
	}
	l, err := h.route.LinkByName(a.name())
	if err != nil {
		return 0, 0, fmt.Errorf("looking for the link that was made: %w", err)
	}
	return l.Attrs().Index, bridge, nil
}

// first is where the search for a free slot begins: at a hint, or anywhere, so that an
// address is seldom given again while the kernel still knows its earlier flows. A member
// of a stack has a place of its own, so that mostly it is found where it was before.
func (pl *pool) first(r *network.AttachRequest, self *member) uint32 {
	for _, hint := range r.IPHints {
		if n, ok := pl.index(hint); hint.Is4() && ok {
			return n
		}
	}
	if self != nil {
		return 2 + uint32(binary.BigEndian.Uint64(self[:])%uint64(pl.last()-1))
	}
	return 2 + mrand.N(pl.last()-1)
}

// take makes the link in the first free slot.
func (h *host) take(ctx context.Context, a *attachment, pl *pool, first uint32, have links, bridge int, netns *os.File, ifname, macHint string) error {
	count := pl.last() - 1
	for i := range count {
		s := pl.slot(2 + (first-2+i)%count)
		if _, taken := have.ports[s.name()]; taken {
			continue
		}
		a.slot, a.mac = s, macOf(s.v4)
		if hint, err := net.ParseMAC(macHint); err == nil && len(hint) == 6 && hint[0]&1 == 0 {
			a.mac = hint
		}
		err := h.makePort(ctx, s, bridge, netns, ifname, a.mark, a.mac)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EEXIST):
			// The name inside may be the one that is taken.
			if _, lerr := h.route.LinkByName(s.name()); lerr != nil {
				return errs.Existsf("there is an interface %s inside the sandbox already", ifname)
			}
			continue
		default:
			return fmt.Errorf("making the sandbox's link: %w", err)
		}
	}
	return errs.Because(errs.Exhaust(pl.exhausted(count), time.Second), "POOL_EXHAUSTED", map[string]string{"subnet": pl.v4.String()})
}

func (pl *pool) exhausted(n uint32) error {
	return fmt.Errorf("all %d addresses of %s are taken by sandboxes: wait for one to end, or give this one another subnet", n, pl.v4)
}
