package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/internal/procid"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	sdknet "github.com/nucleus-runtime/nucleus/sdk/network"
)

// Collect has the plugins that can remove what no sandbox of the state root has. A plugin
// is asked if this user has used it as it is now, which is remembered: whatever else may
// be in the directories is not started for it.
func (n *Networks) Collect(ctx context.Context, keep map[string]network.Record) ([]network.Collected, error) {
	names, err := n.Host.o.Finder.List()
	failed := []error{err}
	var out []network.Collected
	for _, name := range names {
		d, err := n.Host.Remembered(ctx, name)
		if err != nil || d == nil || !d.collects() {
			continue // one that cannot be used has its error where somebody wants it
		}
		removed, err := n.Host.collect(ctx, name, keep)
		if wrong := (*ConfigError)(nil); errors.As(err, &wrong) {
			continue // and so has what its operator says to it
		}
		if len(removed) > 0 {
			out = append(out, network.Collected{Backend: name, Removed: removed})
		}
		failed = append(failed, err)
	}
	return out, errors.Join(failed...)
}

// collects tells whether the plugin can be asked. One that needs capabilities has made
// nothing for a user who has none to give.
func (d *Description) collects() bool {
	return d.Serves(manifest.Network) && slices.Contains(d.Info.Features, sdknet.FeatureGC) && (os.Geteuid() == 0 || len(d.Info.Needs.Capabilities) == 0)
}

func (h *Host) collect(ctx context.Context, name string, keep map[string]network.Record) ([]string, error) {
	p, d, err := h.open(ctx, name, manifest.Network, func(*Plugin, *Schema) error { return nil })
	if err != nil {
		return nil, backendError(name, err)
	}
	defer p.Retire()
	r := &sdknet.GCRequest{Call: sdknet.Call{RequestID: "gc", Attempt: 1}}
	r.Call.BootID, _ = procid.Boot() // "" is a boot that nobody knows
	for id, x := range keep {
		if x.Backend == name {
			r.Valid = append(r.Valid, sdknet.Attachment{SandboxID: id, InstanceID: instance(id, name), IfName: x.IfName, Handle: x.Handle})
		}
	}
	ctx, cancel := context.WithTimeout(ctx, detachTime)
	defer cancel()
	got, err := p.Client().Network(d.Info.Features).Collector.GC(ctx, r)
	if err != nil {
		return nil, backendError(name, p.failed("removing what no sandbox has", err))
	}
	if len(got.Failed) > 0 {
		err = backendError(name, &Error{name, fmt.Errorf("it could not remove all that no sandbox has: %s", strings.Join(got.Failed, "; ")), ""})
	}
	return got.Removed, err
}
