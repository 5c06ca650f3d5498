package wire

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// Refs as they travel.
func Refs(in []secrets.Ref) []*pluginv1.SecretRef {
	out := make([]*pluginv1.SecretRef, 0, len(in))
	for _, r := range in {
		out = append(out, &pluginv1.SecretRef{Name: r.Name, InstanceId: r.InstanceID, Optional: r.Optional})
	}
	return out
}

// FromRefs is the inverse of Refs.
func FromRefs(in []*pluginv1.SecretRef) []secrets.Ref {
	out := make([]secrets.Ref, 0, len(in))
	for _, r := range in {
		out = append(out, secrets.Ref{Name: r.GetName(), InstanceID: r.GetInstanceId(), Optional: r.GetOptional()})
	}
	return out
}

// Secret as it travels.
func Secret(s secrets.Secret) *pluginv1.Secret {
	out := &pluginv1.Secret{
		Name: valid(s.Name), Value: s.Value, Version: valid(s.Version), Absent: s.Absent,
		LeaseId: valid(s.Lease.ID), Renewable: s.Lease.Renewable, LeaseDuration: duration(s.Lease.Duration),
	}
	if !s.NotAfter.IsZero() {
		out.NotAfter = timestamppb.New(s.NotAfter)
	}
	return out
}

// FromSecret is the inverse of Secret.
func FromSecret(in *pluginv1.Secret) secrets.Secret {
	out := secrets.Secret{
		Name: in.GetName(), Value: in.GetValue(), Version: in.GetVersion(), Absent: in.GetAbsent(),
		Lease: secrets.Lease{ID: in.GetLeaseId(), Renewable: in.GetRenewable(), Duration: in.GetLeaseDuration().AsDuration()},
	}
	if in.GetNotAfter() != nil {
		out.NotAfter = in.GetNotAfter().AsTime()
	}
	return out
}

// Event as it travels.
func Event(c hooks.Call, e hooks.Event) *pluginv1.OnPhaseRequest {
	return &pluginv1.OnPhaseRequest{
		Call: Call(c), Boundary: pluginv1.Boundary(e.Boundary), SandboxName: valid(e.SandboxName), Pid: uint32(max(e.Pid, 0)),
		PlanJson: e.Plan, Cause: valid(e.Cause), ExitCode: int32(e.ExitCode),
	}
}

// FromEvent is the inverse of Event.
func FromEvent(in *pluginv1.OnPhaseRequest) hooks.Event {
	return hooks.Event{
		Boundary: hooks.Boundary(in.GetBoundary()), SandboxName: in.GetSandboxName(), Pid: int(in.GetPid()),
		Plan: in.GetPlanJson(), Cause: in.GetCause(), ExitCode: int(in.GetExitCode()),
	}
}

// Answer as it travels.
func Answer(a hooks.Answer) *pluginv1.OnPhaseResponse {
	m := a.Mutation
	return &pluginv1.OnPhaseResponse{Veto: valid(a.Veto), Mutation: &pluginv1.Mutation{
		AddEnv: validMap(m.AddEnv), DropCapabilities: validAll(m.DropCapabilities), LowerRlimits: m.LowerRlimits, Annotations: validMap(m.Annotations),
	}}
}

// FromAnswer is the inverse of Answer.
func FromAnswer(in *pluginv1.OnPhaseResponse) hooks.Answer {
	m := in.GetMutation()
	return hooks.Answer{Veto: in.GetVeto(), Mutation: hooks.Mutation{
		AddEnv: m.GetAddEnv(), DropCapabilities: m.GetDropCapabilities(), LowerRlimits: m.GetLowerRlimits(), Annotations: m.GetAnnotations(),
	}}
}
