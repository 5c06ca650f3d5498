package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/core/state"
)

// collectTime bounds what all backends take to remove what is no sandbox's: those that
// start wait for it.
const collectTime = 20 * time.Second

// collectNetworks has the backends of networks remove what no journal of the root names:
// what a sandbox has left whose directory is gone, for instance. What a journal does name
// has its undo, which knows more. It tells what they have removed, also beside an error.
func collectNetworks(ctx context.Context, root *state.Root, from network.Source, log *audit.Log) (done []network.Collected, err error) {
	ctx, cancel := context.WithTimeout(ctx, collectTime)
	defer cancel()
	err = root.Survey(ctx, stepNetwork, func(all map[string]state.Record) error {
		keep := make(map[string]network.Record, len(all))
		for id, rec := range all {
			var r network.Record
			if err := json.Unmarshal(rec.Data, &r); err != nil {
				return fmt.Errorf("sandbox %s: %w", id[:12], err)
			}
			keep[id] = r
		}
		got, err := from.Collect(ctx, keep)
		for _, c := range got {
			removed := make([]string, len(c.Removed))
			for i, what := range c.Removed {
				removed[i] = audit.Clean(what)
			}
			log.Emit(audit.NetworkCollected, nil, map[string]any{"backend": c.Backend, "removed": removed})
			done = append(done, network.Collected{Backend: c.Backend, Removed: removed})
		}
		return err
	})
	if err != nil {
		return done, fmt.Errorf("removing what networks have left: %w", &sourceError{err})
	}
	return done, nil
}
