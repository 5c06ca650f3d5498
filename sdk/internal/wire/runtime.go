package wire

import (
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

var sandboxNetworks = both[runtime.Network, pluginv1.SandboxNetwork]{
	0:                   pluginv1.SandboxNetwork_SANDBOX_NETWORK_UNSPECIFIED,
	runtime.NetworkNone: pluginv1.SandboxNetwork_SANDBOX_NETWORK_NONE,
	runtime.NetworkHost: pluginv1.SandboxNetwork_SANDBOX_NETWORK_HOST,
	runtime.NetworkOwn:  pluginv1.SandboxNetwork_SANDBOX_NETWORK_OWN,
}

// RuntimePrepare as it travels.
func RuntimePrepare(r *runtime.PrepareRequest) *pluginv1.RuntimePrepareRequest {
	return &pluginv1.RuntimePrepareRequest{Call: Call(r.Call), SpecJson: r.Spec, Network: sandboxNetworks[r.Network], Rootless: r.Rootless, Checkpoint: r.Checkpoint}
}

// FromRuntimePrepare is the inverse of RuntimePrepare.
func FromRuntimePrepare(in *pluginv1.RuntimePrepareRequest) *runtime.PrepareRequest {
	return &runtime.PrepareRequest{
		Call: FromCall(in.GetCall()), Spec: in.GetSpecJson(), Network: sandboxNetworks.from(in.GetNetwork()), Rootless: in.GetRootless(),
		Checkpoint: in.GetCheckpoint(),
	}
}

func command(c runtime.Command) *pluginv1.Command {
	return &pluginv1.Command{Args: c.Args, Env: c.Env}
}

func fromCommand(in *pluginv1.Command) runtime.Command {
	return runtime.Command{Args: in.GetArgs(), Env: in.GetEnv()}
}

// RuntimePrepared as it travels.
func RuntimePrepared(p *runtime.Prepared) *pluginv1.RuntimePrepareResponse {
	return &pluginv1.RuntimePrepareResponse{
		Program:  &pluginv1.Program{Path: p.Program.Path, Sha256: p.Program.SHA256, Libraries: p.Program.Libraries, Devices: p.Program.Devices},
		SpecJson: p.Spec, Run: command(p.Run), Exec: command(p.Exec), Signal: command(p.Signal), SignalGroup: command(p.SignalGroup), OwnNetwork: p.OwnNetwork, Facts: p.Facts,
		Checkpoint: &pluginv1.Checkpoint{
			Pause: command(p.Checkpoint.Pause), Save: command(p.Checkpoint.Save), Resume: command(p.Checkpoint.Resume), Restore: command(p.Checkpoint.Restore),
		},
	}
}

// FromRuntimePrepared is the inverse of RuntimePrepared.
func FromRuntimePrepared(in *pluginv1.RuntimePrepareResponse) *runtime.Prepared {
	p, c := in.GetProgram(), in.GetCheckpoint()
	return &runtime.Prepared{
		Program: runtime.Program{Path: p.GetPath(), SHA256: p.GetSha256(), Libraries: p.GetLibraries(), Devices: p.GetDevices()},
		Spec:    in.GetSpecJson(), Run: fromCommand(in.GetRun()), Exec: fromCommand(in.GetExec()), Signal: fromCommand(in.GetSignal()),
		SignalGroup: fromCommand(in.GetSignalGroup()), OwnNetwork: in.GetOwnNetwork(), Facts: in.GetFacts(),
		Checkpoint: runtime.Checkpoint{
			Pause: fromCommand(c.GetPause()), Save: fromCommand(c.GetSave()), Resume: fromCommand(c.GetResume()), Restore: fromCommand(c.GetRestore()),
		},
	}
}
