package core_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/boundary"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
)

// everywhere is a subscription to all that there is.
var everywhere = func() hooks.Mask {
	var m hooks.Mask
	for b := hooks.PreNamespaces; b <= hooks.Cleanup; b++ {
		m |= hooks.At(b)
	}
	return m
}()

// fakePlugin is a hooks plugin within the test.
type fakePlugin struct {
	at     hooks.Mask
	order  int32
	answer func(ctx context.Context, e hooks.Event) (hooks.Answer, error)

	mu     sync.Mutex
	seen   []hooks.Event
	closed int
}

// plugins is a source of them.
type plugins map[string]*fakePlugin

func (p plugins) Open(_ context.Context, _ string, w boundary.Want) (boundary.Caller, error) {
	if p[w.Plugin] == nil {
		return nil, errors.New("there is no such plugin")
	}
	return p[w.Plugin], nil
}

func (p plugins) Reopen(_ context.Context, _ string, r boundary.Record) (boundary.Caller, error) {
	if string(r.Config) != "as configured" {
		return nil, fmt.Errorf("config %q", r.Config)
	}
	return p[r.Plugin], nil
}

func (f *fakePlugin) Subscription() hooks.Subscription {
	return hooks.Subscription{At: f.at, Order: f.order}
}

func (*fakePlugin) Record() boundary.Record {
	return boundary.Record{Plugin: "a", Config: []byte("as configured")}
}

func (f *fakePlugin) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed++
}

func (f *fakePlugin) Call(ctx context.Context, e hooks.Event) (hooks.Answer, error) {
	f.mu.Lock()
	f.seen = append(f.seen, e)
	f.mu.Unlock()
	if f.answer == nil {
		return hooks.Answer{}, nil
	}
	return f.answer(ctx, e)
}

func (f *fakePlugin) boundaries() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for _, e := range f.seen {
		names = append(names, e.Boundary.String())
	}
	return strings.Join(names, " ")
}

// at answers at one boundary.
func at(b hooks.Boundary, a hooks.Answer) func(context.Context, hooks.Event) (hooks.Answer, error) {
	return func(_ context.Context, e hooks.Event) (hooks.Answer, error) {
		if e.Boundary == b {
			return a, nil
		}
		return hooks.Answer{}, nil
	}
}

func withPlugins(t *testing.T, p plugins, events *bytes.Buffer) *core.Runtime {
	t.Helper()
	testutil.Needs(t, testutil.UserNS)
	o := options
	o.Hooks = p
	if events != nil {
		o.Events = append(o.Events, events)
	}
	rt, err := core.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return rt
}

// A plugin hears of everything, in order, with what there is to know, and is ended.
func TestHooksPluginHearsOfEveryBoundary(t *testing.T) {
	for _, init := range []string{"true", "false"} {
		f := &fakePlugin{at: everywhere}
		var events bytes.Buffer
		rt := withPlugins(t, plugins{"a": f}, &events)
		j := secretJob(t, "exit 3", "init = "+init, `env = { CONFIDENTIAL = "canary" }`, `plugin_hook "a" {}`)
		res, out, err := runOf(t, rt, planFor(t, rt, j))
		if err != nil || res.ExitCode != 3 {
			t.Fatalf("%+v, %v, %s", res, err, out)
		}
		want := "PRE_NAMESPACES PRE_CGROUPS POST_NAMESPACES PRE_FS POST_CGROUPS POST_FS PRE_SECURITY POST_SECURITY PRE_EXEC POST_EXEC STOPPED CLEANUP"
		if got := f.boundaries(); got != want {
			t.Errorf("init %s: boundaries\n%s, want\n%s", init, got, want)
		}
		if f.closed != 1 {
			t.Errorf("closed %d times", f.closed)
		}
		for _, e := range f.seen {
			if known := e.Boundary == hooks.PostCgroups || e.Boundary >= hooks.PreFS && e.Boundary < hooks.Cleanup; known != (len(e.Plan) > 0) {
				t.Errorf("%s: plan of %d bytes", e.Boundary, len(e.Plan))
			}
			if bytes.Contains(e.Plan, []byte("canary")) || len(e.Plan) > 0 && !bytes.Contains(e.Plan, []byte("CONFIDENTIAL")) {
				t.Errorf("%s: a variable's name, and not what it holds, is in the plan:\n%s", e.Boundary, e.Plan)
			}
			if e.Boundary >= hooks.Stopped && (e.Cause != "exit" || e.ExitCode != 3) {
				t.Errorf("%s: %s, %d", e.Boundary, e.Cause, e.ExitCode)
			}
			if none := slices.Contains([]hooks.Boundary{hooks.PreNamespaces, hooks.PreCgroups, hooks.Cleanup}, e.Boundary); none != (e.Pid == 0) {
				t.Errorf("%s: pid %d", e.Boundary, e.Pid)
			}
		}
		if n := strings.Count(events.String(), `"type":"hook.ran"`); n != 12 {
			t.Errorf("%d events of calls\n%s", n, events.String())
		}
	}
}

