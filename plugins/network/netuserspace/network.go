package netuserspace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/hostport"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/ledger"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/resolver"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/kernel"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/netstack"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/egress"
	"github.com/nucleus-runtime/nucleus/sdk/network/member"
)

// handleVersion is that of handles. They hold nothing: all that there is lives and
// ends with the process.
const handleVersion = 1

// HandleVersions are those that the plugin understands.
var HandleVersions = []uint32{handleVersion}

// Network serves one sandbox at a time; with its process, what it does ends.
type Network struct {
	giveUp func() error // before the first sandbox

	mu       sync.Mutex
	settings Settings
	attached map[string]*attachment // by sandbox
}

var (
	_ network.Network  = (*Network)(nil)
	_ network.Preparer = (*Network)(nil)
	_ network.Checker  = (*Network)(nil)
	_ network.Watcher  = (*Network)(nil)

	_ network.MemberDialer = (*Network)(nil)
)

// New makes one.
func New() *Network {
	return &Network{giveUp: func() error { return nil }, attached: make(map[string]*attachment)}
}

// JoinsStacks says that rules with jobs are kept.
func (n *Network) JoinsStacks() {}

// DialsMembers says that the core is asked for the connections.
func (n *Network) DialsMembers() {}

// path is how flows come here.
type path interface {
	Start()
	Close()
	// Gone tells whether the sandbox's interface has been removed.
	Gone() bool
}

// Settings are the operator's.
type Settings struct {
	Path string `hcl:"path,optional" default:"auto" enum:"auto,netstack" desc:"How flows leave a sandbox: auto has its kernel bring them where it can, netstack is a network stack in user space."`
}

// Configure takes the operator's settings.
func (n *Network) Configure(_ context.Context, _ config.Instance, s Settings) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.settings = s
	return nil
}

// attachment is a connected sandbox.
type attachment struct {
	policy   *egress.Policy
	ledger   *ledger.Ledger
	resolver *resolver.Resolver
	members  *member.Dialer // nil without rules with jobs
	path     path
	stop     context.CancelFunc
	wg       sync.WaitGroup
}

// Prepare says what init is to do.
func (n *Network) Prepare(_ context.Context, r *network.PrepareRequest) (*network.PrepareResponse, error) {
	if _, err := egress.New(r.Egress); err != nil {
		return nil, errs.ConfigErrorf(nil, "the policy: %v", err)
	}
	if err := hostport.Check(r.Ports); err != nil {
		return nil, err
	}
	n.mu.Lock()
	way := inside.Kernel
	switch {
	case r.OwnStack:
		way = inside.Frames
	case n.settings.Path == "netstack":
		way = inside.Netstack
	}
	n.mu.Unlock()
	openings, setups, err := inside.Ask(way, r.Ports)
	if err != nil {
		return nil, err
	}
	return &network.PrepareResponse{Handle: handle(), Openings: openings, Setups: setups}, nil
}

func handle() network.Handle { return network.Handle{Version: handleVersion} }

