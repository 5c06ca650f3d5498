package supervisor

import (
	"context"
	"time"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
)

// Stats are a sandbox's accounts.
type Stats struct {
	ID      string                  `json:"id"`
	Name    string                  `json:"name"`
	Time    time.Time               `json:"time"`
	Status  lifecycle.Status        `json:"status"`
	Cgroup  *cgroups.Stats          `json:"cgroup"`  // null without a control group
	Network *lifecycle.NetworkStats `json:"network"` // null with the host's network
}

func (v *Supervisor) stats(ctx context.Context) (*Stats, error) {
	s := v.sandbox
	cg, err := s.Stats()
	if err != nil {
		return nil, err
	}
	n, err := s.NetworkStats(ctx)
	if err != nil {
		return nil, err
	}
	return &Stats{ID: s.ID(), Name: s.Name(), Time: time.Now(), Status: s.Status(), Cgroup: cg, Network: n}, nil
}