// What plugins change holds for the workload, at each boundary where they may.
func TestHooksPluginsNarrow(t *testing.T) {
	for _, b := range []hooks.Boundary{hooks.PreNamespaces, hooks.PreCgroups, hooks.PreFS, hooks.PreSecurity} {
		for _, init := range []string{"true", "false"} {
			f := &fakePlugin{at: hooks.At(b), answer: at(b, hooks.Answer{Mutation: hooks.Mutation{
				AddEnv: map[string]string{"ADDED": "by the plugin"}, DropCapabilities: []string{"CAP_CHOWN"},
				LowerRlimits: map[string]uint64{"nofile": 77, "fsize": 1 << 20}, Annotations: map[string]string{"org.example.a": "b"},
			}})}
			rt := withPlugins(t, plugins{"a": f}, nil)
			j := secretJob(t, `echo "$ADDED"; ulimit -n; ulimit -f; grep CapBnd /proc/self/status`, "init = "+init,
				`security { `+"\n"+` capabilities { keep = ["CHOWN", "KILL"] } `+"\n"+` }`, `plugin_hook "a" {}`)
			res, out, err := runOf(t, rt, planFor(t, rt, j))
			if err != nil || res.ExitCode != 0 {
				t.Fatalf("%s, init %s: %+v, %v", b, init, res, err)
			}
			if want := "by the plugin\n77\n2048\nCapBnd:\t0000000000000020\n"; out != want {
				t.Errorf("%s, init %s: output %q, want %q", b, init, out, want)
			}
		}
	}
}

// A veto, and every other fault before a phase, ends the start at the line of the
// block; the clean-up is still told, and nothing is left.
func TestHooksPluginEndsTheStart(t *testing.T) {
	faults := map[string]struct {
		answer hooks.Answer
		err    error
		want   string
	}{
		"veto":  {answer: hooks.Answer{Veto: "not on Fridays"}, want: "it refuses the start: not on Fridays"},
		"error": {err: errors.New("out of paper"), want: "out of paper"},
	}
	for _, b := range []hooks.Boundary{hooks.PreNamespaces, hooks.PreCgroups, hooks.PreFS, hooks.PreSecurity, hooks.PreExec} {
		for name, x := range faults {
			f := &fakePlugin{at: hooks.At(b, hooks.Cleanup)}
			f.answer = func(_ context.Context, e hooks.Event) (hooks.Answer, error) {
				if e.Boundary == b {
					return x.answer, x.err
				}
				return hooks.Answer{}, nil
			}
			rt := withPlugins(t, plugins{"a": f}, nil)
			res, _, err := runOf(t, rt, planFor(t, rt, secretJob(t, "exit 0", `plugin_hook "a" {}`)))
			if res.ExitCode != 125 || err == nil || !strings.Contains(err.Error(), x.want) || !strings.HasPrefix(err.Error(), "job.hcl:3: ") {
				t.Errorf("%s at %s: %+v, %v", name, b, res, err)
			}
			if got, want := f.boundaries(), b.String()+" CLEANUP"; got != want {
				t.Errorf("%s at %s: boundaries %s", name, b, got)
			}
			if last := f.seen[len(f.seen)-1]; last.Cause != "runtime" || last.ExitCode != 125 {
				t.Errorf("%s at %s: the clean-up is told %q, %d", name, b, last.Cause, last.ExitCode)
			}
			noneLeft(t)
		}
	}
}

