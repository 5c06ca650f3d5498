package pluginhost

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/pluginhost/rundir"
	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// A plugin that does not say in time that it is well makes way for another.
func TestWarmPluginThatIsNotWell(t *testing.T) {
	for _, name := range []string{"warm-hang-health", "warm-failed"} {
		t.Run(name, func(t *testing.T) {
			r := newWarmRig(t, nil)
			r.greet = greetTime
			first, _ := r.askOne(t, "one", name)
			inTime(t, 5*time.Second, func() {
				if second, _ := r.askOne(t, "two", name); second == first {
					t.Errorf("process %d is used again", second)
				}
			})
			gone(t, first)
		})
	}
}

// One that dies when it is in use is started anew, as any.
func TestWarmPluginThatDies(t *testing.T) {
	t.Run("in a call", func(t *testing.T) {
		r := newWarmRig(t, nil)
		first, _ := r.askOne(t, "one", "warm-dies-second")
		second, _ := r.askOne(t, "two", "warm-dies-second")
		if second == first {
			t.Error("the dead serve")
		}
	})
	t.Run("before a call", func(t *testing.T) {
		r := newWarmRig(t, nil)
		h := &Hooks{Host: r.Host}
		call := func(sandbox string, between func(pid int)) (pid int) {
			t.Helper()
			c, err := h.Open(t.Context(), sandbox, want(t, "warm-hooks", ""))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			between(c.(*hooksCaller).p.Pid())
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			a, err := c.Call(ctx, hooks.Event{Boundary: hooks.PreFS})
			if who := a.Mutation.AddEnv["WHO"]; err != nil || who != sandbox+"/warm-hooks" {
				t.Fatalf("it was called for %q: %v", who, err)
			}
			return pidOf(t, a.Mutation.AddEnv["PID"])
		}
		first := call("one", func(int) {})
		if second := call("two", func(int) {}); second != first {
			t.Errorf("process %d, and %d was kept", second, first)
		}
		third := call("three", func(pid int) {
			if pid != first {
				t.Errorf("process %d, and %d was kept", pid, first)
			}
			kill(t, pid)
		})
		if third == first {
			t.Error("the dead serve")
		}
		if fourth := call("four", func(int) {}); fourth != third {
			t.Errorf("process %d, and %d was kept", fourth, third)
		}
	})
}

// What is not to be kept ends as ever.
func TestNotKeptWarm(t *testing.T) {
	none := func(t *testing.T, r *rig) {
		t.Helper()
		if left, _ := filepath.Glob(filepath.Join(r.run, "*")); len(left) != 0 {
			t.Errorf("%q is left", left)
		}
	}
	t.Run("another lifetime", func(t *testing.T) {
		r := newWarmRig(t, nil)
		if _, err := r.fetch(t.Context(), "good"); err != nil {
			t.Fatal(err)
		}
		none(t, r)
	})
	t.Run("the operator does not want it", func(t *testing.T) {
		r := newWarmRig(t, nil)
		r.operator().KeepWarm = 0
		pid, _ := r.askOne(t, "one", "warm")
		none(t, r)
		gone(t, pid)
	})
	t.Run("another service", func(t *testing.T) {
		for _, as := range []manifest.Service{"", manifest.Network} {
			r := newWarmRig(t, nil)
			p, err := r.Host.Start(t.Context(), "warm", as)
			if err != nil {
				t.Fatal(err)
			}
			d, err := r.Describe(t.Context(), p)
			if err == nil {
				err = r.configureSelf(t.Context(), p, d)
			}
			p.Close()
			if err != nil {
				t.Error(err)
			}
			none(t, r)
		}
	})
	t.Run("nobody remembers what it is", func(t *testing.T) {
		r := newWarmRig(t, nil)
		r.askOne(t, "one", "warm")
		first := r.only(t).PID
		r.o.Schemas = nil
		if second, _ := r.askOne(t, "two", "warm"); second == first {
			t.Error("it was found by its name")
		}
	})
	t.Run("it was down", func(t *testing.T) {
		r := newWarmRig(t, nil)
		if _, err := fetchOne(t.Context(), r.Host, "one", "warm-down"); errs.Of(err).Code != errs.Unavailable {
			t.Errorf("error %v", err)
		}
		none(t, r)
	})
	t.Run("it ends with its host all the same", func(t *testing.T) {
		r := newWarmRig(t, nil)
		first, _ := r.askOne(t, "one", "ends-with-all")
		gone(t, first)
		if second, _ := r.askOne(t, "two", "ends-with-all"); second == first {
			t.Error("the dead serve")
		}
	})
	// An error about a job is none about the process.
	r := newWarmRig(t, nil)
	if _, err := fetchOne(t.Context(), r.Host, "one", "warm-absent"); err == nil {
		t.Error("no error")
	}
	if pid := r.only(t).PID; !alive(pid) {
		t.Errorf("process %d has ended", pid)
	}
}