// Attach serves the sandbox through the sockets that init has opened.
func (n *Network) Attach(_ context.Context, r *network.AttachRequest) (*network.AttachResponse, error) {
	policy, err := egress.New(r.Egress)
	if err != nil {
		return nil, errs.ConfigErrorf(nil, "the policy: %v", err)
	}
	if err := n.giveUp(); err != nil {
		return nil, fmt.Errorf("giving up Unix sockets: %w", err)
	}
	raiseLimit()
	upstream, err := resolver.Upstream(r.DNS)
	if err != nil {
		return nil, errs.Preconditionf("%w", err)
	}
	a := &attachment{policy: policy, ledger: ledger.New()}
	a.resolver, err = resolver.New(resolver.Config{Policy: policy, Upstream: upstream, Denied: a.ledger.Deny, Job: a.job})
	if err != nil {
		return nil, err
	}
	f := byName(r)
	if err := a.join(f); err != nil {
		a.close()
		return nil, err
	}
	ports, err := a.start(f, r)
	if err != nil {
		a.close()
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.attached[r.Call.SandboxID]; old != nil {
		old.close()
	}
	n.attached[r.Call.SandboxID] = a
	return a.response(r, ports), nil
}

// files are those of a request, by name.
type files map[string][]*os.File

// byName leaves out what is there and of no use without what is missing.
func byName(r *network.AttachRequest) files {
	out := make(files)
	for _, f := range r.Files {
		out[f.Name()] = append(out[f.Name()], f)
	}
	return out
}

func (f files) one(name string) *os.File {
	if len(f[name]) == 0 {
		return nil
	}
	return f[name][0]
}

// join takes over what other jobs of the stack are reached by.
func (a *attachment) join(f files) (err error) {
	if len(a.policy.Jobs()) == 0 {
		return nil
	}
	file := f.one(network.MembersFile)
	if file == nil {
		return errs.Preconditionf("the policy has jobs, and there is nothing to reach them by")
	}
	delete(f, network.MembersFile)
	a.members, err = member.New(file)
	return err
}

// job gives the addresses that stand for a job, as long as it is there, in the families
// that it has.
func (a *attachment) job(ctx context.Context, n dnsname.Name) (at resolver.Own, is bool, err error) {
	if !slices.Contains(a.policy.Jobs(), n) {
		return at, false, nil
	}
	has, err := a.members.Look(ctx, n)
	switch {
	case errors.Is(err, member.ErrAbsent):
		return at, true, nil
	case err != nil:
		return at, true, err
	}
	own, err := a.resolver.Stands(n)
	if has&member.V4 != 0 {
		at.V4 = own.V4
	}
	if has&member.V6 != 0 {
		at.V6 = own.V6
	}
	return at, true, err
}

func (a *attachment) start(f files, r *network.AttachRequest) ([]network.PortMap, error) {
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	e := exit.New(a.policy, a.resolver, a.ledger, a.members)
	ports, dns, err := a.open(f, r, e)
	if err != nil {
		return nil, err
	}
	a.path.Start()
	a.wg.Go(func() {
		_ = a.resolver.Serve(ctx, dns.udp, dns.tcp) // ends with the attachment
	})
	return ports, nil
}

// open takes over what the resolver is asked through, and what flows come by.
func (a *attachment) open(f files, r *network.AttachRequest, e *exit.Exit) ([]network.PortMap, *sockets, error) {
	if r.OwnStack {
		return a.openFrames(f.one(inside.Tap), r, e)
	}
	dns, err := dnsSockets(f)
	if err != nil {
		return nil, nil, err
	}
	ports, err := a.openPath(f, r, e)
	if err != nil {
		dns.close()
		return nil, nil, err
	}
	return ports, dns, nil
}

// openFrames serves a workload that takes the tap device over, the resolver included.
func (a *attachment) openFrames(tap *os.File, r *network.AttachRequest, e *exit.Exit) ([]network.PortMap, *sockets, error) {
	if tap == nil || slices.Contains(r.Missing, inside.Link) {
		return nil, nil, errs.Preconditionf("the runtime has a network stack of its own, which takes a tap device over, and none can be made: nucleus doctor tells about tun")
	}
	p, err := netstack.New(tap, inside.MTU, e)
	if err != nil {
		return nil, nil, fmt.Errorf("serving the sandbox: %w", err)
	}
	a.path = p
	var dns sockets
	if dns.udp, dns.tcp, err = p.Resolver(netip.AddrPortFrom(inside.Gateway4, 53)); err != nil {
		return nil, nil, err
	}
	ports, err := p.Publish(r.Ports, inside.Gateway4, inside.Address4)
	if err != nil {
		dns.close()
		return nil, nil, err
	}
	return ports, &dns, nil
}

// openPath chooses the path, by what the sandbox's kernel could do.
func (a *attachment) openPath(f files, r *network.AttachRequest, e *exit.Exit) ([]network.PortMap, error) {
	missing := func(name string) bool { return slices.Contains(r.Missing, name) }
	tap := f.one(inside.Tap)
	if missing(inside.Link) {
		tap = nil
	}
	if f.one(inside.TCP4) == nil || missing(inside.Capture) || missing(inside.Steer) {
		return a.openNetstack(tap, f, r, e)
	}
	s := kernel.Sockets{
		TCP: [2]*os.File{f.one(inside.TCP4), f.one(inside.TCP6)},
		UDP: [2]*os.File{f.one(inside.UDP4), f.one(inside.UDP6)},
		Raw: [2]*os.File{f.one(inside.Raw4), f.one(inside.Raw6)},
		Tap: tap,
	}
	if missing(inside.Capture6) || missing(inside.Steer6) {
		s.TCP[1].Close() // nobody serves what it would accept
		s.UDP[1].Close()
		s.TCP[1], s.UDP[1] = nil, nil
	}
	if s.UDP[0] == nil || s.Raw[0] == nil {
		return nil, errs.Preconditionf("the listeners that the plugin asked for did not come")
	}
	p, err := kernel.New(s, e, inside.Address4, inside.Address6)
	if err != nil {
		return nil, fmt.Errorf("serving the sandbox: %w", err)
	}
	a.path = p
	if len(r.Ports) == 0 {
		return nil, nil
	}
	return p.Publish(r.Ports, f[inside.PublishTCP], inside.Gateway4)
}

func (a *attachment) openNetstack(tap *os.File, f files, r *network.AttachRequest, e *exit.Exit) ([]network.PortMap, error) {
	if tap == nil {
		return nil, errs.Preconditionf("flows can be brought neither by nftables with tproxy, which the sandbox's kernel has not or path = \"netstack\" forbids, nor by a tap device, which cannot be made: nucleus doctor tells about tproxy.userns and tun")
	}
	for name, fs := range f { // listeners that nobody serves would accept
		if name != inside.Tap && name != inside.DNSUDP && name != inside.DNSTCP {
			for _, file := range fs {
				file.Close()
			}
		}
	}
	p, err := netstack.New(tap, inside.MTU, e)
	if err != nil {
		return nil, fmt.Errorf("serving the sandbox: %w", err)
	}
	a.path = p
	return p.Publish(r.Ports, inside.Gateway4, inside.Address4)
}

// sockets are those that the resolver is asked through.
type sockets struct {
	udp net.PacketConn
	tcp net.Listener
}

func (s *sockets) close() {
	s.udp.Close()
	s.tcp.Close()
}

// dnsSockets takes over those of the namespace.
func dnsSockets(f files) (*sockets, error) {
	u, t := f.one(inside.DNSUDP), f.one(inside.DNSTCP)
	if u == nil || t == nil {
		return nil, errs.Preconditionf("the sockets for the resolver did not come")
	}
	udp, err := net.FilePacketConn(u)
	if err != nil {
		return nil, fmt.Errorf("the socket for the resolver: %w", err)
	}
	tcp, err := net.FileListener(t)
	if err != nil {
		udp.Close()
		return nil, fmt.Errorf("the socket for the resolver: %w", err)
	}
	u.Close()
	t.Close()
	return &sockets{udp, tcp}, nil
}

// close ends all flows, and then the watch.
func (a *attachment) close() {
	if a.stop != nil {
		a.stop()
	}
	if a.path != nil {
		a.path.Close()
	}
	if a.members != nil {
		a.members.Close()
	}
	_ = a.resolver.Close()
	a.wg.Wait()
	a.ledger.Close()
}

func (a *attachment) response(r *network.AttachRequest, ports []network.PortMap) *network.AttachResponse {
	name := inside.IfName
	resp := &network.AttachResponse{
		Handle: handle(),
		DNS:    &network.DNS{Servers: []netip.Addr{inside.Resolver}},
		Ports:  ports,
	}
	if r.OwnStack {
		resp.DNS.Servers[0] = inside.Gateway4
	}
	if r.DNS != nil {
		resp.DNS.Search, resp.DNS.Options = r.DNS.Search, r.DNS.Options
	}
	missing := func(name string) bool { return slices.Contains(r.Missing, name) }
	tap := !missing(inside.Tap) && !missing(inside.Link)
	// Told is what flows are carried for: on the kernel path by what came last of its setups.
	_, steered := a.path.(*kernel.Path)
	six := (!tap || !missing(inside.Link6)) && (!steered || !missing(inside.Steer6))
	if !tap {
		name = "lo"
	} else {
		resp.Interfaces = []network.Interface{{Name: name, MTU: inside.MTU}}
	}
	add := func(address, gateway netip.Addr) {
		ip := network.IPConfig{Address: netip.PrefixFrom(address, address.BitLen()), IfName: name}
		if tap {
			ip.Gateway = gateway
			resp.Routes = append(resp.Routes, network.Route{Dst: netip.PrefixFrom(address, 0).Masked(), Via: gateway, IfName: name})
		}
		resp.IPs = append(resp.IPs, ip)
	}
	add(inside.Address4, inside.Gateway4)
	if six {
		add(inside.Address6, inside.Gateway6)
	}
	return resp
}

func (n *Network) get(sandbox string) *attachment {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.attached[sandbox]
}

// Detach ends all flows of the sandbox.
func (n *Network) Detach(_ context.Context, r *network.DetachRequest) ([]string, error) {
	n.mu.Lock()
	a := n.attached[r.Call.SandboxID]
	delete(n.attached, r.Call.SandboxID)
	n.mu.Unlock()
	if a == nil {
		return nil, errs.NotFoundf("the sandbox is not connected")
	}
	a.close()
	return []string{"the flows of " + r.Call.SandboxID}, nil
}

// Status tells what went where.
func (n *Network) Status(_ context.Context, r *network.StatusRequest) (*network.Status, error) {
	a := n.get(r.SandboxID)
	if a == nil {
		return nil, errs.NotFoundf("the sandbox is not connected")
	}
	st := &network.Status{OK: true, Flows: a.ledger.Flows(), Denied: a.ledger.Denied()}
	if a.path.Gone() {
		st.OK, st.Drift = false, []string{"the sandbox's interface is gone"}
	}
	return st, nil
}

// Watch tells what the policy refuses.
func (n *Network) Watch(ctx context.Context, r *network.WatchRequest, tell func(network.Denial) error) error {
	a := n.get(r.SandboxID)
	if a == nil {
		return errs.NotFoundf("the sandbox is not connected")
	}
	return a.ledger.Watch(ctx, tell)
}

// Close ends all flows.
func (n *Network) Close(context.Context) error {
	n.mu.Lock()
	all := n.attached
	n.attached = make(map[string]*attachment)
	n.mu.Unlock()
	for _, a := range all {
		a.close()
	}
	return nil
}