// noneLeft looks for sandboxes that still have a directory.
func noneLeft(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(options.StateRoot, "sandboxes"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if len(e.Name()) == 32 {
			t.Errorf("%s is left", e.Name())
		}
	}
}

func TestHooksPluginFaultsInAnswers(t *testing.T) {
	env := func(k, v string) hooks.Mutation { return hooks.Mutation{AddEnv: map[string]string{k: v}} }
	for name, x := range map[string]struct {
		at       hooks.Boundary
		a, other hooks.Mutation
		want     string
	}{
		"two write one variable":     {hooks.PreFS, env("X", "1"), env("X", "2"), `it sets variable "X", which plugin "a" has set`},
		"two write one annotation":   {hooks.PreFS, hooks.Mutation{Annotations: map[string]string{"k": "1"}}, hooks.Mutation{Annotations: map[string]string{"k": "1"}}, `it sets annotation "k", which plugin "a" has set`},
		"a variable of the job":      {hooks.PreFS, env("MINE", "1"), hooks.Mutation{}, `hooks plugin "a": it sets variable "MINE", which is set already`},
		"no name of a variable":      {hooks.PreFS, env("A=B", "1"), hooks.Mutation{}, `"A=B" is no name of a variable`},
		"NUL":                        {hooks.PreFS, env("A", "\x00"), hooks.Mutation{}, `variable "A" has a NUL byte`},
		"too much":                   {hooks.PreFS, env("A", strings.Repeat("x", 1<<17)), hooks.Mutation{}, "it adds more than 256 of variable, or more than 65536 bytes"},
		"no capability":              {hooks.PreFS, hooks.Mutation{DropCapabilities: []string{"CAP_FLY"}}, hooks.Mutation{}, `job.hcl:4: hooks: hooks plugin "a": it drops capability "CAP_FLY", which there is not`},
		"no limit":                   {hooks.PreFS, hooks.Mutation{LowerRlimits: map[string]uint64{"sky": 1}}, hooks.Mutation{}, `limit "sky", which there is not`},
		"a change after all is done": {hooks.PreExec, env("X", "1"), hooks.Mutation{}, "it changes the sandbox at PRE_EXEC"},
	} {
		p := plugins{
			"a": {at: hooks.At(x.at), answer: at(x.at, hooks.Answer{Mutation: x.a})},
			"b": {at: hooks.At(x.at), answer: at(x.at, hooks.Answer{Mutation: x.other})},
		}
		rt := withPlugins(t, p, nil)
		j := secretJob(t, "exit 0", `env = { MINE = "1" }`, `plugin_hook "a" {}`, `plugin_hook "b" {}`)
		res, _, err := runOf(t, rt, planFor(t, rt, j))
		if res.ExitCode != 125 || err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
	}
}

// A limit above the one that holds raises nothing.
func TestHooksPluginRaisesNoLimit(t *testing.T) {
	f := &fakePlugin{at: hooks.At(hooks.PreFS), answer: at(hooks.PreFS, hooks.Answer{Mutation: hooks.Mutation{LowerRlimits: map[string]uint64{"nofile": 1 << 40, "core": 1 << 40}}})}
	rt := withPlugins(t, plugins{"a": f}, nil)
	j := secretJob(t, "ulimit -Hn; ulimit -Hc", "resources {\n rlimit \"nofile\" {\n soft = 55\n hard = 55\n }\n }", `plugin_hook "a" {}`)
	if out := output(t, rt, j); out != "55\n0\n" {
		t.Errorf("limits %q", out)
	}
	// A soft limit that nobody has set is not raised to the hard one either.
	f.answer = at(hooks.PreFS, hooks.Answer{Mutation: hooks.Mutation{LowerRlimits: map[string]uint64{"stack": 1 << 40}}})
	was := output(t, rt, secretJob(t, "ulimit -s"))
	if out := output(t, rt, secretJob(t, "ulimit -s", `plugin_hook "a" {}`)); out != was {
		t.Errorf("soft limit of the stack %q, and before %q", out, was)
	}
}