// A plugin is ended by the last who uses it, and never under another's hands.
func TestWarmPluginIsShared(t *testing.T) {
	r := newWarmRig(t, nil)
	first, _ := r.askOne(t, "one", "warm")
	start := func() *Plugin {
		p, err := r.Start(t.Context(), "warm")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	a, b := start(), start()
	if a.Pid() != first || b.Pid() != first {
		t.Fatalf("processes %d and %d, and %d was kept", a.Pid(), b.Pid(), first)
	}
	// One who is long about it is no idle plugin.
	r.only(t).touch(t, -2*time.Hour)
	if err := rundir.Sweep([]string{r.run}); err != nil || !alive(first) {
		t.Fatalf("swept in use: %v", err)
	}
	a.spoilt.Store(true)
	a.Close()
	if _, err := r.Describe(t.Context(), b); err != nil || !alive(first) {
		t.Fatalf("it was ended under another's hands: %v", err)
	}
	if c, _ := r.askOne(t, "two", "warm"); c == first {
		t.Error("who is spoilt is used again")
	}
	b.Close()
	gone(t, first)
	if rec := r.only(t); rec.PID == first {
		t.Error("its record is still there")
	}
}

// No process serves for ever.
func TestWarmPluginIsUsedSoOften(t *testing.T) {
	r := newWarmRig(t, nil)
	first, _ := r.askOne(t, "one", "warm")
	rec := r.only(t)
	rec.Uses = rundir.MaxUses - 1
	rec.write(t)
	if last, _ := r.askOne(t, "two", "warm"); last != first {
		t.Fatalf("process %d, and %d was kept", last, first)
	}
	gone(t, first)
	if len(r.records(t)) != 0 {
		t.Error("its record is still there")
	}
}

// Who stays longer than it was told to is ended by the next start, of whatever plugin.
func TestWarmPluginThatDoesNotGo(t *testing.T) {
	r := newWarmRig(t, nil)
	first, _ := r.askOne(t, "one", "warm-liar")
	if second, _ := r.askOne(t, "two", "warm-liar"); second != first {
		t.Fatalf("process %d, and %d was kept", second, first)
	}
	r.only(t).touch(t, -2*time.Hour)
	if _, err := r.fetch(t.Context(), "good"); err != nil {
		t.Fatal(err)
	}
	if alive(first) {
		t.Error("it is still there")
	}
}

// A loan keeps its plugin while the sandbox lives, and leaves it to others.
func TestWarmPluginThatLends(t *testing.T) {
	dir, block := ledger(t)
	r := newWarmRig(t, map[string]string{"warm-bank": block})
	borrow := func(sandbox string) secret.Loan {
		w := want(t, "warm-bank", fmt.Sprintf("ledger = %q\ntime = \"1s\"\npin = %q\n", dir, sandbox))
		got, err := (&Secrets{Host: r.Host}).Fetch(t.Context(), secret.Request{Sandbox: sandbox, Groups: []secret.Group{{Provider: "warm-bank", Refs: []secret.Ref{{Name: "a", Config: w.Config}}}}})
		if err != nil || len(got.Loans) != 1 {
			t.Fatalf("%+v, %v", got, err)
		}
		got.Values["a"].Close()
		return got.Loans[0]
	}
	one, two := borrow("one"), borrow("two")
	pid := r.only(t).PID
	if err := one.End(t.Context()); err != nil {
		t.Error(err)
	}
	one.Close()
	lost := keep(t, two, func([]error) bool { return count(entries(t, dir), "renewed lease-a") >= 2 })
	if len(lost) > 0 {
		t.Errorf("lost %v", lost)
	}
	if err := two.End(t.Context()); err != nil {
		t.Error(err)
	}
	two.Close()
	for _, line := range entries(t, dir) {
		if !strings.Contains(line, fmt.Sprintf("(%d, ", pid)) {
			t.Errorf("%q is of another process than %d", line, pid)
		}
	}
	if got := entries(t, dir); count(got, fmt.Sprintf("ended lease-a (%d, %q)", pid, "one")) != 1 || count(got, fmt.Sprintf("ended lease-a (%d, %q)", pid, "two")) != 1 {
		t.Errorf("ledger %q", got)
	}
	if !alive(pid) || r.only(t).PID != pid {
		t.Error("it was not kept")
	}
}
