package lifecycle

import (
	"context"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
)

// makeGroup makes the control group that init is born in; its limits come
// when init has been told what to do, and before it gets anything to do it with.
func (s *Sandbox) makeGroup(context.Context) error {
	if !s.plan.Cgroup.Wanted {
		return nil
	}
	g, err := cgroups.New(s.cfg.Cgroups, cgroups.Spec{Name: cgroups.Prefix + s.dir.ID, Resources: s.plan.Resources, Privileged: s.cfg.Privileged})
	if err != nil {
		return phase("cgroups", err)
	}
	s.group = g
	if err := s.dir.Journal.Intent(stepCgroup, s.group.Record()); err != nil {
		return phase("cgroups", err)
	}
	if err := s.group.Create(); err != nil {
		return phase("cgroups", err)
	}
	failpoint.Hit("cgroup unlimited")
	return nil
}

// limitGroup sets the limits, once.
func (s *Sandbox) limitGroup() error {
	if s.group == nil || s.limited {
		return nil
	}
	s.limited = true
	return phase("cgroups", s.group.Limit())
}
