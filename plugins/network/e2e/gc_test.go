package e2e

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// otherRoot is the same host, backend and user with another state root.
func (s *site) otherRoot() *site {
	s.t.Helper()
	o := &site{t: s.t, lab: s.lab, who: root(s.t), backend: s.backend, stuff: s.stuff}
	o.state = filepath.Join(o.who.run, "nucleus")
	o.configure("")
	return o
}

// What a sandbox has left of which nothing is written down goes with nucleus gc: here the
// state root has lost it, and somebody holds its network namespace, so that the kernel has
// not removed its link. A live sandbox stays connected, and so does one of another state
// root, of which this one knows nothing.
func TestGCRemovesWhatNoJournalNames(t *testing.T) {
	netlab.Needs(t)
	s := newSite(t, setups["netbridge/root"])
	publish(s.lab)
	s.lab.Echo(t, 443)
	before, files := s.settled()
	other := s.otherRoot()
	probes := []probe.Probe{
		{ID: "first", Kind: probe.TCP, To: "allowed.example:443", Alone: true},
		{ID: "wait", Kind: probe.Sleep, Wait: 8 * time.Second, Alone: true},
		{ID: "named", Kind: probe.TCP, To: "allowed.example:443"},
		{ID: "block", Kind: probe.UDP, To: "93.184.216.130:443"},
		{ID: "denied", Kind: probe.TCP, To: "93.184.216.99:443"},
	}

	lost := s.start(job{network: policy, probes: probes})
	lost.result("first")
	netlab.Of(t, lost.workload()) // until the end of the test
	if err := lost.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	lost.wait()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && s.anyProcess(); {
		time.Sleep(20 * time.Millisecond)
	}
	for _, pattern := range []string{"sandboxes/*", "names/*"} {
		found, err := filepath.Glob(filepath.Join(s.state, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("%q, %v", found, err)
		}
		if pattern == "sandboxes/*" {
			defer removeGroups(t, "nucleus-"+filepath.Base(found[0]))
		}
		if err := os.RemoveAll(found[0]); err != nil {
			t.Fatal(err)
		}
	}

	lives := []*running{s.start(job{network: policy, probes: probes}), other.start(job{network: policy, probes: probes})}
	for _, r := range lives {
		r.result("first")
	}
	links := func() (names []string) {
		s.lab.Host.Do(func() {
			all, err := net.Interfaces()
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range all {
				if strings.HasPrefix(x.Name, "nkp") {
					names = append(names, x.Name)
				}
			}
		})
		return names
	}
	had := links()
	if len(had) != 3 {
		t.Fatalf("links of sandboxes: %q, want 3", had)
	}
	said := s.gc()
	left := links()
	if len(left) != 2 {
		t.Errorf("links of sandboxes after gc: %q, want those of the 2 that live", left)
	}
	gone := slices.DeleteFunc(had, func(name string) bool { return slices.Contains(left, name) })
	if len(gone) != 1 || !strings.HasPrefix(said, "netbridge: link "+gone[0]+"\n") {
		t.Errorf("gc says %q, and %q is gone", said, gone)
	}
	for i, r := range lives {
		o := r.wait()
		if o.code != 0 || !o.results["named"].OK || !o.results["block"].OK || o.results["denied"].OK {
			t.Errorf("sandbox %d, beside gc: exit code %d: %s: %+v", i, o.code, o.stderr, o.results)
		}
	}
	s.left(before, files)
}

// removeGroups removes the empty control groups with this name, which gc knows nothing of
// either.
func removeGroups(t *testing.T, name string) {
	t.Helper()
	var dirs []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == name {
			dirs = append(dirs, path)
		}
		return nil // groups come and go meanwhile
	})
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
}