// Plugins are called by their order, then by that of the job, and each is told of a
// boundary only once all before it are done with the one before.
func TestHooksPluginsAreCalledInOrder(t *testing.T) {
	var mu sync.Mutex
	var calls []string
	note := func(name string) func(context.Context, hooks.Event) (hooks.Answer, error) {
		return func(_ context.Context, e hooks.Event) (hooks.Answer, error) {
			if name == "late" {
				time.Sleep(20 * time.Millisecond)
			}
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, name+" "+e.Boundary.String())
			return hooks.Answer{}, nil
		}
	}
	mask := hooks.At(hooks.PreNamespaces, hooks.PostNamespaces, hooks.PreFS, hooks.PostExec, hooks.Stopped)
	p := plugins{
		"late": {at: mask, order: 5, answer: note("late")}, "first": {at: mask, answer: note("first")}, "early": {at: mask, order: -1, answer: note("early")},
	}
	rt := withPlugins(t, p, nil)
	output(t, rt, secretJob(t, "exit 0", `plugin_hook "late" {}`, `plugin_hook "first" {}`, `plugin_hook "early" {}`))
	var want []string
	for _, b := range []hooks.Boundary{hooks.PreNamespaces, hooks.PostNamespaces, hooks.PreFS, hooks.PostExec, hooks.Stopped} {
		for _, n := range []string{"early", "first", "late"} {
			want = append(want, n+" "+b.String())
		}
	}
	if !slices.Equal(calls, want) {
		t.Errorf("calls\n%s, want\n%s", strings.Join(calls, "\n"), strings.Join(want, "\n"))
	}
}

