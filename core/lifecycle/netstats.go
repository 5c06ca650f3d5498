package lifecycle

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/internal/netdev"
	"github.com/nucleus-runtime/nucleus/internal/procid"
	sdk "github.com/nucleus-runtime/nucleus/sdk/network"
)

// NetworkStats counts what went through the sandbox's own network namespace.
type NetworkStats struct {
	// Interfaces are those but for lo, at most 32 of them.
	Interfaces []netdev.Interface `json:"interfaces"`
	// Denied counts the flows and names that the network's policy refused, and Flows
	// what it let through; nil without a backend that counts.
	Denied *uint64    `json:"denied,omitempty"`
	Flows  *exec.Flow `json:"flows,omitempty"`
}

// NetworkStats reads them; nil for a sandbox on the host's network, and for one that
// ends.
func (s *Sandbox) NetworkStats(ctx context.Context) (*NetworkStats, error) {
	if !s.plan.Namespace(specs.NetworkNamespace) {
		return nil, nil
	}
	list, err := netdev.Of(s.init.Pid)
	if start, serr := procid.Start(s.init.Pid); serr != nil || start != s.initStart {
		return nil, nil // init is gone: what was read may be that of another process
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a zombie has no namespace any more; or proc(5) hides it (hidepid)
	}
	if err != nil {
		return nil, err
	}
	st := &NetworkStats{Interfaces: list}
	if counts := s.net.counts(ctx); counts != nil {
		st.Denied, st.Flows = &counts.Denied, &exec.Flow{}
		for _, f := range counts.Flows {
			st.Flows.Connections += f.Connections
			st.Flows.RxBytes += f.RxBytes
			st.Flows.TxBytes += f.TxBytes
		}
	}
	return st, nil
}

// countsTime bounds what a plugin takes for an answer. The sandbox's end waits for it.
const countsTime = 500 * time.Millisecond

// counts asks the backend; nil if it does not count, or does not answer in time.
func (c *connection) counts(ctx context.Context) *sdk.Status {
	c.asking.Lock()
	defer c.asking.Unlock()
	if !c.attached || c.over.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, countsTime)
	defer cancel()
	st, err := c.link.Status(ctx)
	if err != nil {
		return nil
	}
	return st
}

// close keeps others from asking the backend, which is about to be told to detach.
func (c *connection) close() {
	c.asking.Lock()
	defer c.asking.Unlock()
	c.over.Store(true)
}

// maxDenials is how many different denials a record has.
const maxDenials = 32

// denials are what was refused so far: whatever else is, is counted.
type denials struct {
	mu   sync.Mutex
	list []exec.Denial
	sum  uint64
}

func (d *denials) add(x exec.Denial) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sum += x.Count
	i := slices.IndexFunc(d.list, func(y exec.Denial) bool {
		y.Count = x.Count
		return x == y
	})
	switch {
	case i >= 0:
		d.list[i].Count += x.Count
	case len(d.list) < maxDenials:
		d.list = append(d.list, x)
	}
}

// record puts them into the result.
func (d *denials) record(r *exec.Result) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.list) == 0 {
		return
	}
	if r.Network == nil {
		r.Network = &exec.Network{}
	}
	// The backend's own count has those that it did not tell of; ours has those that
	// came after it was asked.
	r.Network.Denied = max(r.Network.Denied, d.sum)
	r.Network.Denials = slices.Clone(d.list)
}

// denialOf bounds and cleans what the backend tells.
func denialOf(d sdk.Denial, where string) exec.Denial {
	x := exec.Denial{Protocol: short(d.Protocol), Name: short(d.Name), Reason: short(string(d.Reason)), Where: where, Count: max(d.Count, 1)}
	if d.Dst.IsValid() {
		x.Destination = d.Dst.String()
	}
	return x
}

// short is for words that come from a plugin, and names that come from the sandbox.
func short(s string) string {
	const most = 256 // a DNS name has at most 253
	return audit.Clean(s[:min(len(s), most)])
}
