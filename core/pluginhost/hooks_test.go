package pluginhost

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/nucleus-runtime/nucleus/core/boundary"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// handler is a hooks plugin made with the SDK. It tells in variables what it knows.
type handler struct {
	at      hooks.Mask
	onPhase func(call hooks.Call, e hooks.Event) (hooks.Answer, error)

	conf handlerConfig
}

type handlerConfig struct {
	Word  string `hcl:"word,optional" desc:"Told back."`
	Token string `hcl:"token,optional" desc:"Nobody's business." sensitive:"true"`
	Must  string `hcl:"must,optional" desc:"Told to be wrong."`
}

func (h *handler) Configure(_ context.Context, _ config.Instance, c handlerConfig) error {
	if c.Must != "" {
		return errs.ConfigErrorf(errs.Path("must"), "not %q", c.Must)
	}
	h.conf = c
	return nil
}

func (h *handler) Describe(context.Context, string) (hooks.Subscription, error) {
	return hooks.Subscription{At: h.at, Order: -7}, nil
}

func (h *handler) OnPhase(_ context.Context, call hooks.Call, e hooks.Event) (hooks.Answer, error) {
	if h.onPhase != nil {
		return h.onPhase(call, e)
	}
	return hooks.Answer{Mutation: hooks.Mutation{AddEnv: map[string]string{
		"WHO": call.SandboxID + " " + call.InstanceID, "CALL": fmt.Sprintf("%s %d", call.RequestID, call.Attempt),
		"CONFIG": h.conf.Word + " " + h.conf.Token, "EVENT": fmt.Sprintf("%s %s %d", e.SandboxName, e.Plan, e.Pid),
	}}}, nil
}

func (h *handler) serve(f *fake) {
	plugin.Serve(plugin.Plugin{Name: f.name, Version: "1", Hooks: h, HooksConfig: config.To(h)})
}

// hooksBehaviours are those of hooks plugins.
func hooksBehaviours() map[string]func(*fake) {
	all := hooks.At(hooks.PreFS, hooks.PostExec, hooks.Cleanup)
	m := map[string]func(*fake){}
	m["hooks-good"] = (&handler{at: all}).serve
	m["hooks-odd-mask"] = (&handler{at: all | 1<<63 | 1}).serve
	m["hooks-crash-once"] = (&handler{at: all, onPhase: func(call hooks.Call, _ hooks.Event) (hooks.Answer, error) {
		if call.Attempt == 1 {
			crash()
		}
		return hooks.Answer{Veto: fmt.Sprintf("attempt %d", call.Attempt)}, nil
	}}).serve
	m["hooks-crash"] = (&handler{at: all, onPhase: func(hooks.Call, hooks.Event) (hooks.Answer, error) {
		crash()
		return hooks.Answer{}, nil
	}}).serve
	m["hooks-nasty"] = (&handler{at: all, onPhase: func(hooks.Call, hooks.Event) (hooks.Answer, error) {
		return hooks.Answer{Veto: nasty}, nil
	}}).serve
	m["hooks-hang"] = (&handler{at: all, onPhase: func(hooks.Call, hooks.Event) (hooks.Answer, error) {
		hang()
		return hooks.Answer{}, nil
	}}).serve
	return m
}

