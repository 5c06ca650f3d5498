package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/internal/procid"
)

// died makes a sandbox whose supervisor is gone, with these intents in its journal.
func died(t *testing.T, r *state.Root, intents map[string]any, order ...string) string {
	t.Helper()
	d, err := r.Create(state.NewID(), "x", false)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range order {
		if err := d.Journal.Intent(step, intents[step]); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	return d.ID
}

func root(t *testing.T) *state.Root {
	t.Helper()
	r, err := state.Open(filepath.Join(t.TempDir(), "root"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func sandboxes(t *testing.T, r *state.Root) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(r.Path(), "sandboxes"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// sleeper is a process to be killed, or not.
func sleeper(t *testing.T) (pid int, ended <-chan struct{}) {
	t.Helper()
	cmd := exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed, by the test or after it
		close(done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
	})
	return cmd.Process.Pid, done
}

// A pid alone names nobody: by the time of gc it may be another's.
func TestOnlyTheRecordedProcessIsKilled(t *testing.T) {
	for _, test := range []struct {
		what   string
		change func(*process)
		killed bool
	}{
		{"the very process", func(*process) {}, true},
		{"a later process with its pid", func(p *process) { p.Start = "1" }, false},
		{"the pid in an earlier boot", func(p *process) { p.Boot = "2e4e7a1c-0000-0000-0000-000000000000" }, false},
		{"a pid that nobody has", func(p *process) { p.Pid = 1<<22 + 7 }, false},
		{"pid 0", func(p *process) { p.Pid = 0 }, false},
		{"pid -1, which would be everybody", func(p *process) { p.Pid = -1 }, false},
	} {
		t.Run(test.what, func(t *testing.T) {
			pid, ended := sleeper(t)
			id, err := identify(pid)
			if err != nil {
				t.Fatal(err)
			}
			test.change(&id)
			r := root(t)
			died(t, r, map[string]any{stepInit: id}, stepInit)
			done, err := Collect(t.Context(), r, Sources{})
			if err != nil || len(done.Sandboxes) != 1 || sandboxes(t, r) != 0 {
				t.Errorf("collected %q, %v, with %d sandboxes left", done, err, sandboxes(t, r))
			}
			select {
			case <-ended:
				if !test.killed {
					t.Error("it killed a stranger")
				}
			case <-time.After(50 * time.Millisecond):
				if test.killed {
					t.Error("it let the process live")
				}
			}
		})
	}
}

// end waits until the process is gone: only then can what it held go.
func TestEndWaits(t *testing.T) {
	pid, _ := sleeper(t)
	id, err := identify(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := id.end(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, err := identify(pid); err == nil && now == id {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			t.Errorf("it still runs: %s", stat)
		}
	}
}

func TestIdentifySurvivesHostileNames(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a) Z 1 (b")
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	plain, _ := sleeper(t)
	a, err := procid.Start(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	p, err := procid.Start(plain)
	if err != nil {
		t.Fatal(err)
	}
	// Started one after the other, so within a second of each other.
	if len(a) != len(p) || a > p {
		t.Errorf("start times %q and %q", a, p)
	}
}

// One bad record, one bad sandbox: the rest is undone all the same.
func TestCollectGoesOn(t *testing.T) {
	r := root(t)
	pid, ended := sleeper(t)
	id, err := identify(pid)
	if err != nil {
		t.Fatal(err)
	}
	died(t, r, map[string]any{"teleport": 1, stepInit: id}, stepInit, "teleport")
	good := died(t, r, nil)
	if err := os.WriteFile(filepath.Join(r.Path(), "sandboxes", "notes.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done, err := Collect(t.Context(), r, Sources{})
	if err == nil || !strings.Contains(err.Error(), `"teleport": written by another version`) || !strings.Contains(err.Error(), "notes.txt") {
		t.Errorf("error %v, want both the unknown step and the foreign file", err)
	}
	if len(done.Sandboxes) != 1 || done.Sandboxes[0] != good {
		t.Errorf("collected %q, want %q", done, good)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("a known effect beside an unknown one was not undone")
	}
	if n := sandboxes(t, r); n != 2 {
		t.Errorf("%d entries are left, want the bad sandbox and the foreign file", n)
	}
	// And again, with the same outcome: nothing of it is half done.
	if done, err := Collect(t.Context(), r, Sources{}); len(done.Sandboxes) != 0 || err == nil {
		t.Errorf("once more: %q, %v", done, err)
	}
}

// A start looks once at what it cannot do anything about, and gc each time.
func TestWhatIsOwedToPluginsHoldsUpNoStart(t *testing.T) {
	r := root(t)
	passing := Sources{Passing: true}
	died(t, r, map[string]any{stepLoans: []int{}}, stepLoans)
	failing := died(t, r, map[string]any{stepLoans: []int{}, "unknown": 1}, stepLoans, "unknown")
	if _, err := Collect(t.Context(), r, passing); !errors.Is(err, ErrNoPlugins) {
		t.Errorf("the first: %v", err)
	}
	if err := os.WriteFile(filepath.Join(r.Path(), "sandboxes", failing, "journal.jsonl"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done, err := Collect(t.Context(), r, passing)
	if err != nil || !slices.Equal(done.Sandboxes, []string{failing}) {
		t.Errorf("the second: %v, %v, want that what is not owed to plugins alone is tried again", done, err)
	}
	if _, err := Collect(t.Context(), r, Sources{}); !errors.Is(err, ErrNoPlugins) {
		t.Errorf("gc: %v", err)
	}
}

// Hooks and plugins may take away what the sandbox has had mounted.
func TestOthersAreToldWhenAllIsSettled(t *testing.T) {
	r := root(t)
	pid, ended := sleeper(t)
	id, err := identify(pid)
	if err != nil {
		t.Fatal(err)
	}
	died(t, r, map[string]any{stepLoans: []int{}, stepInit: id}, stepLoans, stepInit)
	dead, err := r.Dead(true)
	if err != nil || len(dead) != 1 {
		t.Fatalf("%d dead sandboxes, %v", len(dead), err)
	}
	u := &undoing{log: audit.NewLog(dead[0].ID, "")}
	if _, err := unwind(t.Context(), dead[0], u); !errors.Is(err, ErrNoPlugins) {
		t.Errorf("%v, want that nobody takes loans back", err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("what is undone here is not before")
	}
	if records, err := dead[0].Pending(); err != nil || len(records) != 1 || records[0].Step != stepLoans {
		t.Errorf("pending %v, %v", records, err)
	}
	if err := dead[0].Release(); err != nil {
		t.Error(err)
	}
}

func TestBadDataIsAnErrorAndStays(t *testing.T) {
	for _, step := range []string{stepInit, stepCgroup} {
		r := root(t)
		died(t, r, map[string]any{step: "no object"}, step)
		if done, err := Collect(t.Context(), r, Sources{}); err == nil || len(done.Sandboxes) != 0 || sandboxes(t, r) != 1 {
			t.Errorf("%s: collected %q, %v", step, done, err)
		}
	}
}

// A journal is trusted as far as its owner, and still no path in it may lead
// to what is no control group of ours.
func TestCgroupRecordsAreChecked(t *testing.T) {
	victim := t.TempDir()
	for _, rec := range []cgroups.Record{
		{Layout: cgroups.V2, Name: "nucleus-x", Paths: map[string]string{"": victim}},
		{Layout: cgroups.V2, Name: "../..", Paths: map[string]string{"": victim}},
		{Layout: cgroups.V2, Name: "nucleus-" + state.NewID(), Paths: map[string]string{"": victim}},
	} {
		r := root(t)
		died(t, r, map[string]any{stepCgroup: rec}, stepCgroup)
		if _, err := Collect(t.Context(), r, Sources{}); err == nil {
			t.Errorf("%+v was taken for a control group", rec)
		}
		if _, err := os.Stat(victim); err != nil {
			t.Fatalf("a directory that is no control group was removed: %v", err)
		}
	}
}

func TestCollectStopsWhenTimeIsOver(t *testing.T) {
	r := root(t)
	died(t, r, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if done, err := Collect(ctx, r, Sources{}); !errors.Is(err, context.Canceled) || len(done.Sandboxes) != 0 {
		t.Errorf("collected %q, %v, want context.Canceled", done, err)
	}
	if done, err := Collect(t.Context(), r, Sources{}); err != nil || len(done.Sandboxes) != 1 {
		t.Errorf("then with time: %q, %v", done, err)
	}
}

func TestCollectTellsWhatItDid(t *testing.T) {
	r := root(t)
	pid, _ := sleeper(t)
	id, err := identify(pid)
	if err != nil {
		t.Fatal(err)
	}
	sandbox := died(t, r, map[string]any{stepInit: id}, stepInit)
	var events bytes.Buffer
	if _, err := Collect(t.Context(), r, Sources{}, &events); err != nil {
		t.Fatal(err)
	}
	var types []string
	for line := range strings.Lines(events.String()) {
		var e audit.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Sandbox != sandbox || e.Name != "x" {
			t.Errorf("event of sandbox %q, name %q", e.Sandbox, e.Name)
		}
		types = append(types, string(e.Type))
	}
	if got := strings.Join(types, " "); got != "undo.done gc.collected" {
		t.Errorf("events %q, want undo.done gc.collected", got)
	}
}

// collector is a source of networks that removes two things.
type collector struct {
	network.Source
	keep map[string]network.Record
}

func (c *collector) Collect(_ context.Context, keep map[string]network.Record) ([]network.Collected, error) {
	c.keep = keep
	return []network.Collected{{Backend: "lan", Removed: []string{"link one", "\x1b[31mlink two"}}}, errors.New("link three is busy")
}

// A journal that says nothing of use keeps everybody from removing anything: what it
// names might be live.
func TestNetworksAreNotCollectedOnAGuess(t *testing.T) {
	r := root(t)
	d, err := r.Create(state.NewID(), "lives", true)
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{}
	var events bytes.Buffer
	if err := d.Announce(t.Context(), stepNetwork, network.Record{Backend: "lan"}); err != nil {
		t.Fatal(err)
	}
	done, err := Collect(t.Context(), r, Sources{Networks: c}, &events)
	if want := []network.Collected{{Backend: "lan", Removed: []string{"link one", " [31mlink two"}}}; !reflect.DeepEqual(done.Networks, want) {
		t.Errorf("%q, want %q", done.Networks, want)
	}
	if err == nil || !strings.Contains(err.Error(), "link three is busy") || len(c.keep) != 1 || c.keep[d.ID].Backend != "lan" {
		t.Errorf("%v, %+v", err, c.keep)
	}
	var e audit.Event
	if err := json.Unmarshal(events.Bytes(), &e); err != nil || e.Type != audit.NetworkCollected || e.Detail["backend"] != "lan" || fmt.Sprint(e.Detail["removed"]) != "[link one  [31mlink two]" {
		t.Errorf("%s, %v", events.String(), err)
	}
	c.keep = nil
	if err := d.Announce(t.Context(), stepNetwork, "of another version"); err != nil {
		t.Fatal(err)
	}
	if _, err := Collect(t.Context(), r, Sources{Networks: c}); err == nil || c.keep != nil {
		t.Errorf("%v, %+v", err, c.keep)
	}
}
