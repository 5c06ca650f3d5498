package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// rig is a host for one test. When the test ends, it makes sure that nothing is left
// of the plugins: no process, file, descriptor or thread.
type rig struct {
	*Host
	run  string // the run directory
	mark string // in the environment of all that the plugins start
	dir  string // for programs of the test's own
}

// newRig takes what the operator says of plugins: lines of their blocks, by name.
func newRig(t *testing.T, blocks map[string]string) *rig {
	t.Helper()
	base, err := os.MkdirTemp("", "ph") // short, and others can enter it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	r := &rig{run: filepath.Join(base, "run"), dir: filepath.Join(base, "plugins"), mark: "PLUGINHOST_TEST=" + base}
	for _, d := range []string{r.run, r.dir} {
		if err := errors.Join(os.Mkdir(d, 0o755), os.Chmod(base, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	r.Host = New(Options{Finder: finder(t, "", programs, r.dir), RunDirs: []string{r.run}, Version: "1", StartTime: testutil.Patient(5 * time.Second)})
	r.o.Finder.Digests = &DigestCache{Dir: filepath.Join(programs, "digests")}
	var conf strings.Builder
	for n := range behaviours {
		fmt.Fprintf(&conf, "plugin %q {\n env = { PLUGINHOST_TEST = %q }\n %s\n}\n", n, base, blocks[n])
	}
	c, diags := hostconfig.Parse("nucleus.hcl", []byte(conf.String()))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	r.o.Finder.Host = c
	open := openFDs(t)
	t.Cleanup(func() {
		eventually(t, "processes", func() string { return strings.Join(r.marked(), ", ") })
		eventually(t, "files", func() string {
			left, _ := filepath.Glob(filepath.Join(r.run, "*"))
			return strings.Join(left, ", ")
		})
		eventually(t, "threads", threads)
		eventually(t, "descriptors", func() string {
			if n := openFDs(t); n > open {
				return fmt.Sprintf("%d, and before %d", n, open)
			}
			return ""
		})
	})
	return r
}

// script adds a program of the test's own.
func (r *rig) script(t *testing.T, name, text string) {
	t.Helper()
	write(t, filepath.Join(r.dir, Prefix+name), "#!/bin/sh\n"+text, 0o755)
	r.o.Finder.Host.Plugins = append(r.o.Finder.Host.Plugins, hostconfig.Plugin{Name: name, Env: map[string]string{"PLUGINHOST_TEST": strings.TrimPrefix(r.mark, "PLUGINHOST_TEST=")}})
}

// marked are the processes that the plugins have started, and they themselves. One
// that hides its environment, as providers of secrets do, is seen by root only.
func (r *rig) marked() []string {
	var out []string
	procs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), r.mark+"\x00") {
			out = append(out, filepath.Base(filepath.Dir(p)))
		}
	}
	return out
}

// threads are those that a host has started.
func threads() string {
	b := make([]byte, 1<<20)
	var out []string
	for _, g := range strings.Split(string(b[:runtime.Stack(b, true)]), "\n\n") {
		if strings.Contains(g, "hashicorp/go-plugin") || strings.Contains(g, "google.golang.org/grpc") || strings.Contains(g, "pluginhost.(*process)") {
			out = append(out, g)
		}
	}
	return strings.Join(out, "\n")
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// eventually waits until nothing is left.
func eventually(t *testing.T, what string, left func() string) {
	t.Helper()
	end := time.Now().Add(testutil.Patient(2 * time.Second))
	for {
		s := left()
		if s == "" {
			return
		}
		if time.Now().After(end) {
			t.Errorf("left: %s: %s", what, s)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ") && syscall.Kill(pid, 0) == nil
}

func pidOf(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Start starts a provider of secrets.
func (r *rig) Start(ctx context.Context, name string) (*Plugin, error) {
	return r.Host.Start(ctx, name, manifest.Secrets)
}

// fetch asks a provider for secrets a and b, as the core does.
func (r *rig) fetch(ctx context.Context, name string) (map[string]string, error) {
	s := &Secrets{Host: r.Host}
	got, err := s.Fetch(ctx, secret.Request{Sandbox: "box", Groups: []secret.Group{{Provider: name, Refs: []secret.Ref{{Name: "a"}, {Name: "b"}}}}})
	out := map[string]string{}
	for n, v := range got.Values {
		b := make([]byte, v.Size())
		if _, rerr := unix.Pread(v.FD(), b, 0); rerr != nil {
			return nil, rerr
		}
		out[n] = string(b)
		v.Close()
	}
	return out, err
}

// hintOf is what an error suggests, or what the plugin said last.
func hintOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

// inTime fails if something takes too long: no plugin holds its host.
func inTime(t *testing.T, limit time.Duration, f func()) {
	t.Helper()
	begun := time.Now()
	f()
	if took := time.Since(begun); took > testutil.Patient(limit) {
		t.Errorf("it took %s, and may take %s", took, limit)
	}
}
