package netbridge

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/hostport"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// HandleVersion is that of the handles that this version writes.
const HandleVersion = 1

// Names of the openings that Prepare asks for.
const (
	openNetNS  = "netns"
	openRoute  = "route"
	openDNSUDP = "dns-udp"
	openDNSTCP = "dns-tcp"
)

// resolverAt is the sandbox's only resolver, on its own loopback.
var resolverAt = netip.AddrFrom4([4]byte{127, 0, 0, 53})

// Plugin is the network.
type Plugin struct {
	locks     locker
	rules     rules
	mu        sync.Mutex
	pool      pool
	root      string          // marks what is of this state root
	instances map[string]pool // by instance id
	live      map[string]*attachment
}

var (
	_ network.Network   = (*Plugin)(nil)
	_ network.Preparer  = (*Plugin)(nil)
	_ network.Checker   = (*Plugin)(nil)
	_ network.Watcher   = (*Plugin)(nil)
	_ network.Joiner    = (*Plugin)(nil)
	_ network.Collector = (*Plugin)(nil)
)

// New makes one that is configured with the defaults.
func New() *Plugin {
	return &Plugin{
		pool: pool{
			bridge: "nucleus0", v4: netip.MustParsePrefix("10.203.0.0/16"), v6: netip.MustParsePrefix("fd6e:7563:6c65:1::/64"),
		},
		root: rootMark(""), instances: make(map[string]pool), live: make(map[string]*attachment),
	}
}

func (p *Plugin) poolOf(instance string) pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pl, ok := p.instances[instance]; ok {
		return pl
	}
	return p.pool
}

// handle is what is in a network.Handle. It is a hint: Detach finds a sandbox by the
// link's alias, and believes nothing that the kernel does not say.
type handle struct {
	Link string `json:"link"`
}

func handleOf(s slot) (network.Handle, error) {
	b, err := json.Marshal(handle{Link: s.name()})
	if err != nil {
		return network.Handle{}, err
	}
	return network.Handle{
		Version: HandleVersion, Opaque: b,
		Info: map[string]string{"bridge": s.pool.bridge, "link": s.name(), "ipv4": s.v4.String()},
	}, nil
}

// Prepare asks for what is opened inside. Bridge and tables are made by Attach: a
// sandbox that never comes leaves nothing. A network stack that is not the kernel's finds
// no resolver in the namespace.
func (p *Plugin) Prepare(_ context.Context, r *network.PrepareRequest) (*network.PrepareResponse, error) {
	out := &network.PrepareResponse{Openings: []network.Opening{
		{Name: openNetNS, Kind: network.NetNS},
		{Name: openRoute, Kind: network.RouteSocket},
	}}
	if !r.OwnStack {
		out.Openings = append(out.Openings,
			network.Opening{Name: openDNSUDP, Kind: network.ListenUDP, Address: netip.AddrPortFrom(resolverAt, 53)},
			network.Opening{Name: openDNSTCP, Kind: network.ListenTCP, Address: netip.AddrPortFrom(resolverAt, 53)})
	}
	return out, hostport.Check(r.Ports)
}

// alias marks a link as a sandbox's. Sandboxes of another state root may have the same
// ids, and are none of ours.
func (p *Plugin) alias(sandbox, instance string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.aliasLocked(sandbox, instance)
}

func (p *Plugin) aliasLocked(sandbox, instance string) string {
	text := sandbox + " " + instance
	if len(text) > maxAlias {
		text = fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
	}
	return "nucleus sandbox " + text + p.root
}

// maxAlias leaves room for the rest in the 255 bytes that the kernel keeps.
const maxAlias = 200

// rootMark ends the aliases of a state root.
func rootMark(stateRoot string) string {
	sum := sha256.Sum256([]byte(stateRoot))
	return fmt.Sprintf(" @%x", sum[:4])
}

func (p *Plugin) ofRoot(alias string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.HasSuffix(alias, p.root)
}

// serving gives the attachment that this process serves.
func (p *Plugin) serving(sandbox, instance string) *attachment {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.live[p.aliasLocked(sandbox, instance)]
}

// JoinsStacks says that rules with jobs are kept.
func (p *Plugin) JoinsStacks() {}

// Watch tells of what the policy has refused.
func (p *Plugin) Watch(ctx context.Context, r *network.WatchRequest, tell func(network.Denial) error) error {
	a := p.serving(r.SandboxID, r.InstanceID)
	if a == nil {
		return errs.NotFoundf("this process has not attached %s", r.SandboxID)
	}
	return a.ledger.Watch(ctx, tell)
}

// Close ends what runs for sandboxes. What the kernel has stays: whoever ends a plugin
// has ended its sandbox, and calls Detach, here or in another process.
func (p *Plugin) Close(context.Context) error {
	p.mu.Lock()
	live := p.live
	p.live = make(map[string]*attachment)
	p.mu.Unlock()
	for _, a := range live {
		a.stop()
	}
	return nil
}
