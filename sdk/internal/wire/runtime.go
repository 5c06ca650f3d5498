package wire

import (
	"github.com/nucleus-runtime/nucleus/sdk/contract"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// Capabilities as they travel.
func Capabilities(c runtime.Capabilities) *pluginv1.CapabilitiesResponse {
	return &pluginv1.CapabilitiesResponse{Capabilities: &pluginv1.RuntimeCapabilities{
		Tty: c.TTY, UserNamespaces: c.UserNamespaces, Networks: c.Networks, Mounts: c.Mounts,
		Signals: all(c.Signals, func(n int) int32 { return int32(n) }),
	}}
}

// FromCapabilities is the inverse of Capabilities.
func FromCapabilities(in *pluginv1.CapabilitiesResponse) runtime.Capabilities {
	c := in.GetCapabilities()
	return runtime.Capabilities{
		TTY: c.GetTty(), UserNamespaces: c.GetUserNamespaces(), Networks: c.GetNetworks(), Mounts: c.GetMounts(),
		Signals: all(c.GetSignals(), func(n int32) int { return int(n) }),
	}
}

// RuntimePrepare as it travels, without the files.
func RuntimePrepare(r *runtime.PrepareRequest) *pluginv1.RuntimePrepareRequest {
	out := &pluginv1.RuntimePrepareRequest{
		Call: Call(r.Call), SpecJson: r.Spec, Bundle: r.Bundle, Cgroup: r.Cgroup, Descriptors: fileNames(r.Files),
		Stdio: &pluginv1.Stdio{Stdin: r.Stdio.Stdin, Stdout: r.Stdio.Stdout, Stderr: r.Stdio.Stderr, Terminal: r.Stdio.Terminal},
	}
	if len(r.Namespaces) > 0 {
		out.Namespaces = map[string]*pluginv1.Namespace{}
		for kind, n := range r.Namespaces {
			out.Namespaces[kind] = namespace(n)
		}
	}
	return out
}

// FromRuntimePrepare is the inverse of RuntimePrepare.
func FromRuntimePrepare(in *pluginv1.RuntimePrepareRequest) *runtime.PrepareRequest {
	s := in.GetStdio()
	out := &runtime.PrepareRequest{
		Call: FromCall(in.GetCall()), Spec: in.GetSpecJson(), Bundle: in.GetBundle(), Cgroup: in.GetCgroup(),
		Stdio: runtime.Stdio{Stdin: s.GetStdin(), Stdout: s.GetStdout(), Stderr: s.GetStderr(), Terminal: s.GetTerminal()},
	}
	if len(in.GetNamespaces()) > 0 {
		out.Namespaces = map[string]contract.Namespace{}
		for kind, n := range in.GetNamespaces() {
			out.Namespaces[kind] = fromNamespace(n)
		}
	}
	return out
}

// Start as it travels.
func Start(r *runtime.StartRequest) *pluginv1.StartRequest {
	return &pluginv1.StartRequest{Call: Call(r.Call), Handle: Handle(r.Handle)}
}

// FromStart is the inverse of Start.
func FromStart(in *pluginv1.StartRequest) *runtime.StartRequest {
	return &runtime.StartRequest{Call: FromCall(in.GetCall()), Handle: FromHandle(in.GetHandle())}
}

func process(p runtime.Process) *pluginv1.Process {
	return &pluginv1.Process{Pid: uint32(max(p.PID, 0)), StartTime: p.StartTime}
}

func fromProcess(in *pluginv1.Process) runtime.Process {
	return runtime.Process{PID: int(in.GetPid()), StartTime: in.GetStartTime()}
}

// Started as it travels.
func Started(s runtime.Started) *pluginv1.StartResponse {
	return &pluginv1.StartResponse{Process: process(s.Process), StartedAt: timestamp(s.At)}
}

// FromStarted is the inverse of Started.
func FromStarted(in *pluginv1.StartResponse) runtime.Started {
	return runtime.Started{Process: fromProcess(in.GetProcess()), At: fromTimestamp(in.GetStartedAt())}
}

// Exit as it travels.
func Exit(e runtime.Exit) *pluginv1.Exit {
	return &pluginv1.Exit{Code: int32(e.Code), Signal: int32(e.Signal), OomKilled: e.OOMKilled, At: timestamp(e.At)}
}

// FromExit is the inverse of Exit.
func FromExit(in *pluginv1.Exit) runtime.Exit {
	return runtime.Exit{Code: int(in.GetCode()), Signal: int(in.GetSignal()), OOMKilled: in.GetOomKilled(), At: fromTimestamp(in.GetAt())}
}

// Wait as it travels.
func Wait(r *runtime.WaitRequest) *pluginv1.WaitRequest {
	return &pluginv1.WaitRequest{SandboxId: r.SandboxID, InstanceId: r.InstanceID, Handle: Handle(r.Handle)}
}

// FromWait is the inverse of Wait.
func FromWait(in *pluginv1.WaitRequest) *runtime.WaitRequest {
	return &runtime.WaitRequest{SandboxID: in.GetSandboxId(), InstanceID: in.GetInstanceId(), Handle: FromHandle(in.GetHandle())}
}

var events = both[runtime.EventKind, pluginv1.WaitResponse_Kind]{
	0:                    pluginv1.WaitResponse_KIND_UNSPECIFIED,
	runtime.EventStarted: pluginv1.WaitResponse_KIND_STARTED,
	runtime.EventOOM:     pluginv1.WaitResponse_KIND_OOM,
}

// RuntimeEvent as it travels.
func RuntimeEvent(e runtime.Event) *pluginv1.WaitResponse {
	return &pluginv1.WaitResponse{Kind: events[e.Kind], At: timestamp(e.At)}
}

// FromRuntimeEvent is the inverse of RuntimeEvent.
func FromRuntimeEvent(in *pluginv1.WaitResponse) runtime.Event {
	return runtime.Event{Kind: events.from(in.GetKind()), At: fromTimestamp(in.GetAt())}
}

// Signal as it travels.
func Signal(r *runtime.SignalRequest) *pluginv1.SignalRequest {
	return &pluginv1.SignalRequest{Call: Call(r.Call), Handle: Handle(r.Handle), Signal: int32(r.Signal), All: r.All}
}

// FromSignal is the inverse of Signal.
func FromSignal(in *pluginv1.SignalRequest) *runtime.SignalRequest {
	return &runtime.SignalRequest{Call: FromCall(in.GetCall()), Handle: FromHandle(in.GetHandle()), Signal: int(in.GetSignal()), All: in.GetAll()}
}

// Exec as it travels.
func Exec(r *runtime.ExecRequest) *pluginv1.ExecSetup {
	return &pluginv1.ExecSetup{Call: Call(r.Call), Handle: Handle(r.Handle), ProcessJson: r.Process}
}

// FromExec is the inverse of Exec.
func FromExec(in *pluginv1.ExecSetup) *runtime.ExecRequest {
	return &runtime.ExecRequest{Call: FromCall(in.GetCall()), Handle: FromHandle(in.GetHandle()), Process: in.GetProcessJson()}
}

// Size as it travels.
func Size(s runtime.Size) *pluginv1.Size { return &pluginv1.Size{Columns: s.Columns, Rows: s.Rows} }

// FromSize is the inverse of Size.
func FromSize(in *pluginv1.Size) runtime.Size {
	return runtime.Size{Columns: in.GetColumns(), Rows: in.GetRows()}
}

// Stats as it travels.
func Stats(r *runtime.StatsRequest) *pluginv1.StatsRequest {
	return &pluginv1.StatsRequest{SandboxId: r.SandboxID, InstanceId: r.InstanceID, Handle: Handle(r.Handle), Interval: duration(r.Interval)}
}

// FromStats is the inverse of Stats.
func FromStats(in *pluginv1.StatsRequest) *runtime.StatsRequest {
	return &runtime.StatsRequest{
		SandboxID: in.GetSandboxId(), InstanceID: in.GetInstanceId(), Handle: FromHandle(in.GetHandle()), Interval: in.GetInterval().AsDuration(),
	}
}

// Sample as it travels.
func Sample(s runtime.Sample) *pluginv1.StatsResponse {
	return &pluginv1.StatsResponse{
		At: timestamp(s.At), CpuUser: duration(s.CPUUser), CpuSystem: duration(s.CPUSystem), MemoryBytes: s.Memory, MemoryPeakBytes: s.MemoryPeak,
		Pids: s.PIDs, IoReadBytes: s.IORead, IoWriteBytes: s.IOWrite, OomKills: s.OOMKills,
	}
}

// FromSample is the inverse of Sample.
func FromSample(in *pluginv1.StatsResponse) runtime.Sample {
	return runtime.Sample{
		At: fromTimestamp(in.GetAt()), CPUUser: in.GetCpuUser().AsDuration(), CPUSystem: in.GetCpuSystem().AsDuration(),
		Memory: in.GetMemoryBytes(), MemoryPeak: in.GetMemoryPeakBytes(), PIDs: in.GetPids(), IORead: in.GetIoReadBytes(),
		IOWrite: in.GetIoWriteBytes(), OOMKills: in.GetOomKills(),
	}
}

// Stop as it travels.
func Stop(r *runtime.StopRequest) *pluginv1.StopRequest {
	return &pluginv1.StopRequest{Call: Call(r.Call), Handle: Handle(r.Handle), Signal: int32(r.Signal), Grace: duration(r.Grace)}
}

// FromStop is the inverse of Stop.
func FromStop(in *pluginv1.StopRequest) *runtime.StopRequest {
	return &runtime.StopRequest{
		Call: FromCall(in.GetCall()), Handle: FromHandle(in.GetHandle()), Signal: int(in.GetSignal()), Grace: in.GetGrace().AsDuration(),
	}
}

// Delete as it travels.
func Delete(r *runtime.DeleteRequest) *pluginv1.DeleteRequest {
	return &pluginv1.DeleteRequest{Call: Call(r.Call), Handle: Handle(r.Handle), Force: r.Force}
}

// FromDelete is the inverse of Delete.
func FromDelete(in *pluginv1.DeleteRequest) *runtime.DeleteRequest {
	return &runtime.DeleteRequest{Call: FromCall(in.GetCall()), Handle: FromHandle(in.GetHandle()), Force: in.GetForce()}
}

var conditions = both[runtime.State, pluginv1.SandboxState]{
	runtime.Lost:     pluginv1.SandboxState_SANDBOX_STATE_LOST,
	runtime.Prepared: pluginv1.SandboxState_SANDBOX_STATE_PREPARED,
	runtime.Running:  pluginv1.SandboxState_SANDBOX_STATE_RUNNING,
	runtime.Exited:   pluginv1.SandboxState_SANDBOX_STATE_EXITED,
}

// Recover as it travels.
func Recover(r *runtime.RecoverRequest) *pluginv1.RecoverRequest {
	return &pluginv1.RecoverRequest{SandboxId: r.SandboxID, InstanceId: r.InstanceID, Handle: Handle(r.Handle)}
}

// FromRecover is the inverse of Recover.
func FromRecover(in *pluginv1.RecoverRequest) *runtime.RecoverRequest {
	return &runtime.RecoverRequest{SandboxID: in.GetSandboxId(), InstanceID: in.GetInstanceId(), Handle: FromHandle(in.GetHandle())}
}

// Condition as it travels.
func Condition(c runtime.Condition) *pluginv1.RecoverResponse {
	return &pluginv1.RecoverResponse{State: conditions[c.State], Process: process(c.Process), Exit: Exit(c.Exit)}
}

// FromCondition is the inverse of Condition.
func FromCondition(in *pluginv1.RecoverResponse) runtime.Condition {
	return runtime.Condition{State: conditions.from(in.GetState()), Process: fromProcess(in.GetProcess()), Exit: FromExit(in.GetExit())}
}

// Sandboxes as they travel.
func Sandboxes(in []runtime.Sandbox) *pluginv1.ListResponse {
	return &pluginv1.ListResponse{Sandboxes: all(in, func(s runtime.Sandbox) *pluginv1.SandboxEntry {
		return &pluginv1.SandboxEntry{SandboxId: s.ID, Handle: Handle(s.Handle), State: conditions[s.State]}
	})}
}

// FromSandboxes is the inverse of Sandboxes.
func FromSandboxes(in *pluginv1.ListResponse) []runtime.Sandbox {
	return all(in.GetSandboxes(), func(s *pluginv1.SandboxEntry) runtime.Sandbox {
		return runtime.Sandbox{ID: s.GetSandboxId(), Handle: FromHandle(s.GetHandle()), State: conditions.from(s.GetState())}
	})
}
