package pluginhost

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/pluginhost/rundir"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// devour takes so many MiB and keeps them.
func devour(mib int) string {
	keep := make([][]byte, 0, mib)
	for range mib {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		keep = append(keep, b)
	}
	return fmt.Sprint(len(keep))
}

// storm starts processes until it can't, and tells how many there were. It would
// fill the table of the host if it had no limit: so it looks first, and does not go
// far beyond.
func storm() string {
	if err := limitedTasks(maxTasks); err != nil {
		return err.Error()
	}
	var got []*os.Process
	defer func() {
		for _, p := range got {
			_ = p.Kill()
			_, _ = p.Wait()
		}
	}()
	for len(got) < maxTasks+20 {
		p, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{})
		if err != nil {
			return fmt.Sprintf("%d and no more", len(got))
		}
		got = append(got, p)
	}
	return fmt.Sprint(len(got))
}

// limitedTasks fails unless the group of this process itself has a limit of tasks of
// at most n.
func limitedTasks(n int) error {
	f, err := cgroups.Detect("")
	if err != nil {
		return err
	}
	dir := f.Own[cgroups.Pids]
	if f.Layout == cgroups.V2 {
		dir = f.Own[""]
	}
	b, err := os.ReadFile(filepath.Join(dir, "pids.max"))
	if err != nil {
		return err
	}
	if limit, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || limit > n {
		return fmt.Errorf("the limit of tasks is %q", b)
	}
	return nil
}

// groupsOf gives the directories of the plugin's groups that a process is in.
func groupsOf(t *testing.T, pid int) []string {
	t.Helper()
	f, err := cgroups.Detect("")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		p := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, c := range strings.Split(p[1], ",") {
			if parent := f.Parents[c]; parent != "" && strings.HasPrefix(filepath.Base(p[2]), rundir.GroupPrefix) {
				out = append(out, filepath.Join(parent, filepath.Base(p[2])))
			}
		}
	}
	return out
}

// procsBeside gives the processes in the groups of one.
func procsBeside(t *testing.T, pid int) []int {
	t.Helper()
	var out []int
	for _, dir := range groupsOf(t, pid) {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range strings.Fields(string(b)) {
			out = append(out, pidOf(t, s))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func TestGroup(t *testing.T) {
	testutil.Needs(t, testutil.CgroupController("pids"), testutil.CgroupController("memory"))
	for _, as := range []manifest.Service{manifest.Secrets, manifest.Hooks, "network"} {
		t.Run(string(as), func(t *testing.T) {
			r := newRig(t, nil)
			p, err := r.Host.Start(t.Context(), "good", as)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			dirs := groupsOf(t, p.Pid())
			if len(dirs) == 0 {
				t.Fatal("it is in no group of its own")
			}
			limits := map[string]string{}
			for _, dir := range dirs {
				for _, name := range []string{"pids.max", "memory.max", "memory.limit_in_bytes"} {
					if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
						limits[strings.Split(name, ".")[0]] = strings.TrimSpace(string(b))
					}
				}
			}
			if limits["pids"] != "256" || limits["memory"] != strconv.FormatInt(memoryOf(as), 10) {
				t.Errorf("limits %v", limits)
			}
			if own := procsBeside(t, p.Pid()); !slices.Equal(own, []int{p.Pid()}) {
				t.Errorf("processes %v, want %d alone", own, p.Pid())
			}
			p.Close()
			for _, dir := range dirs {
				if _, err := os.Stat(dir); err == nil {
					t.Errorf("group %s is left", dir)
				}
			}
		})
	}
}

func TestGroupLimitsMemory(t *testing.T) {
	testutil.Needs(t, testutil.CgroupController("memory"))
	t.Run("as it is", func(t *testing.T) {
		r := newRig(t, nil)
		inTime(t, 20*time.Second, func() {
			_, err := r.fetch(t.Context(), "glutton")
			if err == nil || !strings.Contains(err.Error(), "it ended (signal: killed: its processes used more than 256 MiB of memory)") {
				t.Errorf("error %v", err)
			}
			if hint := hintOf(err); !strings.Contains(hint, `memory = "512MiB"`) {
				t.Errorf("hint %q", hint)
			}
		})
	})
	t.Run("at its start", func(t *testing.T) {
		r := newRig(t, map[string]string{"glutton-at-once": ""})
		_, err := r.Start(t.Context(), "glutton-at-once")
		if err == nil || !strings.Contains(err.Error(), "it ended before it was ready (signal: killed: its processes used more than 256 MiB of memory)") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("more allowed", func(t *testing.T) {
		r := newRig(t, map[string]string{"glutton": `memory = "4GiB"`}) // the race detector takes several times as much
		if got, err := r.fetch(t.Context(), "glutton"); err != nil || got["a"] != "300" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestGroupLimitsTasks(t *testing.T) {
	testutil.Needs(t, testutil.CgroupController("pids"))
	r := newRig(t, nil)
	got, _ := r.ask(t, manifest.Secrets, "storm")
	n, err := strconv.Atoi(strings.TrimSuffix(got, " and no more"))
	if err != nil || n < 100 || n > maxTasks || !strings.HasSuffix(got, " and no more") {
		t.Errorf("it started %s", got)
	}
}

// A host without groups starts plugins all the same.
func TestNoGroup(t *testing.T) {
	r := newRig(t, nil)
	r.cgroups = func() (cgroups.Facts, error) { return cgroups.Facts{Why: "a test"}, nil }
	p, err := r.Start(t.Context(), "good")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if dirs := groupsOf(t, p.Pid()); len(dirs) > 0 {
		t.Errorf("it is in %q", dirs)
	}
}

// daemon leaves a process that no process group or session ties to its parent.
func daemon() {
	if err := exec.Command("/bin/sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &").Run(); err != nil {
		crash()
	}
	// The shell's child is its own session's first a moment later.
	time.Sleep(50 * time.Millisecond)
}
