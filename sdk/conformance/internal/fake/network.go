package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nucleus-runtime/nucleus/sdk/conformance/internal/lab"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// networkServer connects sandboxes by a pair of links each, with a policy of routing
// rules: one for each block that is allowed, and a last one that refuses. All is named
// by the sandbox, so that a process that knows nothing else finds it.
type networkServer struct {
	pluginv1.UnimplementedNetworkServer
	fake     *fake
	receiver *descriptors.Receiver

	mu       sync.Mutex
	prepared map[string]bool // by this process, and not attached
	detached map[string]bool // by this process
}

// ofNetworks tells whether it is a plugin of networks this time.
func ofNetworks() bool { return os.Getenv("FAKE_SERVES") == "network" }

func newNetworkServer(f *fake) (*networkServer, error) {
	s := &networkServer{fake: f, prepared: map[string]bool{}, detached: map[string]bool{}}
	fd, err := strconv.Atoi(os.Getenv("NUCLEUS_DESCRIPTORS_FD"))
	if err != nil {
		return s, nil //nolint:nilerr // some hosts give none
	}
	file := os.NewFile(uintptr(fd), "descriptors")
	defer file.Close()
	s.receiver, err = descriptors.Receive(file)
	return s, err
}

// stateRoot is whose sandboxes the calls are about.
var stateRoot atomic.Value

// ofRoot begins the names of a state root's links.
func ofRoot() string {
	root, _ := stateRoot.Load().(string)
	return fmt.Sprintf("f%x", sha256.Sum256([]byte(root)))[:5]
}

func linkOf(sandbox string) string {
	return ofRoot() + fmt.Sprintf("%x", sha256.Sum256([]byte(sandbox)))[:8]
}

// place are the addresses of a sandbox, and of the host's end of its link.
type place struct{ in, host []netip.Prefix }

func placeOf(sandbox string) place {
	sum := sha256.Sum256([]byte(sandbox))
	at := func(last byte) []netip.Prefix {
		v6 := [16]byte{0: 0xfd, 2: sum[0], 3: sum[1], 15: last}
		return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, sum[0], sum[1], last}), 32), netip.PrefixFrom(netip.AddrFrom16(v6), 128)}
	}
	return place{in: at(2), host: at(1)}
}

const (
	allowed = 1000 // priorities of routing rules
	refused = 2000
	extra   = 3000
)

func (s *networkServer) Prepare(ctx context.Context, r *pluginv1.NetworkPrepareRequest) (*pluginv1.NetworkPrepareResponse, error) {
	do := func() (any, error) { return s.prepare(r) }
	if broken("prepares again") || broken("prepares more each time") {
		got, err := do()
		if err != nil {
			return nil, err
		}
		return got.(*pluginv1.NetworkPrepareResponse), nil
	}
	got, err := s.fake.once(ctx, "Prepare", r.GetCall(), do)
	if err != nil {
		return nil, err
	}
	return got.(*pluginv1.NetworkPrepareResponse), nil
}

func (s *networkServer) prepare(r *pluginv1.NetworkPrepareRequest) (*pluginv1.NetworkPrepareResponse, error) {
	link := linkOf(r.GetCall().GetSandboxId())
	out := &network.PrepareResponse{
		Handle: network.Handle{Version: 1, Opaque: []byte(link)},
		Openings: []network.Opening{
			{Name: "ns", Kind: network.NetNS},
			{Name: "route", Kind: network.RouteSocket},
			{Name: "raw", Kind: network.RawSocket, Address: netip.MustParseAddrPort("0.0.0.0:0"), Optional: true},
		},
	}
	s.mu.Lock()
	s.prepared[link] = true
	s.mu.Unlock()
	if hasJobs(r.GetEgress()) {
		out.Openings = append(out.Openings, jobOpenings()...)
	}
	n := uint32(s.fake.runs.Add(1))
	var err error
	switch {
	case broken("prepares again"):
		out.Handle.Info = map[string]string{"n": fmt.Sprint(n)}
	case broken("prepares more each time"):
		err = lab.RoutingRule{Priority: extra + n, Family: unix.AF_INET, Link: link}.Add()
	case broken("sets up after nothing"):
		out.Setups = []network.Setup{{Name: "late", After: "early", Optional: true}}
	case broken("keeps what it prepared"):
		err = lab.RoutingRule{Priority: extra, Family: unix.AF_INET, Link: link}.Add()
	}
	return wire.NetworkPrepared(out), err
}

