package chaos

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// amount is how many a test makes: few, unless a variable says otherwise
// (docs/testing.md).
func amount(t *testing.T, variable string, few int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return few
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < few {
		t.Fatalf("%s=%q: a number from %d", variable, text, few)
	}
	return n
}

// maxPSS is what a sandbox may cost beside its workload: its supervisor and its init,
// with their part of what they share.
const maxPSS = 4 << 20

func TestManyDetachedAtOnce(t *testing.T) {
	s := newSite(t, testutil.Self(t))
	names := make([]string, amount(t, "NUCLEUS_SCALE", 40))
	began := time.Now()
	for n := range names {
		names[n] = fmt.Sprintf("many-%d", n)
		if err := s.ask("run", "-detach", "-name", names[n], "--", "/bin/sleep", "3600"); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d started in %s", len(names), time.Since(began).Round(time.Millisecond))
	var took []time.Duration
	var listed map[string]live
	for range 9 {
		began := time.Now()
		listed = s.ps()
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("ps over them: %s in the middle, %s at best", took[len(took)/2], took[0])
	sum, most := 0, 0
	for _, name := range names {
		x := listed[name]
		if x.Status != "running" {
			t.Errorf("ps says %q of %s", x.Status, name)
			continue
		}
		pss := field(t, x.Supervisor, "smaps_rollup", "Pss:") + field(t, x.InitPid, "smaps_rollup", "Pss:")
		sum, most = sum+pss, max(most, pss)
	}
	if len(listed) != len(names) {
		t.Errorf("ps lists %d, want %d", len(listed), len(names))
	}
	mean := sum / len(names)
	t.Logf("PSS of supervisor and init: %.2f MiB in the mean, %.2f at most", float64(mean)/(1<<20), float64(most)/(1<<20))
	if mean > maxPSS {
		t.Errorf("a sandbox costs %d bytes in the mean, want at most %d", mean, maxPSS)
	}
	began = time.Now()
	for some := range slices.Chunk(names, 20) {
		s.must(append([]string{"stop"}, some...)...)
	}
	t.Logf("stopped in %s", time.Since(began).Round(time.Millisecond))
	s.nothingLeft("all stopped")
}

// field reads a size, in bytes, from a file of a process.
func field(t *testing.T, pid int, file, name string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), file))
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) > 1 && f[0] == name {
			kib, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no %s in %s", name, b)
	return 0
}

// held is what a process holds of what could be leaked.
type held struct{ files, threads, mappings, memory int }

func holds(t *testing.T, pid int) held {
	t.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	count := func(name string) int {
		entries, err := os.ReadDir(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	maps, err := os.ReadFile(filepath.Join(dir, "maps"))
	if err != nil {
		t.Fatal(err)
	}
	return held{count("fd"), count("task"), bytes.Count(maps, []byte("\n")), field(t, pid, "status", "RssAnon:")}
}

// slack is how much more than at first a process may hold in the end: threads come and
// go, and so does garbage; Go makes its two descriptors for timers when it needs them.
var slack = held{files: 6, threads: 8, mappings: 60, memory: 6 << 20}

func (h held) grown(from held) bool {
	return h.files > from.files+slack.files || h.threads > from.threads+slack.threads ||
		h.mappings > from.mappings+slack.mappings || h.memory > from.memory+slack.memory
}

// soak goes through cycles, and sees that no process holds more at their end than after
// the first ones, and that no file is left.
func (s *site) soak(pids map[string]int, cycle func(n int) error) {
	s.t.Helper()
	cycles := amount(s.t, "NUCLEUS_SOAK", 30)
	warm := min(cycles/3, 200)
	first := map[string]held{}
	files := 0
	began := time.Now()
	for n := range cycles {
		if err := cycle(n); err != nil {
			s.t.Fatalf("cycle %d: %v", n, err)
		}
		if n%50 == 0 {
			reapAdopted(s.t) // supervisors that have ended
		}
		last := n == cycles-1
		if n != warm && !last && (n+1)%max(cycles/10, 1000) != 0 {
			continue
		}
		now := 0
		err := filepath.WalkDir(s.who.Dir, func(path string, _ fs.DirEntry, _ error) error {
			if !strings.HasSuffix(path, audit.FileName+audit.OldSuffix) { // older events, once for each sandbox
				now++
			}
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
		for who, pid := range pids {
			h := holds(s.t, pid)
			s.t.Logf("after %d cycles, %s: %s holds %+v; %d files", n+1, time.Since(began).Round(time.Second), who, h, now)
			switch {
			case n == warm:
				first[who] = h
			case last && h.grown(first[who]):
				s.t.Errorf("%s has grown from %+v to %+v in %d cycles", who, first[who], h, cycles-warm)
			}
		}
		if n == warm {
			files = now
		} else if last && now > files {
			s.t.Errorf("%d files, %d after the first cycles", now, files)
		}
	}
}

// Sandboxes come and go beside one that stays.
func TestManyCyclesOfSandboxes(t *testing.T) {
	s := newSite(t, testutil.Self(t))
	s.must("run", "-detach", "-name", "stays", "--", "/bin/sleep", "36000")
	x := s.inspect("stays")
	s.soak(map[string]int{"the supervisor of one beside": x.Supervisor, "its init": x.InitPid}, func(n int) error {
		for _, args := range [][]string{{"run", "-detach", "-name", "comes", "--", "/bin/sleep", "3600"}, {"exec", "comes", "/bin/true"}, {"stop", "comes"}} {
			if err := s.ask(args...); err != nil {
				return err
			}
		}
		return nil
	})
	s.must("stop", "stays")
}

// Commands come and go in one sandbox: with and without a terminal, some of which
// cannot be executed.
func TestManyCyclesOfCommands(t *testing.T) {
	s := newSite(t, testutil.Self(t))
	s.must("run", "-detach", "-name", "target", "--", "/bin/sleep", "36000")
	x := s.inspect("target")
	s.soak(map[string]int{"the supervisor": x.Supervisor, "init": x.InitPid}, func(n int) error {
		switch {
		case n%10 == 3:
			return s.ask("exec", "-tty", "target", "/bin/true")
		case n%10 == 5:
			return s.ask("exec", "-detach", "target", "/bin/true")
		case n%10 == 7:
			if err := s.ask("exec", "target", "/no/such/program"); err == nil {
				return fmt.Errorf("what is not there was executed")
			}
			return nil
		}
		return s.ask("exec", "target", "/bin/true")
	})
	s.must("stop", "target")
}
