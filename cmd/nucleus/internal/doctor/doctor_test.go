package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/host"
	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	host.MaybeChild()
	os.Exit(m.Run())
}

func sample() Report {
	return Report{
		Host: fact.Host{
			Kernel: "6.1.0-56-amd64", Arch: "amd64", EUID: 1000, EGID: 1000, UserName: "alice", CPUs: 2, LandlockABI: 2,
			Cgroup:    fact.Cgroup{Layout: "v2", Controllers: map[string]fact.Feature{"memory": {State: fact.Unavailable}}},
			Features:  map[string]fact.Feature{"landlock": {Name: "landlock"}},
			FreeSubID: fact.IDRange{Start: 100000, Count: 65536},
		},
		Features: []fact.Feature{
			{Name: "userns", State: fact.Unavailable, Why: "AppArmor keeps capabilities away", Since: "3.8", Remedy: "give Nucleus a profile:\ncat <<'EOF'\nprofile\nEOF"},
			{Name: "landlock", State: fact.Available, Detail: "ABI 2", Since: "5.13"},
			{Name: "landlock.scope", State: fact.Unavailable, Why: "the kernel's Landlock ABI is 2, this needs 6", Since: "6.12", Remedy: "boot Linux 6.12 or newer"},
			{Name: "lockdown", Why: "securityfs is not mounted"},
			{Name: "userns.idmap.subid", State: fact.Unavailable, Why: "newuidmap says \x1b[31mno\a"},
		},
		Networks: []host.NetworkVerdict{
			{Plugin: "netbridge", State: fact.Unavailable, Missing: []string{"root", "veth"}},
			{Plugin: "netbridge", Path: "names", State: fact.Unavailable, Missing: []string{"root", "veth", "nftables.numgen"}},
			{Plugin: "netuserspace", Path: "kernel", State: fact.Unknown, Unsure: []string{"tproxy.userns"}},
			{Plugin: "netuserspace", Path: "netstack", State: fact.Available},
		},
		Runtimes: []host.RuntimeVerdict{
			{Plugin: "gvisor", State: fact.Unavailable, Missing: []string{"userns", "runsc"}, Why: "there is no /usr/bin/runsc", Remedy: "install it"},
			{Plugin: "another", State: fact.Available, Program: "/usr/bin/another"},
		},
		Modes: []host.ModeVerdict{
			{Mode: "agent", State: fact.Available, Degraded: []string{"landlock.scope"}},
			{Mode: "strict-agent", State: fact.Unavailable, Missing: []string{"landlock.scope"}, Unsure: []string{"cgroup"}},
			{Mode: "production", State: fact.Unknown, Unsure: []string{"cgroup"}},
		},
	}
}

func TestOutput(t *testing.T) {
	for name, asJSON := range map[string]bool{"table.txt": false, "report.json": true} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			exit, err := Run(&b, asJSON, sample())
			if err != nil || exit != ExitSome {
				t.Fatalf("exit %d, %v", exit, err)
			}
			golden := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
			}
		})
	}
}

func TestNothingFromOutsideSteersTheTerminal(t *testing.T) {
	r := sample()
	r.Host.UserName, r.Host.Kernel = "al\x1bice", "6\r.1"
	r.Features[0].Remedy = "one\ntwo\x1b]0;title\a"
	var b strings.Builder
	if _, err := Run(&b, false, r); err != nil {
		t.Fatal(err)
	}
	if i := strings.IndexFunc(b.String(), func(c rune) bool { return c < ' ' && c != '\n' }); i >= 0 {
		t.Errorf("control character in %q", b.String())
	}
}

func TestExitStatus(t *testing.T) {
	for _, tc := range []struct {
		states [3]fact.State
		want   int
	}{
		{[3]fact.State{fact.Available, fact.Available, fact.Available}, ExitAll},
		{[3]fact.State{fact.Available, fact.Available, fact.Unknown}, ExitSome},
		{[3]fact.State{fact.Available, fact.Unavailable, fact.Unavailable}, ExitSome},
		{[3]fact.State{fact.Unavailable, fact.Unknown, fact.Unavailable}, ExitNone},
		{[3]fact.State{}, ExitNone},
	} {
		r := Report{}
		for _, s := range tc.states {
			r.Modes = append(r.Modes, host.ModeVerdict{State: s})
		}
		if got := r.exit(); got != tc.want {
			t.Errorf("%q: exit %d, want %d", tc.states, got, tc.want)
		}
	}
}

func TestCollectHere(t *testing.T) {
	none := fact.Cgroup{Layout: "none", Why: "no cgroup file system is mounted"}
	r, err := Collect(t.Context(), Options{Cgroup: none, StateRoot: "/run/nucleus", Dirs: []string{"/usr"}})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	exit, err := Run(&b, true, r)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Version  int
		Exit     int
		Host     map[string]any
		Features []struct{ Name, State, Why string }
		Modes    []struct {
			Mode     string
			CouldRun string `json:"could_run"`
			Missing  []string
		}
	}
	if err := json.Unmarshal([]byte(b.String()), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Version != Version || doc.Exit != exit || len(doc.Modes) != 3 {
		t.Errorf("got %+v", doc)
	}
	for _, m := range doc.Modes[1:] {
		if m.CouldRun != "no" {
			t.Errorf("%s could run without any cgroup: %+v", m.Mode, m)
		}
	}
	if _, ok := doc.Host["features"]; ok {
		t.Error("features are there twice")
	}
	for _, f := range doc.Features {
		switch f.State {
		case "available":
		case "unavailable", "unknown":
			if f.Why == "" {
				t.Errorf("%s has no reason", f.Name)
			}
		default:
			t.Errorf("%s has state %q", f.Name, f.State)
		}
	}
}

func TestCollectStopsWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Collect(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestAFailedWriteIsReported(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		if _, err := Run(full{}, asJSON, sample()); err == nil {
			t.Errorf("json %v: no error", asJSON)
		}
	}
}
