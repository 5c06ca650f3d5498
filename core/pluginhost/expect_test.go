package pluginhost

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// What is expected is there for the first who asks; the second gets another.
func TestExpect(t *testing.T) {
	r := newRig(t, nil)
	r.Expect("good", manifest.Secrets)
	r.Expect("good", manifest.Secrets)
	first, err := r.Host.Start(t.Context(), "good", manifest.Secrets)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := r.Host.Start(t.Context(), "good", manifest.Secrets)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if first.Pid() == second.Pid() {
		t.Error("both have the same")
	}
	r.Forget()
	if !alive(first.Pid()) || !alive(second.Pid()) {
		t.Error("what was asked for is forgotten, too")
	}
}

// A start that fails fails for who asks; nobody is told of one that nobody asks for.
func TestExpectWhatIsNotThere(t *testing.T) {
	r := newRig(t, nil)
	r.Expect("nowhere", manifest.Secrets)
	if _, err := r.Host.Start(t.Context(), "nowhere", manifest.Secrets); err == nil || !strings.Contains(err.Error(), "no nucleus-plugin-nowhere") {
		t.Errorf("error %v", err)
	}
	r.Expect("nowhere", manifest.Secrets)
	r.Forget()
}

// Nothing is left of what nobody asked for, or waited for: the rig looks.
func TestForget(t *testing.T) {
	r := newRig(t, nil)
	r.script(t, "silent", "exec sleep 1000\n")
	for _, name := range []string{"good", "hooks-good", "silent"} {
		r.Expect(name, manifest.Hooks)
	}
	r.Forget()
	r.Expect("good", manifest.Secrets)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if p, err := r.Host.Start(ctx, "good", manifest.Secrets); err == nil {
		p.Close() // it was there already
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
