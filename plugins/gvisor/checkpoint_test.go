package gvisor

import (
	"slices"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

func TestWhatIsPausedIsSavedAndLeftSo(t *testing.T) {
	bin := stub(t, "runsc version release-20260905.0")
	c := Config{Runsc: bin, Platform: "systrap", NetworkStack: "auto"}
	got, err := prepare(t, c, runtime.PrepareRequest{Network: runtime.NetworkNone, Checkpoint: true})
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) int { return slices.Index(got.Run.Args, name) }
	flags := got.Signal.Args[:slices.Index(got.Signal.Args, "kill")]
	for _, x := range []struct {
		got  runtime.Command
		want []string
	}{
		{got.Checkpoint.Pause, slices.Concat(flags, []string{"pause", "{id}"})},
		{got.Checkpoint.Save, slices.Concat(flags, []string{"checkpoint", "--leave-running", "--image-path={image}", "{id}"})},
		{got.Checkpoint.Resume, slices.Concat(flags, []string{"resume", "{id}"})},
		// As run, but for what is run.
		{got.Checkpoint.Restore, slices.Concat(got.Run.Args[:at("run")], []string{"restore", "--bundle=/bundle", "--image-path={image}", "--pid-file={pid-file}", "{id}"})},
	} {
		if !slices.Equal(x.got.Args, x.want) || len(x.got.Env) != 0 {
			t.Errorf("%q with %q, want %q", x.got.Args, x.got.Env, x.want)
		}
	}
	if got, err := prepare(t, c, runtime.PrepareRequest{Network: runtime.NetworkNone}); err != nil || got.Checkpoint.Given() {
		t.Errorf("nobody has asked for it: %+v, %v", got.Checkpoint, err)
	}
}

func TestCheckpointsThatCannotBeHad(t *testing.T) {
	for _, x := range []struct{ version, stack, at, says string }{
		{"release-20260904.0", "auto", "runsc", "one of 20260905 or later is needed for checkpoints"},
		{"release-20260905.0", "own", "network_stack", "leave network_stack out"},
	} {
		_, err := prepare(t, Config{Runsc: stub(t, "runsc version "+x.version), Platform: "systrap", NetworkStack: x.stack}, runtime.PrepareRequest{Network: runtime.NetworkOwn, Checkpoint: true})
		e := errs.Of(err)
		if e == nil || e.Code != errs.Config || len(e.Diagnostics) != 1 || e.Diagnostics[0].Path.String() != x.at || !strings.Contains(e.Error(), x.says) {
			t.Errorf("%+v: %v", x, err)
		}
	}
}
