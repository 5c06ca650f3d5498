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

// Stats reads the accounts of the present run; there are none between two.
func (v *Supervisor) Stats(ctx context.Context) (*Stats, error) {
	st := &Stats{ID: v.ID(), Name: v.Name(), Time: time.Now(), Status: StatusRestarting}
	s, err := v.living("stats")
	if err != nil {
		return st, nil // there is nothing to count
	}
	st.Cgroup, err = s.Stats()
	if err == nil {
		st.Network, err = s.NetworkStats(ctx)
	}
	if st.Status = s.Status(); st.Status == lifecycle.StatusStopped {
		st.Cgroup, st.Network, err = nil, nil, nil // it is being taken down
	}
	return st, err
}