// What is told of after the fact hinders nobody, whatever it answers; each fault
// has its event, and a stop is told with its cause.
func TestHooksPluginHindersNothingAfterwards(t *testing.T) {
	f := &fakePlugin{at: everywhere &^ hooks.At(hooks.Cleanup), answer: func(_ context.Context, e hooks.Event) (hooks.Answer, error) {
		switch e.Boundary {
		case hooks.PostNamespaces, hooks.PostFS:
			return hooks.Answer{Veto: "too late"}, nil
		case hooks.PostSecurity:
			return hooks.Answer{Mutation: hooks.Mutation{AddEnv: map[string]string{"A": "1"}}}, nil
		case hooks.PostExec, hooks.Stopping, hooks.Stopped:
			return hooks.Answer{}, errors.New("out of paper")
		}
		return hooks.Answer{}, nil
	}}
	var events bytes.Buffer
	rt := withPlugins(t, plugins{"a": f}, &events)
	s, err := rt.Create(t.Context(), planFor(t, rt, secretJob(t, "exec sleep 60", `plugin_hook "a" {}`)), core.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(f.boundaries(), "POST_EXEC") {
		time.Sleep(time.Millisecond)
	}
	s.Stop()
	res, err := s.Wait()
	if err != nil || res.Cause != "stopped" {
		t.Errorf("%+v, %v", res, err)
	}
	if n := strings.Count(events.String(), `"type":"hook.failed"`); n != 6 {
		t.Errorf("%d events of faults, want 6:\n%s", n, events.String())
	}
	if !strings.HasSuffix(f.boundaries(), "STOPPING STOPPED") {
		t.Errorf("boundaries %s", f.boundaries())
	}
}

// One that does not answer is waited for as long as its block says.
func TestHooksPluginThatHangs(t *testing.T) {
	for _, b := range []hooks.Boundary{hooks.PreNamespaces, hooks.PreSecurity, hooks.PreExec} {
		f := &fakePlugin{at: hooks.At(b), answer: func(ctx context.Context, _ hooks.Event) (hooks.Answer, error) {
			<-ctx.Done()
			return hooks.Answer{}, ctx.Err()
		}}
		rt := withPlugins(t, plugins{"a": f}, nil)
		_, _, err := runOf(t, rt, planFor(t, rt, secretJob(t, "exit 0", "plugin_hook \"a\" {\n timeout = \"50ms\"\n}")))
		if err == nil || !strings.Contains(err.Error(), "no answer at "+b.String()+" within its timeout of 50ms") {
			t.Errorf("%s: %v", b, err)
		}
	}
}

// A kill waits for no plugin, and the end is told all the same.
func TestHooksPluginThatHangsIsNotWaitedForByAKill(t *testing.T) {
	f := &fakePlugin{at: hooks.At(hooks.PostExec, hooks.Stopped, hooks.Cleanup), answer: func(ctx context.Context, e hooks.Event) (hooks.Answer, error) {
		if e.Boundary == hooks.PostExec {
			<-ctx.Done()
		}
		return hooks.Answer{}, ctx.Err()
	}}
	var events bytes.Buffer
	rt := withPlugins(t, plugins{"a": f}, &events)
	s, err := rt.Create(t.Context(), planFor(t, rt, secretJob(t, "exec sleep 60", "plugin_hook \"a\" {\n timeout = \"5m\"\n}")), core.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for f.boundaries() == "" {
		time.Sleep(time.Millisecond)
	}
	s.Kill()
	if res, err := s.Wait(); err != nil || res.Cause != "stopped" {
		t.Errorf("%+v, %v", res, err)
	}
	if got := f.boundaries(); got != "POST_EXEC STOPPED CLEANUP" {
		t.Errorf("boundaries %s", got)
	}
	if n := strings.Count(events.String(), `"type":"hook.failed"`); n != 1 {
		t.Errorf("%d failed calls\n%s", n, events.String())
	}
}

// A cancelled start does not wait for a plugin.
func TestHooksPluginIsNotWaitedForByACancelledStart(t *testing.T) {
	called := make(chan struct{})
	f := &fakePlugin{at: hooks.At(hooks.PreFS), answer: func(ctx context.Context, _ hooks.Event) (hooks.Answer, error) {
		close(called)
		<-ctx.Done()
		return hooks.Answer{}, ctx.Err()
	}}
	rt := withPlugins(t, plugins{"a": f}, nil)
	p := planFor(t, rt, secretJob(t, "exit 0", "plugin_hook \"a\" {\n timeout = \"5m\"\n}"))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-called
		cancel()
	}()
	if _, err := rt.Run(ctx, p, core.RunOptions{}); err == nil || !strings.Contains(err.Error(), "start cancelled") {
		t.Errorf("error %v", err)
	}
}

// Many at once, each with its own plugins.
func TestHooksPluginsOfManySandboxes(t *testing.T) {
	rt := withPlugins(t, plugins{"a": {at: everywhere}}, nil)
	var runs sync.WaitGroup
	for i := range 8 {
		runs.Go(func() {
			if out := output(t, rt, secretJob(t, fmt.Sprintf("echo %d", i), `plugin_hook "a" {}`)); out != fmt.Sprintf("%d\n", i) {
				t.Errorf("%d: %q", i, out)
			}
		})
	}
	runs.Wait()
}

// A job with hooks plugins is refused where nobody can call them.
func TestHooksPluginsWithoutAHost(t *testing.T) {
	rt, err := core.New(options)
	if err != nil {
		t.Fatal(err)
	}
	_, err = rt.Plan(secretJob(t, "exit 0", `plugin_hook "a" {}`))
	if err == nil || !strings.Contains(err.Error(), `job.hcl:3: plugin_hook "a": hooks plugins are not available`) {
		t.Errorf("error %v", err)
	}
}

// The plan says who is called, and never with what.
func TestHooksPluginInThePlan(t *testing.T) {
	rt := withPlugins(t, plugins{"a": {}}, nil)
	p := planFor(t, rt, secretJob(t, "exit 0", "plugin_hook \"a\" {\n config {\n key = \"canary\"\n }\n}"))
	b, err := json.Marshal(p)
	if err != nil || bytes.Contains(b, []byte("canary")) || !bytes.Contains(b, []byte(`"plugin":"a"`)) {
		t.Errorf("%s, %v", b, err)
	}
}