func (s *networkServer) Attach(ctx context.Context, r *pluginv1.AttachRequest) (*pluginv1.AttachResponse, error) {
	do := func() (any, error) { return s.attach(ctx, r) }
	if broken("attaches again") {
		got, err := do()
		if err != nil {
			return nil, err
		}
		return got.(*pluginv1.AttachResponse), nil
	}
	got, err := s.fake.once(ctx, "Attach", r.GetCall(), do)
	if err == nil && broken("attaches more each time") {
		err = lab.RoutingRule{Priority: extra + uint32(s.fake.runs.Add(1)), Family: unix.AF_INET, Link: linkOf(r.GetCall().GetSandboxId())}.Add()
	}
	if err != nil {
		return nil, err
	}
	return got.(*pluginv1.AttachResponse), nil
}

func (s *networkServer) attach(ctx context.Context, r *pluginv1.AttachRequest) (any, error) {
	req, err := wire.FromAttach(r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := knows(r.GetPrepared()); err != nil {
		return nil, err
	}
	if s.receiver == nil {
		return nil, status.Error(codes.FailedPrecondition, "there is no side channel")
	}
	files, err := s.receiver.Take(ctx, r.GetCall().GetRequestId(), r.GetDescriptors())
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	dns, err := serveJobs(files)
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	if err := enforceable(req.Egress); err != nil {
		return nil, err
	}
	if v, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err != nil || v[0] != '1' {
		if broken("fails without a reason") {
			return nil, errors.New("oops")
		}
		return nil, status.Error(codes.FailedPrecondition, "the host does not forward packets: sysctl net.ipv4.ip_forward=1")
	}
	got, err := s.connect(req, files)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	got.DNS = dns
	return wire.Attached(got), nil
}

// enforceable refuses what is no block of addresses.
func enforceable(e network.Egress) error {
	for _, r := range e.Allow {
		switch {
		case len(r.Names) > 0 && broken("fails at names"):
			return errors.New("index out of range")
		case len(r.Names) > 0 && broken("takes names for everything"):
		case len(r.Names) > 0 || len(r.Protocols) > 0:
			return status.Error(codes.FailedPrecondition, "only blocks of addresses can be allowed")
		}
	}
	if e.Default != network.Deny {
		return status.Error(codes.FailedPrecondition, "only what rules say can be allowed")
	}
	return nil
}

// breath is time in which it can be interrupted.
const breath = 3 * time.Millisecond

func (s *networkServer) connect(r *network.AttachRequest, files []*os.File) (*network.AttachResponse, error) {
	link, at := linkOf(r.Call.SandboxID), placeOf(r.Call.SandboxID)
	s.mu.Lock()
	delete(s.prepared, link)
	s.mu.Unlock()
	var ns *os.File
	route := lab.Here
	for _, f := range files {
		switch f.Name() {
		case "ns":
			ns = f
		case "route":
			route = lab.Route(f.Fd())
		}
	}
	late := broken("policy comes late")
	var steps []func() error
	if broken("makes something for a moment") {
		// Most of the call, however long the kernel takes to remove it again.
		steps = append(steps, func() error { return lab.AddBridge("moment") }, func() error { time.Sleep(300 * time.Millisecond); return nil })
	}
	if !late {
		steps = append(steps, func() error { return policy(link, r.Egress) })
	}
	steps = append(
		steps, func() error { return lab.AddVeth(link, r.IfName, ns, 0) },
		func() error { return hostEnd(link, at) }, func() error { return inside(route, r.IfName, at) },
	)
	if late {
		steps = append(steps, func() error { time.Sleep(500 * time.Millisecond); return policy(link, r.Egress) })
	}
	switch {
	case broken("makes something for a moment"):
		steps = append(steps, func() error { return lab.DelLink("moment") })
	case broken("leaves a sysctl"):
		steps = append(steps, func() error { return lab.SetSysctl("ipv4/conf/all/accept_local", "1") })
	case broken("leaves a table"):
		steps = append(steps, func() error { return lab.AddTable("fake") })
	}
	for _, do := range steps {
		time.Sleep(breath)
		if err := do(); err != nil {
			return nil, err
		}
	}
	out := &network.AttachResponse{
		Handle:     network.Handle{Version: 1, Opaque: []byte(link)},
		Interfaces: []network.Interface{{Name: r.IfName, HostName: link}},
	}
	for i, p := range at.in {
		out.IPs = append(out.IPs, network.IPConfig{Address: p, Gateway: at.host[i].Addr(), IfName: r.IfName})
	}
	if broken("attaches again") {
		out.Interfaces[0].MTU = uint32(s.fake.runs.Add(1))
	}
	return out, s.observe(r, link)
}

// taps are held as long as the process lives.
var taps []int

func policy(link string, e network.Egress) error {
	var out []lab.RoutingRule
	for _, r := range e.Allow {
		if len(r.Names) > 0 {
			continue
		}
		for _, c := range r.CIDRs {
			for _, p := range r.Ports {
				rule := lab.RoutingRule{Priority: allowed, Family: familyOf(c.Addr()), Link: link, To: c, Protocol: unix.IPPROTO_TCP, Port: p.First, Table: unix.RT_TABLE_MAIN}
				if broken("forgets ports") {
					rule.Protocol, rule.Port = 0, 0
				}
				out = append(out, rule)
			}
		}
	}
	for _, f := range []byte{unix.AF_INET, unix.AF_INET6} {
		last := lab.RoutingRule{Priority: refused, Family: f, Link: link}
		if broken("falls open") {
			last.Table = swallowing(link)
		}
		switch {
		case broken("forgets IPv6") && f == unix.AF_INET6:
			continue
		case broken("one network for all") && f == unix.AF_INET:
			out = append(out, lab.RoutingRule{Priority: allowed, Family: f, Link: link, To: netip.MustParsePrefix("10.0.0.0/8"), Table: unix.RT_TABLE_MAIN})
		case broken("takes names for everything") && len(e.Allow) > 0 && len(e.Allow[0].Names) > 0:
			continue
		}
		out = append(out, last)
	}
	if broken("falls open") {
		if err := swallow(link); err != nil {
			return err
		}
	}
	for _, r := range out {
		if err := r.Add(); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}

// swallow makes a link that takes what is refused, and is there as long as this
// process.
func swallow(link string) error {
	name := "s" + link[1:]
	fd, err := lab.Tap(name, 0)
	if err != nil {
		return err
	}
	taps = append(taps, fd)
	return errors.Join(
		lab.Up(name), lab.Here.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.Addr{}, name, swallowing(link)),
		lab.Here.AddRoute(netip.MustParsePrefix("::/0"), netip.Addr{}, name, swallowing(link)),
	)
}

// swallowing is the table in which that link is the way to everywhere.
func swallowing(link string) byte { return 100 + sha256.Sum256([]byte(link))[0]%100 }

func familyOf(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func hostEnd(link string, at place) error {
	err := lab.Up(link)
	for i, p := range at.host {
		err = errors.Join(err, lab.Here.AddAddr(link, p), lab.Here.AddRoute(at.in[i], netip.Addr{}, link, 0))
	}
	return err
}

func inside(route lab.Route, link string, at place) error {
	err := route.Up(link)
	for i, p := range at.in {
		err = errors.Join(err, route.AddAddr(link, p))
		everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if p.Addr().Is6() {
			everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			if broken("carries no IPv6") {
				continue
			}
		}
		err = errors.Join(err, route.AddRoute(everything, at.host[i].Addr(), link, 0))
	}
	return err
}

// watched is one sandbox's link, with what is kept of it until somebody watches.
type watched struct {
	capture *lab.Capture
	policy  network.Egress
	seen    chan network.Denial
	denied  atomic.Uint64
}

var (
	watchMu  sync.Mutex
	watching = map[string]*watched{}
)

// observe looks at what comes out of a sandbox.
func (s *networkServer) observe(r *network.AttachRequest, link string) error {
	c, err := lab.Listen(nil, link)
	if err != nil {
		return err
	}
	w := &watched{capture: c, policy: r.Egress, seen: make(chan network.Denial, 256)}
	c.Tell(w.take)
	watchMu.Lock()
	defer watchMu.Unlock()
	watching[link] = w
	return nil
}

func (w *watched) take(p lab.Packet) {
	if len(lab.Denied([]lab.Packet{p}, len(w.policy.Allow) == 0)) == 0 {
		return
	}
	w.denied.Add(1)
	name := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[p.Protocol]
	if name == "" {
		name = "icmp"
	}
	select {
	case w.seen <- network.Denial{At: time.Now(), Protocol: name, Dst: p.Dst, Rule: -1, Reason: network.ReasonDefault, Count: 1}:
	default: // more than anybody reads
	}
}

func knows(h *pluginv1.Handle) error {
	if v := h.GetVersion(); v > 1 && !broken("any handle") {
		return status.Errorf(codes.FailedPrecondition, "a handle of version %d", v)
	}
	return nil
}

func (s *networkServer) Detach(_ context.Context, r *pluginv1.DetachRequest) (*pluginv1.DetachResponse, error) {
	if err := errors.Join(knows(r.GetHandle()), knows(r.GetPrepared())); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	link := linkOf(r.GetCall().GetSandboxId())
	watchMu.Lock()
	if w := watching[link]; w != nil {
		w.capture.Close()
		delete(watching, link)
	}
	watchMu.Unlock()
	s.mu.Lock()
	prepared := s.prepared[link]
	delete(s.prepared, link)
	again := s.detached[link]
	s.detached[link] = true
	s.mu.Unlock()
	index, err := lab.Here.Index(link)
	switch {
	case err != nil:
		return nil, status.Error(codes.Internal, err.Error())
	case prepared && broken("keeps what it prepared"), index == 0 && r.GetHandle() != nil && broken("stops where the link is gone"):
		return &pluginv1.DetachResponse{}, nil
	case again && broken("detaches once"):
		return nil, status.Error(codes.FailedPrecondition, "there is no link "+link)
	case index != 0 && broken("needs its handle") && r.GetHandle() == nil && r.GetPrepared() == nil:
		return nil, status.Error(codes.FailedPrecondition, "no handle")
	}
	if !broken("leaves its link") {
		err = errors.Join(err, lab.DelLink(link))
	}
	if !broken("leaves its rules") {
		err = errors.Join(err, lab.DelRoutingRules(link))
	}
	if broken("falls open") {
		for _, fd := range taps {
			_ = unix.Close(fd)
		}
		taps = nil
	}
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &pluginv1.DetachResponse{Removed: []string{link}}, nil
}

func (s *networkServer) Status(_ context.Context, r *pluginv1.NetworkStatusRequest) (*pluginv1.NetworkStatusResponse, error) {
	if err := knows(r.GetHandle()); err != nil {
		return nil, err
	}
	link := linkOf(r.GetSandboxId())
	index, err := lab.Here.Index(link)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	out := &network.Status{OK: true}
	if index == 0 && !broken("always fine") {
		out = &network.Status{Drift: []string{"the link " + link + " is gone"}}
	}
	watchMu.Lock()
	defer watchMu.Unlock()
	if w := watching[link]; w != nil {
		out.Denied = w.denied.Load()
	}
	return wire.NetworkState(out), nil
}

func (s *networkServer) GC(_ context.Context, r *pluginv1.GCRequest) (*pluginv1.GCResponse, error) {
	out := &network.GCResponse{}
	if broken("collects nothing") {
		return wire.Collected(out), nil
	}
	valid := map[string]bool{}
	for _, a := range r.GetValid() {
		valid[linkOf(a.GetSandboxId())] = !broken("collects all")
	}
	links, err := lab.Links()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	rules, err := lab.RoutingRules()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	for link := range rules {
		links = append(links, link)
	}
	for _, link := range links {
		mine := ofRoot()
		if broken("collects others'") {
			mine = "f"
		}
		if !strings.HasPrefix(link, mine) || valid[link] {
			continue
		}
		if !r.GetDryRun() || broken("collects in a dry run") {
			if err := errors.Join(lab.DelLink(link), lab.DelRoutingRules(link)); err != nil {
				out.Failed = append(out.Failed, err.Error())
			}
		}
		out.Removed = append(out.Removed, link)
	}
	return wire.Collected(out), nil
}

func (s *networkServer) Watch(r *pluginv1.NetworkWatchRequest, to pluginv1.Network_WatchServer) error {
	watchMu.Lock()
	w := watching[linkOf(r.GetSandboxId())]
	watchMu.Unlock()
	if w == nil {
		return status.Error(codes.NotFound, "no such attachment")
	}
	for {
		select {
		case d := <-w.seen:
			if broken("tells nobody") {
				continue
			}
			if err := to.Send(wire.NetworkDenial(d)); err != nil {
				return err
			}
		case <-to.Context().Done():
			return nil
		}
	}
}
