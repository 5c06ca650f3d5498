package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

func fetch(t *testing.T, h *host, id, name string) (string, error) {
	t.Helper()
	got, err := h.secrets().Fetch(soon(t), secrets.Call{RequestID: id, SandboxID: "sb"}, []secrets.Ref{{Name: name}})
	if err != nil {
		return "", err
	}
	return string(got[0].Value), nil
}

func as(t *testing.T, err error) *errs.Error {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v (%T) is no *errs.Error", err, err)
	}
	return e
}

func TestInfo(t *testing.T) {
	h := start(t, "warm")
	got, err := h.Info(soon(t), "0.1.0", []manifest.Version{{Service: manifest.Secrets, Version: "1.0"}})
	if err != nil {
		t.Fatal(err)
	}
	want := manifest.Info{
		Name: "fake", Version: "1.2.3", SDKVersion: "0.1.0", Description: "a plugin for tests", DocsURL: "https://example.org/fake",
		Services: []manifest.Version{{Service: manifest.Secrets, Version: "1.0"}, {Service: manifest.Hooks, Version: "1.0"}},
		Features: []string{manifest.FeatureClose, secrets.FeatureRenew, secrets.FeatureRevoke}, Lifetime: manifest.WarmOK,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	health, err := h.Health(soon(t))
	if want := (manifest.Health{State: manifest.Degraded, Message: "slow today", LiveObjects: 2}); err != nil || health != want {
		t.Errorf("health: %+v, %v", health, err)
	}
}

func TestFeaturesDecideWhatAProviderIs(t *testing.T) {
	for _, tc := range []struct {
		features      []string
		renew, revoke bool
	}{
		{nil, false, false},
		{[]string{secrets.FeatureRenew}, true, false},
		{[]string{secrets.FeatureRevoke}, false, true},
		{[]string{secrets.FeatureRenew, secrets.FeatureRevoke, "secrets.future"}, true, true},
	} {
		p := client.New(nil).Secrets(tc.features)
		_, renew := p.(secrets.Renewer)
		_, revoke := p.(secrets.Revoker)
		if renew != tc.renew || revoke != tc.revoke {
			t.Errorf("%v: renewer %v, revoker %v", tc.features, renew, revoke)
		}
	}
}

func TestSecretsArriveWhole(t *testing.T) {
	h := start(t, "plain")
	got, err := h.secrets().Fetch(soon(t), secrets.Call{RequestID: "1", SandboxID: "sb"}, []secrets.Ref{{Name: "db", InstanceID: "i"}})
	want := []secrets.Secret{{
		Name: "db", Value: []byte("plain for sb"), Version: "7", NotAfter: time.Unix(1e9, 0).UTC(),
		Lease: secrets.Lease{ID: "l1", Duration: time.Hour, Renewable: true},
	}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	p := h.secrets()
	l, err := p.(secrets.Renewer).Renew(soon(t), secrets.Call{RequestID: "2", InstanceID: "i"}, "l1", time.Minute)
	if want := (secrets.Lease{ID: "l1", Duration: 2 * time.Minute, Renewable: true}); err != nil || l != want {
		t.Errorf("renewed: %+v, %v", l, err)
	}
	if got := h.count(t); !reflect.DeepEqual(got, []string{"renew i"}) {
		t.Errorf("the provider saw %q", got)
	}
}

func TestBatchesAreCheckedByTheSDK(t *testing.T) {
	h := start(t, "plain")
	for _, tc := range []struct {
		name string
		ref  secrets.Ref
		code errs.Code
		text string
	}{
		{"too few", secrets.Ref{Name: "few"}, errs.Internal, "1 secrets were asked for, and the provider gave 0"},
		{"absent, and needed", secrets.Ref{Name: "absent"}, errs.NotFound, `secret "absent" does not exist`},
		{"absent, and optional", secrets.Ref{Name: "absent", Optional: true}, errs.Unset, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := h.secrets().Fetch(soon(t), secrets.Call{RequestID: tc.name}, []secrets.Ref{tc.ref})
			if errs.CodeOf(err) != tc.code || err != nil && err.Error() != tc.text {
				t.Errorf("got %v %v", errs.CodeOf(err), err)
			}
		})
	}
}

func TestHooksArriveWhole(t *testing.T) {
	h := start(t, "plain")
	sub, err := h.Hooks().Describe(soon(t), "i")
	if want := (hooks.Subscription{At: hooks.At(hooks.PreFS, hooks.Cleanup), Order: -3}); err != nil || sub != want {
		t.Errorf("subscription: %+v, %v", sub, err)
	}
	got, err := h.Hooks().OnPhase(soon(t), hooks.Call{RequestID: "1", InstanceID: "i"}, hooks.Event{
		Boundary: hooks.Stopped, SandboxName: "web", Pid: 7, Plan: []byte("{}"), Cause: "oom", ExitCode: 137,
	})
	want := hooks.Answer{Veto: "not web", Mutation: hooks.Mutation{
		AddEnv: map[string]string{"A": "i"}, DropCapabilities: []string{"CAP_CHOWN"},
		LowerRlimits: map[string]uint64{"nofile": 10}, Annotations: map[string]string{"cause": "oom", "plan": "{}"},
	}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

func TestPanicsAreSurvived(t *testing.T) {
	h := start(t, "plain")
	p := h.secrets()
	for _, tc := range []struct {
		name, text, stack string
		call              func() error
	}{
		{"fetch", "fetch went wrong", "Fetch", func() error { _, err := fetch(t, h, "1", "panic"); return err }},
		{"fetch, in the runtime", "assignment to entry in nil map", "Fetch", func() error { _, err := fetch(t, h, "2", "nil"); return err }},
		{"renew", "renew went wrong", "Renew", func() error {
			_, err := p.(secrets.Renewer).Renew(soon(t), secrets.Call{RequestID: "3"}, "panic", 1)
			return err
		}},
		{"revoke", "revoke went wrong", "Revoke", func() error {
			return p.(secrets.Revoker).Revoke(soon(t), secrets.Call{RequestID: "4"}, "panic")
		}},
		{"describe", "describe went wrong", "Describe", func() error { _, err := h.Hooks().Describe(soon(t), "panic"); return err }},
		{"hook", "hook went wrong", "OnPhase", func() error {
			_, err := h.Hooks().OnPhase(soon(t), hooks.Call{RequestID: "5"}, hooks.Event{SandboxName: "panic"})
			return err
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := as(t, tc.call())
			if e.Code != errs.Internal || e.Panic == nil || e.Panic.Message != tc.text || !strings.Contains(e.Panic.Stack, "."+tc.stack+"(") {
				t.Errorf("got %+v, panic %+v", e, e.Panic)
			}
			if v, err := fetch(t, h, "after "+tc.name, "db"); err != nil || v != "plain for sb" {
				t.Errorf("after the panic: %q, %v", v, err)
			}
		})
	}
}

func TestCallWithoutDeadlineIsRefused(t *testing.T) {
	h := start(t, "plain")
	for name, call := range map[string]func(context.Context) error{
		"info":  func(ctx context.Context) error { _, err := h.Info(ctx, "0", nil); return err },
		"hooks": func(ctx context.Context) error { _, err := h.Hooks().Describe(ctx, ""); return err },
		"fetch": func(ctx context.Context) error {
			_, err := h.secrets().Fetch(ctx, secrets.Call{RequestID: "1"}, []secrets.Ref{{Name: "counted"}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := as(t, call(context.Background()))
			if e.Code != errs.Config || !strings.Contains(e.Error(), "needs a deadline") {
				t.Errorf("got %v %v", e.Code, e)
			}
		})
	}
	if got := h.count(t); len(got) > 0 {
		t.Errorf("effects of refused calls: %q", got)
	}
}

func TestSameRequestHasOneEffect(t *testing.T) {
	for _, tc := range []struct {
		name    string
		secret  string
		calls   int
		at      string // sequence, or together
		effects int
		code    errs.Code
	}{
		{"one after another", "counted", 3, "sequence", 1, errs.Unset},
		{"together", "slow", 8, "together", 1, errs.Unset},
		{"a lasting error is kept", "refused", 2, "sequence", 1, errs.Denied},
		{"an error that may pass is not", "down", 2, "sequence", 2, errs.Unavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := start(t, "plain")
			values := make([]string, tc.calls)
			failures := make([]error, tc.calls)
			var wg sync.WaitGroup
			for i := range tc.calls {
				call := func() {
					got, err := h.secrets().Fetch(soon(t), secrets.Call{RequestID: "same", Attempt: uint32(i)}, []secrets.Ref{{Name: tc.secret}})
					if failures[i] = err; err == nil {
						values[i] = string(got[0].Value)
					}
				}
				if tc.at == "together" {
					wg.Go(call)
				} else {
					call()
				}
			}
			wg.Wait()
			for i := range tc.calls {
				if values[i] != values[0] || errs.CodeOf(failures[i]) != tc.code {
					t.Errorf("call %d: %q, %v; the first: %q", i, values[i], failures[i], values[0])
				}
			}
			if got := h.count(t); len(got) != tc.effects {
				t.Errorf("%d effects, want %d", len(got), tc.effects)
			}
		})
	}
}

func TestRequestIDsAreUsedRight(t *testing.T) {
	h := start(t, "plain")
	if _, err := fetch(t, h, "", "counted"); errs.CodeOf(err) != errs.Config || !strings.Contains(err.Error(), "no request_id") {
		t.Errorf("without one: %v", err)
	}
	if _, err := fetch(t, h, "x", "db"); err != nil {
		t.Error(err)
	}
	if _, err := fetch(t, h, "x", "counted"); errs.CodeOf(err) != errs.Config || !strings.Contains(err.Error(), "has been used for another request") {
		t.Errorf("for another request: %v", err)
	}
	// Another verb is another request.
	if err := h.secrets().(secrets.Revoker).Revoke(soon(t), secrets.Call{RequestID: "x"}, "l"); err != nil {
		t.Error(err)
	}
	if got := h.count(t); !reflect.DeepEqual(got, []string{"revoke"}) {
		t.Errorf("effects: %q", got)
	}
}

func TestRevokingWhatIsGoneSucceeds(t *testing.T) {
	h := start(t, "plain")
	r := h.secrets().(secrets.Revoker)
	if err := r.Revoke(soon(t), secrets.Call{RequestID: "1"}, "gone"); err != nil {
		t.Errorf("gone: %v", err)
	}
	e := as(t, r.Revoke(soon(t), secrets.Call{RequestID: "2"}, "stuck"))
	if e.Code != errs.Internal || !reflect.DeepEqual(e.Leaked, []string{"token a", "token b"}) {
		t.Errorf("stuck: %+v", e)
	}
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	h := start(t, "plain")
	before := as(t, func() error { _, err := fetch(t, h, "0", "leaky"); return err }())
	if !strings.Contains(before.Error(), strings.TrimSpace(longSecret)) {
		t.Fatalf("the test shows nothing: before the value is fetched the error has it not either: %v", before)
	}
	for i, name := range []string{"long", "short"} {
		if _, err := fetch(t, h, fmt.Sprint("v", i), name); err != nil {
			t.Fatal(err)
		}
	}
	e := as(t, func() error { _, err := fetch(t, h, "1", "leaky"); return err }())
	p := as(t, func() error { _, err := fetch(t, h, "2", "panicky"); return err }())
	const gone = "[secret]"
	// A short value is taken where it is a word, and not out of one.
	if want := `raw [secret] trimmed [secret]. quoted "[secret]" b64 [secret] hex [secret] url [secret] key [secret] keys k99` + "\na: bad [secret]"; e.Error() != want {
		t.Errorf("got  %q\nwant %q", e.Error(), want)
	}
	if e.Metadata["value"] != gone || e.Leaked[0] != gone || e.Diagnostics[0].Summary != "bad "+gone || !strings.Contains(p.Panic.Message, "with "+gone) {
		t.Errorf("details: %+v; panic %+v", e, p.Panic)
	}
	for _, text := range []string{fmt.Sprintf("%+v", e), fmt.Sprintf("%+v %+v", p, p.Panic)} {
		for _, part := range []string{"pa$$", `ord/`, "cGEkJC", "70612424", "pa%24"} {
			if strings.Contains(text, part) {
				t.Errorf("%q is in %s", part, text)
			}
		}
	}
}

func TestErrorsArriveWhole(t *testing.T) {
	h := start(t, "plain")
	_, err := fetch(t, h, "1", "down")
	want := &errs.Error{
		Code: errs.Unavailable, Text: "backend is down", RetryAfter: 250 * time.Millisecond,
		Reason: "BACKEND_DOWN", Domain: "fake", Metadata: map[string]string{"host": "a"},
	}
	if got := as(t, err); !reflect.DeepEqual(got, want) { //nolint:govet // neither wraps an error
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestConfigure(t *testing.T) {
	h := start(t, "plain")
	schema, err := h.ConfigSchema(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	b := schema.Instance["secrets"]
	empty := map[string]cty.Value{}
	for name, at := range b.Type().AttributeTypes() {
		empty[name] = cty.NullVal(at)
	}
	with := func(kv map[string]cty.Value) cty.Value {
		all := map[string]cty.Value{}
		for k, v := range empty {
			all[k] = v
		}
		all["address"] = cty.StringVal("https://vault")
		for k, v := range kv {
			all[k] = v
		}
		return cty.ObjectVal(all)
	}
	routes := func(dst ...string) cty.Value {
		var vs []cty.Value
		for _, d := range dst {
			vs = append(vs, cty.ObjectVal(map[string]cty.Value{"dst": cty.StringVal(d), "via": cty.NullVal(cty.String)}))
		}
		return cty.ListVal(vs)
	}
	attr := func(name string) errs.Step { return errs.Step{Kind: errs.Attr, Name: name} }
	for _, tc := range []struct {
		name     string
		value    cty.Value
		effect   string
		wrong    []errs.Steps
		warnings []errs.Steps
	}{
		{"defaults", with(nil), "configured i tries=3 wait=2s mode=kv2 routes=0", nil, nil},
		{"values", with(map[string]cty.Value{"tries": cty.NumberIntVal(5), "wait": cty.StringVal("1m"), "route": routes("10.1.0.0/16", "::/0")}), "configured i tries=5 wait=1m0s mode=kv2 routes=2", nil, nil},
		{"a warning refuses nothing", with(map[string]cty.Value{"old": cty.StringVal("x")}), "configured i tries=3 wait=2s mode=kv2 routes=0", nil, []errs.Steps{{attr("old")}}},
		{"all faults at once", with(map[string]cty.Value{"address": cty.NullVal(cty.String), "mode": cty.StringVal("kv3"), "tries": cty.NumberIntVal(10), "route": routes("10.0.0.0/16", "10.0.0.1")}), "", []errs.Steps{
			{attr("address")}, {attr("mode")}, {attr("tries")}, {{Kind: errs.Block, Name: "route"}, {Kind: errs.Index, Index: 1}, attr("dst")},
		}, nil},
		{"a number that is not whole", with(map[string]cty.Value{"tries": cty.NumberFloatVal(1.5)}), "", []errs.Steps{{attr("tries")}}, nil},
		{"the author's own faults, with the schema's kinds", with(map[string]cty.Value{"mode": cty.StringVal("kv1")}), "", []errs.Steps{
			{attr("mode")}, {attr("labels"), errs.MapKey("team")},
		}, nil},
		{"within a block", with(map[string]cty.Value{"route": routes("10.0.0.0/8")}), "", []errs.Steps{{{Kind: errs.Block, Name: "route"}, {Kind: errs.Index}, attr("dst")}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := len(h.count(t))
			raw, err := b.Marshal(tc.value)
			if err != nil {
				t.Fatal(err)
			}
			ds, err := h.Configure(soon(t), client.Configuration{Instance: config.Instance{ID: "i"}, Service: manifest.Secrets, Value: raw})
			if (err != nil) != (tc.wrong != nil) {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				e := as(t, err)
				if e.Code != errs.Config {
					t.Errorf("code %v", e.Code)
				}
				if got := paths(e.Diagnostics); !reflect.DeepEqual(got, tc.wrong) {
					t.Errorf("paths %v, want %v", got, tc.wrong)
				}
			}
			if got := paths(ds); !reflect.DeepEqual(got, tc.warnings) {
				t.Errorf("warnings at %v, want %v", got, tc.warnings)
			}
			got := strings.Join(h.count(t)[before:], ",")
			if got != tc.effect {
				t.Errorf("the author's code did %q, want %q", got, tc.effect)
			}
		})
	}
}

func paths(ds []errs.Diagnostic) []errs.Steps {
	var out []errs.Steps
	for _, d := range ds {
		out = append(out, d.Path)
	}
	return out
}

func TestConfigurationThatDoesNotFit(t *testing.T) {
	h := start(t, "plain")
	for _, tc := range []struct {
		name string
		cfg  client.Configuration
		code errs.Code
	}{
		{"no bytes for what has required arguments", client.Configuration{Instance: config.Instance{ID: "i"}, Service: manifest.Secrets}, errs.Config},
		{"bytes that are no value", client.Configuration{Instance: config.Instance{ID: "i"}, Service: manifest.Secrets, Value: []byte{0xc1}}, errs.Config},
		{"something for what takes nothing", client.Configuration{Value: []byte("\x81\xa1a\x01")}, errs.Config},
		{"nothing for what takes nothing", client.Configuration{}, errs.Unset},
		{"an instance of no service", client.Configuration{Instance: config.Instance{ID: "i"}}, errs.Config},
		{"another major version", client.Configuration{Selected: []manifest.Version{{Service: manifest.Hooks, Version: "2.0"}}}, errs.Precondition},
		{"another minor version", client.Configuration{Selected: []manifest.Version{{Service: manifest.Hooks, Version: "1.7"}}}, errs.Unset},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := h.Configure(soon(t), tc.cfg); errs.CodeOf(err) != tc.code {
				t.Errorf("got %v (%v), want %v", errs.CodeOf(err), err, tc.code)
			}
		})
	}
}
