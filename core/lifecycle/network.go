package lifecycle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
	"github.com/nucleus-runtime/nucleus/core/member"
	"github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
	"github.com/nucleus-runtime/nucleus/sdk/contract"
	sdk "github.com/nucleus-runtime/nucleus/sdk/network"
)

// connection is a sandbox's to its network's backend, which is made ready beside all
// that needs no network yet.
type connection struct {
	cancel context.CancelFunc
	ready  chan struct{} // closed when all below is set; nil for a sandbox without
	want   network.Want
	link   network.Link
	prep   *sdk.PrepareResponse
	err    error

	broker *member.Broker // nil for a backend that has other ways, or needs none
	ips    []netip.Addr

	attached bool
	unwatch  context.CancelFunc
	watched  chan struct{}
	denials  denials

	asking sync.Mutex // of what counts asks
	over   atomic.Bool
}

// openNetwork begins to make the backend ready.
func (s *Sandbox) openNetwork(ctx context.Context) error {
	if !s.plan.Network.Plugin {
		return nil
	}
	if s.cfg.Networks == nil {
		return s.networkFailed(errors.New("there is nobody to reach network plugins"))
	}
	want, err := network.WantOf(s.plan, s.cfg.Member)
	if err != nil {
		return s.networkFailed(err)
	}
	c := &s.net
	c.want = want
	ctx, c.cancel = context.WithCancel(ctx)
	c.ready = make(chan struct{})
	go func() {
		defer close(c.ready)
		if c.link, c.err = s.cfg.Networks.Open(ctx, s.dir.ID, want); c.err != nil {
			return
		}
		if c.err = s.dir.Announce(ctx, stepNetwork, c.link.Record()); c.err != nil {
			return
		}
		if s.foreign.asked != nil {
			select {
			case <-s.foreign.asked:
			case <-ctx.Done():
				c.err = ctx.Err()
				return
			}
		}
		failpoint.Hit("network preparing")
		c.prep, c.err = c.link.Prepare(ctx, s.foreign.ownStack())
	}()
	return nil
}

// networkFailed gives a failure of the network its place in the job. What a plugin
// says drives no terminal.
func (s *Sandbox) networkFailed(err error) error {
	e := &PhaseError{Phase: "network", Origin: "network", Err: &sourceError{err}}
	var ne *network.Error
	if errors.As(err, &ne) {
		e.Hint = audit.Clean(ne.Hint)
		e.Origin = cmp.Or(ne.Origin, e.Origin)
	}
	if i := sdk.PortOf(err); i >= 0 && i < len(s.plan.Network.Publish) {
		e.Origin = fmt.Sprintf("network.publish[%d]", i)
	}
	return e
}

// connect has init open what the backend wants, and the backend attach the sandbox.
// Init waits for it with the new root almost done.
func (s *Sandbox) connect(ctx context.Context) error {
	c := &s.net
	if c.ready == nil {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, networkTime)
	defer cancel()
	if err := s.backendReady(within); err != nil {
		return err
	}
	if c.err != nil {
		return s.networkFailed(c.err)
	}
	place, err := s.openInside()
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range place.Files {
			_ = f.Close()
		}
	}()
	members, err := s.openBroker()
	if err != nil {
		return s.networkFailed(err)
	}
	if members != nil {
		place.Files = append(place.Files, members)
	}
	record := c.link.Record()
	record.Prepared = c.prep.Handle
	if err := s.dir.Journal.Intent(stepNetwork, record); err != nil {
		return phase("network", err)
	}
	failpoint.Hit("network attaching")
	got, err := c.link.Attach(within, place)
	if err != nil {
		return s.networkFailed(err)
	}
	record.Handle = got.Handle
	if err := s.dir.Journal.Intent(stepNetwork, record); err != nil {
		return phase("network", err)
	}
	c.remember(got)
	s.watch()
	s.log.Emit(audit.NetworkUp, nil, networkDetail(s.plan.Network.Backend, got, place.Missing))
	told := &initproto.Connected{Files: s.networkFiles(got)}
	if err := s.conn.Send(initproto.Encode(initproto.KindConnected, told)); err != nil {
		return s.broken("network", err)
	}
	s.lap("network attached")
	if s.holds() {
		return nil // hooks come first
	}
	return s.letGo()
}

