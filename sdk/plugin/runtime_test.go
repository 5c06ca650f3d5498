package plugin_test

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

func runtimePlugin() plugin.Plugin {
	return plugin.Plugin{Name: "fake", Version: "1.2.3", Runtime: boxes{}}
}

// boxes does what the spec says.
type boxes struct{}

var prepared = runtime.Prepared{
	Program: runtime.Program{Path: "/usr/bin/box", SHA256: strings.Repeat("ab", 32), Libraries: true, Devices: []string{"/dev/kvm"}},
	Spec:    []byte("{}"),
	Run:     runtime.Command{Args: []string{"box", "run", runtime.WordID}, Env: []string{"A=b"}},
	Exec:    runtime.Command{Args: []string{"box", "exec"}, Env: []string{"C=d"}},
	Signal:  runtime.Command{Args: []string{"box", "kill"}, Env: []string{"E=f"}}, OwnNetwork: true,
	Facts: map[string]string{"version": "1"},
}

func (boxes) Prepare(_ context.Context, r *runtime.PrepareRequest) (*runtime.Prepared, error) {
	effect("prepare")
	switch string(r.Spec) {
	case "panic":
		panic("prepare went wrong")
	case "nothing":
		return nil, nil
	case "too much":
		return nil, errs.Preconditionf("a box has no terminal")
	}
	p := prepared
	p.Facts = map[string]string{"spec": string(r.Spec), "rootless": map[bool]string{true: "yes"}[r.Rootless]}
	if r.Network == runtime.NetworkOwn {
		p.Facts["network"] = "own"
	}
	return &p, nil
}

func TestRuntimeInfo(t *testing.T) {
	h := start(t, "runtime")
	got, err := h.Info(soon(t), "0.1.0", nil)
	want := manifest.Info{Name: "fake", Version: "1.2.3", SDKVersion: "0.1.0", Services: []manifest.Version{{Service: manifest.Runtime, Version: "1.0"}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

func TestARuntimeSaysHow(t *testing.T) {
	h := start(t, "runtime")
	want := prepared
	want.Facts = map[string]string{"spec": "{}", "rootless": "yes", "network": "own"}
	for range 2 { // the same request
		got, err := h.Runtime().Prepare(soon(t), &runtime.PrepareRequest{Call: call("1"), Spec: []byte("{}"), Network: runtime.NetworkOwn, Rootless: true})
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
		}
	}
	if got := h.count(t); len(got) != 1 {
		t.Errorf("effects: %q", got)
	}
}

func TestARuntimeThatDoesNot(t *testing.T) {
	h := start(t, "runtime")
	for _, tc := range []struct {
		spec string
		code errs.Code
		text string
	}{
		{"panic", errs.Internal, "the plugin panicked in /nucleus.plugin.v1.Runtime/Prepare: prepare went wrong"},
		{"too much", errs.Precondition, "a box has no terminal"},
	} {
		_, err := h.Runtime().Prepare(soon(t), &runtime.PrepareRequest{Call: call(tc.spec), Spec: []byte(tc.spec), Network: runtime.NetworkNone})
		if errs.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v %v", tc.spec, errs.CodeOf(err), err)
		}
	}
	if _, err := h.Runtime().Prepare(soon(t), &runtime.PrepareRequest{Call: call("newer"), Spec: []byte("{}")}); errs.CodeOf(err) != errs.Precondition || !strings.Contains(err.Error(), "build it with a newer SDK") {
		t.Errorf("a network that nobody knows: %v", err)
	}
	if got, err := h.Runtime().Prepare(soon(t), &runtime.PrepareRequest{Call: call("nothing"), Spec: []byte("nothing"), Network: runtime.NetworkHost}); err != nil || !reflect.DeepEqual(*got, runtime.Prepared{}) {
		t.Errorf("nothing: %+v, %v", got, err)
	}
}