func want(t *testing.T, name, body string) boundary.Want {
	t.Helper()
	f, diags := hclsyntax.ParseConfig([]byte(body), "job.hcl", hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return boundary.Want{Plugin: name, Config: f.Body}
}

// A hooks plugin is a process of its own, which knows what it is called for, and
// ends when the sandbox needs it no more.
func TestHooksPluginIsCalled(t *testing.T) {
	for _, name := range []string{"hooks-good", "hooks-odd-mask"} {
		r := newRig(t, nil)
		h := &Hooks{Host: r.Host}
		c, err := h.Open(t.Context(), "id", want(t, name, "word = \"hello\"\ntoken = \"canary\"\n"))
		if err != nil {
			t.Fatal(err)
		}
		s := c.Subscription()
		for b := hooks.PreNamespaces; b <= hooks.Cleanup; b++ {
			if wanted := b == hooks.PreFS || b == hooks.PostExec || b == hooks.Cleanup; s.At.Has(b) != wanted {
				t.Errorf("%s: %v", b, !wanted)
			}
		}
		if s.Order != -7 {
			t.Errorf("order %d", s.Order)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		a, err := c.Call(ctx, hooks.Event{Boundary: hooks.PreFS, SandboxName: "name", Pid: 7, Plan: []byte("{}")})
		cancel()
		got := a.Mutation.AddEnv
		if err != nil || got["WHO"] != "id id/"+name || got["CALL"] != "id-PRE_FS 1" || got["CONFIG"] != "hello canary" || got["EVENT"] != "name {} 7" {
			t.Errorf("%v, %v", got, err)
		}
		if bytes.Contains(c.Record().Config, []byte("canary")) || !bytes.Contains(c.Record().Config, []byte("hello")) {
			t.Errorf("the record has %q", c.Record().Config)
		}
		c.Close()
		c.Close()

		// Another process makes the last call with what was written down.
		again, err := h.Reopen(t.Context(), "id", c.Record())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		a, err = again.Call(ctx, hooks.Event{Boundary: hooks.Cleanup})
		cancel()
		if got := a.Mutation.AddEnv; err != nil || got["WHO"] != "id id/"+name || got["CONFIG"] != "hello " {
			t.Errorf("%v, %v", got, err)
		}
		again.Close()

		// One whose mode wanted a pin wants it then, too.
		r.o.Finder.PinnedOnly = true
		if _, err := h.Open(t.Context(), "id", want(t, name, "")); err == nil || !strings.Contains(err.Error(), "the mode wants its digest") {
			t.Errorf("without a pin: %v", err)
		}
		r.o.Finder.PinnedOnly = false
		if _, err := h.Reopen(t.Context(), "id", boundary.Record{Plugin: name, Pinned: true}); err == nil || !strings.Contains(err.Error(), "the mode wants its digest") {
			t.Errorf("without a pin: %v", err)
		}
	}
}

// One that has crashed is started once more for the same request, and no oftener.
func TestHooksPluginIsStartedOnceMore(t *testing.T) {
	r := newRig(t, nil)
	for name, x := range map[string]struct{ veto, err string }{
		"hooks-crash-once": {veto: "attempt 2"},
		"hooks-crash":      {err: "calling it: it ended (exit status 9)"},
	} {
		c, err := (&Hooks{Host: r.Host}).Open(t.Context(), "id", want(t, name, ""))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		a, err := c.Call(ctx, hooks.Event{Boundary: hooks.PreFS})
		cancel()
		if a.Veto != x.veto || (err == nil) != (x.err == "") || err != nil && !strings.Contains(err.Error(), x.err) {
			t.Errorf("%s: %q, %v", name, a.Veto, err)
		}
		c.Close()
	}
}

func TestHooksPluginRefused(t *testing.T) {
	for name, x := range map[string]struct{ plugin, block, body, want, hint string }{
		"no hooks plugin":  {"good", "", "", "it is no hooks plugin", "name one that is: nucleus plugin info good tells what this one serves"},
		"another phase":    {"hooks-good", `allow = ["hooks:FS", "hooks:CLEANUP"]`, "", "it wants to be called at POST_EXEC, which its operator does not allow", `allow = ["hooks:FS", "hooks:CLEANUP", "hooks:EXEC"] in its block of the host configuration`},
		"another service":  {"hooks-good", `allow = ["secrets"]`, "", "it serves hooks, which its operator does not allow", `allow = ["hooks"] in its block of the host configuration`},
		"not its schema":   {"hooks-good", "", "wrod = \"x\"\n", `job.hcl:1: Unsupported argument: An argument named "wrod" is not expected here. Did you mean "word"?`, ""},
		"not its liking":   {"hooks-good", "", "\n\nmust = \"x\"\n", `job.hcl:3: not "x"`, ""},
		"there is no such": {"hooks-nowhere", "", "", "no nucleus-plugin-hooks-nowhere in ", ""},
	} {
		r := newRig(t, map[string]string{x.plugin: x.block})
		_, err := (&Hooks{Host: r.Host}).Open(t.Context(), "id", want(t, x.plugin, x.body))
		if err == nil || !strings.Contains(err.Error(), x.want) || x.hint != "" && hintOf(err) != x.hint {
			t.Errorf("%s: %v (hint %q)", name, err, hintOf(err))
		}
	}
	// All of its phases are allowed one by one.
	r := newRig(t, map[string]string{"hooks-good": `allow = ["hooks:FS", "hooks:EXEC", "hooks:CLEANUP"]`})
	c, err := (&Hooks{Host: r.Host}).Open(t.Context(), "id", want(t, "hooks-good", ""))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// What a plugin says is fit to show, and one that hangs is left when its time is over.
func TestHooksPluginsThatMisbehave(t *testing.T) {
	r := newRig(t, nil)
	h := &Hooks{Host: r.Host}
	c, err := h.Open(t.Context(), "id", want(t, "hooks-nasty", ""))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	a, err := c.Call(ctx, hooks.Event{Boundary: hooks.PreFS})
	cancel()
	c.Close()
	if err != nil || a.Veto == "" {
		t.Errorf("%q, %v", a.Veto, err)
	}
	fit(t, a.Veto, maxText)

	if c, err = h.Open(t.Context(), "id", want(t, "hooks-hang", "")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	inTime(t, 5*time.Second, func() {
		if _, err := c.Call(ctx, hooks.Event{Boundary: hooks.PreFS}); err == nil || !strings.Contains(err.Error(), "no answer in time") {
			t.Errorf("error %v", err)
		}
	})
	cancel()
	c.Close()
}

// A plugin that dies between two calls is started for the next.
func TestHooksPluginThatWasKilled(t *testing.T) {
	r := newRig(t, nil)
	c, err := (&Hooks{Host: r.Host}).Open(t.Context(), "id", want(t, "hooks-good", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	caller := c.(*hooksCaller)
	p, err := os.FindProcess(caller.p.Pid())
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
	<-caller.p.Gone()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.Call(ctx, hooks.Event{Boundary: hooks.PostExec}); err != nil {
		t.Error(err)
	}
}