// backendReady waits for the backend, whose start takes longest of all. An init that
// has something to say meanwhile has failed.
func (s *Sandbox) backendReady(ctx context.Context) error {
	select {
	case <-s.net.ready:
		return nil
	default:
	}
	r, w, err := os.Pipe()
	if err != nil {
		return phase("network", err)
	}
	defer r.Close()
	go func() {
		<-s.net.ready // at the latest when the start is undone
		_ = w.Close()
	}()
	limit, _ := ctx.Deadline()
	fds := []unix.PollFd{{Fd: int32(s.conn.FD()), Events: unix.POLLIN}, {Fd: int32(r.Fd()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(max(0, time.Until(limit)).Milliseconds())+1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return phase("network", os.NewSyscallError("poll", err))
		case n == 0:
			return s.networkFailed(fmt.Errorf("the backend is not ready within %s", networkTime))
		case fds[1].Revents != 0:
			<-s.net.ready // it is; for what was written before
			return nil
		}
		_, passed, err := s.receive("fs", initproto.KindOpened)
		channel.CloseAll(passed)
		if err == nil {
			err = fmt.Errorf("%w: init has opened what nobody asked for", initproto.ErrMessage)
		}
		return s.fsFailed(err)
	}
}

// networkTime bounds the wait for a backend, from the start of its plugin to the
// answer of Attach.
const networkTime = 30 * time.Second

// openInside has init open what the backend wants, and finds the namespace.
func (s *Sandbox) openInside() (_ network.Place, err error) {
	var place network.Place
	want := &initproto.Open{}
	openings, unmet, err := s.met(s.net.prep.Openings)
	if err != nil {
		return place, err
	}
	for _, o := range openings {
		if o.Name == sdk.MembersFile {
			return place, s.networkFailed(fmt.Errorf("it wants something opened by the name %q, which is another descriptor's", o.Name))
		}
		x := initproto.Opening{
			Name: o.Name, Kind: uint8(o.Kind), Port: uint32(o.Address.Port()), IfName: o.IfName, Index: o.Index, Count: o.Count, Transparent: o.Transparent, Optional: o.Optional,
		}
		if a := o.Address.Addr(); a.IsValid() {
			x.IP = a.AsSlice()
		}
		want.Openings = append(want.Openings, x)
	}
	if err := s.net.prep.Check(); err != nil {
		return place, s.networkFailed(err)
	}
	for _, x := range s.net.prep.Setups {
		want.Setups = append(want.Setups, initproto.NetSetup{Name: x.Name, Protocol: uint32(x.Protocol), Messages: x.Messages, Optional: x.Optional, After: x.After})
	}
	if err := s.conn.Send(initproto.Encode(initproto.KindOpen, want)); err != nil {
		return place, s.broken("network", err)
	}
	msg, fds, err := s.receive("network", initproto.KindOpened)
	if err != nil {
		return place, s.fsFailed(err)
	}
	var opened initproto.Opened
	err = initproto.Decode(msg, &opened)
	if err == nil && (len(opened.Names) != len(fds) || len(opened.Missing) != len(opened.Reasons)) {
		err = fmt.Errorf("%w: %d names for %d descriptors", initproto.ErrMessage, len(opened.Names), len(fds))
	}
	if err != nil {
		channel.CloseAll(fds)
		return place, phase("network", err)
	}
	for i, fd := range fds {
		place.Files = append(place.Files, os.NewFile(uintptr(fd), opened.Names[i]))
	}
	place.Missing, place.OwnStack = append(unmet, opened.Missing...), s.foreign.ownStack()
	for _, name := range unmet {
		s.log.Emit(audit.NetworkMissing, nil, map[string]any{"name": name, "why": "the runtime has a network stack of its own"})
	}
	for i, name := range opened.Missing {
		s.log.Emit(audit.NetworkMissing, nil, map[string]any{"name": name, "why": audit.Clean(opened.Reasons[i])})
	}
	if place.NetNS, err = s.netNS(); err == nil {
		place.UserNS, err = s.ownerNS()
	}
	if err != nil {
		for _, f := range place.Files {
			_ = f.Close()
		}
	}
	return place, err
}

// netNS names the sandbox's network namespace, and makes sure that it is not the
// host's (W20).
func (s *Sandbox) netNS() (sdk.Namespace, error) {
	n, err := namespaceAt(fmt.Sprintf("/proc/%d/ns/net", s.init.Pid))
	if err != nil {
		return n, s.reason("network", err)
	}
	own, err := namespaceAt("/proc/self/ns/net")
	if err == nil && own.Dev == n.Dev && own.Ino == n.Ino {
		err = errors.New("the sandbox is in the host's network namespace")
	}
	return n, phase("network", err)
}

// namespaceAt names the namespace that is at a path.
func namespaceAt(path string) (sdk.Namespace, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return sdk.Namespace{Path: path, Dev: st.Dev, Ino: st.Ino}, os.NewSyscallError("stat", err)
}

// ownerNS names the user namespace that owns the network namespace; nil for the host's.
func (s *Sandbox) ownerNS() (*sdk.UserNS, error) {
	if s.plan.IDs.Kind == "none" {
		return nil, nil
	}
	n, err := namespaceAt(s.mappedNS)
	if err != nil {
		return nil, s.reason("network", err)
	}
	u := &sdk.UserNS{Namespace: n}
	for _, m := range s.plan.IDs.UIDs {
		u.UIDs = append(u.UIDs, contract.IDMap{Inside: m.ContainerID, Outside: m.HostID, Count: m.Size})
	}
	for _, m := range s.plan.IDs.GIDs {
		u.GIDs = append(u.GIDs, contract.IDMap{Inside: m.ContainerID, Outside: m.HostID, Count: m.Size})
	}
	return u, nil
}

// networkFiles are what the sandbox is to know of its network.
func (s *Sandbox) networkFiles(got *sdk.AttachResponse) []initproto.Content {
	var resolv strings.Builder
	if d := got.DNS; d != nil {
		for _, a := range d.Servers {
			fmt.Fprintf(&resolv, "nameserver %s\n", a)
		}
		if len(d.Search) > 0 {
			fmt.Fprintf(&resolv, "search %s\n", audit.Clean(strings.Join(d.Search, " ")))
		}
		if len(d.Options) > 0 {
			fmt.Fprintf(&resolv, "options %s\n", audit.Clean(strings.Join(d.Options, " ")))
		}
	}
	if resolv.Len() == 0 {
		resolv.WriteString("# this network has no resolver\n")
	}
	i := slices.IndexFunc(s.plan.Files, func(f plan.File) bool { return f.Path == "/etc/hosts" })
	hosts := s.plan.Files[i].Content
	for _, ip := range got.IPs {
		hosts += fmt.Sprintf("%s\t%s\n", ip.Address.Addr(), s.plan.Hostname)
	}
	return []initproto.Content{{Path: "/etc/resolv.conf", Data: resolv.String()}, {Path: "/etc/hosts", Data: hosts}}
}

func networkDetail(backend string, got *sdk.AttachResponse, missing []string) map[string]any {
	var ips, ports []string
	for _, ip := range got.IPs {
		ips = append(ips, ip.Address.String())
	}
	for _, p := range got.Ports {
		ports = append(ports, fmt.Sprintf("%s:%d -> %d/%s", p.HostIP, p.HostPort, p.ContainerPort, p.Protocol))
	}
	return map[string]any{"backend": backend, "addresses": ips, "published": ports, "missing": missing}
}

// watch makes events of what the policy refuses.
func (s *Sandbox) watch() {
	c := &s.net
	c.attached = true
	var ctx context.Context
	ctx, c.unwatch = context.WithCancel(context.Background())
	c.watched = make(chan struct{})
	go func() {
		defer close(c.watched)
		_ = c.link.Watch(ctx, s.denied) // its end is that of the backend, which has its own event
	}()
}

// denied tells of a flow that the policy has refused, with the line that it is
// refused by: that of the rule which came closest, or of the egress block.
func (s *Sandbox) denied(d sdk.Denial) {
	origin := "network"
	if s.plan.Where("network.egress") != "" {
		origin = "network.egress"
	}
	detail := map[string]any{"protocol": audit.Clean(d.Protocol), "reason": audit.Clean(string(d.Reason)), "count": d.Count}
	if d.Rule >= 0 && d.Rule < len(s.plan.Network.Egress.Allow) {
		origin = fmt.Sprintf("network.egress.allow[%d]", d.Rule)
		detail["rule"] = d.Rule
	}
	if d.Dst.IsValid() {
		detail["destination"] = d.Dst.String()
	}
	if d.Name != "" {
		detail["name"] = audit.Clean(d.Name)
	}
	where := s.plan.Where(origin)
	if where != "" {
		detail["where"] = where
	}
	s.net.denials.add(denialOf(d, where))
	s.log.Emit(audit.NetworkDenied, nil, detail)
}

// networkLost is closed when the backend has ended before the sandbox; nil if that
// cannot be.
func (s *Sandbox) networkLost() <-chan struct{} {
	if !s.net.attached {
		return nil
	}
	return s.net.link.Gone()
}

// lostNetwork tells of it, and gives the error that ends the sandbox, unless its job
// wants it to go on without a network. Then what the backend has made is undone at
// once, by another process of it: what a kernel forwards needs nobody.
func (s *Sandbox) lostNetwork(ctx context.Context) error {
	err := &network.Error{Backend: s.plan.Network.Backend, Err: errors.New("it has ended: the sandbox has no network any more")}
	s.log.Emit(audit.NetworkLost, err, map[string]any{"on_failure": s.plan.Network.OnFailure})
	if s.plan.Network.OnFailure != "closed" {
		return s.networkFailed(err)
	}
	s.net.close()
	if err := s.net.link.Detach(ctx); err != nil {
		return s.networkFailed(fmt.Errorf("its network cannot be closed: %w", err))
	}
	s.net.link.Close()
	s.result.NetworkError = err.Error()
	return nil
}

// endNetwork makes sure that nothing is under way any more, and tells how much there
// was.
func (s *Sandbox) endNetwork() {
	c := &s.net
	if c.ready == nil {
		return
	}
	c.close()
	if c.broker != nil {
		c.broker.Close()
	}
	if c.attached {
		ctx, cancel := context.WithTimeout(context.Background(), statusTime)
		if st, err := c.link.Status(ctx); err == nil && st != nil {
			s.log.Emit(audit.NetworkStats, nil, map[string]any{"denied": st.Denied, "connections": connections(st)})
			s.result.Network = &exec.Network{Denied: st.Denied}
			for _, f := range st.Flows {
				s.result.Network.Flows = append(s.result.Network.Flows, exec.Flow{Name: audit.Clean(f.Name), Connections: f.Connections, RxBytes: f.RxBytes, TxBytes: f.TxBytes})
			}
		}
		cancel()
	}
	c.cancel()
	<-c.ready
}

func connections(st *sdk.Status) (n uint64) {
	for _, f := range st.Flows {
		n += f.Connections
	}
	return n
}

// lastDenials waits for what was refused last: a backend that has nothing more to tell
// of a sandbox ends its Watch.
func (c *connection) lastDenials() {
	if !c.attached {
		return
	}
	patience := time.NewTimer(denialTime)
	defer patience.Stop()
	select {
	case <-c.watched:
	case <-patience.C:
	}
	c.unwatch()
	<-c.watched
}

const (
	statusTime = time.Second
	denialTime = 50 * time.Millisecond
)

// disconnect has the backend undo what it has made.
func (u *undoing) disconnect(ctx context.Context, data json.RawMessage) error {
	if u.net != nil && u.net.link != nil {
		err := u.net.link.Detach(ctx)
		u.net.lastDenials()
		return err
	}
	var r network.Record
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	if u.networks == nil {
		return ErrNoPlugins
	}
	if err := u.networks.Detach(ctx, u.sandbox, r); err != nil {
		return &sourceError{err}
	}
	return nil
}
