package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// attempts tells what comes of what a plugin may and may not do: a line for each.
func attempts() string {
	base := os.Getenv("PLUGINHOST_TEST")
	write := func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) }
	socket := func(domain int) error {
		fd, err := unix.Socket(domain, unix.SOCK_STREAM, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	var out strings.Builder
	for _, a := range []struct {
		name string
		do   func() error
	}{
		{"read", func() error { _, err := os.ReadFile("/etc/passwd"); return err }},
		{"execute", func() error { return exec.Command("/bin/true").Run() }},
		{"write null", func() error { return write(os.DevNull) }},
		{"write own", func() error { return write(filepath.Join(os.TempDir(), "file")) }},
		{"write open", func() error { return write(filepath.Join(base, "open", "file")) }},
		{"change open", func() error { return os.Truncate(filepath.Join(base, "open", "there"), 0) }},
		{"remove open", func() error { return os.Remove(filepath.Join(base, "open", "there")) }},
		{"write tmp", func() error { return write(filepath.Join("/tmp", filepath.Base(base)+"-plugin")) }},
		{"unix", func() error { return socket(unix.AF_UNIX) }},
		{"inet", func() error { return socket(unix.AF_INET) }},
		{"inet6", func() error { return socket(unix.AF_INET6) }},
		{"packet", func() error { return socket(unix.AF_PACKET) }},
		{"abstract", func() error {
			c, err := net.Dial("unix", "@"+base)
			if err == nil {
				_ = c.Close()
			}
			return err
		}},
		{"signal", func() error { return unix.Kill(os.Getppid(), 0) }},
		{"userns", func() error { return unix.Unshare(unix.CLONE_NEWUSER | unix.CLONE_FS) }},
	} {
		err := a.do()
		var errno unix.Errno
		word := "ok"
		if errors.As(err, &errno) {
			word = unix.ErrnoName(errno)
		} else if err != nil {
			word = err.Error()
		}
		fmt.Fprintf(&out, "%s: %s\n", a.name, word)
	}
	return out.String()
}

// ask has a plugin that was started for a service answer as a provider.
func (r *rig) ask(t *testing.T, as manifest.Service, name string) (string, *Plugin) {
	t.Helper()
	p, err := r.Host.Start(t.Context(), name, as)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Patient(time.Minute))
	defer cancel()
	c := client.New(p.Conn())
	if _, err := c.Info(ctx, "1", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Configure(ctx, client.Configuration{}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Secrets(nil).Fetch(ctx, secrets.Call{RequestID: "r", SandboxID: "s", Attempt: 1}, []secrets.Ref{{Name: "a", InstanceID: "a"}})
	if err != nil {
		t.Fatal(err)
	}
	return string(got[0].Value), p
}

// open makes a directory that everybody may write to, with a file that everybody may
// write, and gives it.
func (r *rig) open(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(filepath.Dir(r.dir), "open")
	there := filepath.Join(dir, "there")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777), os.WriteFile(there, []byte("x"), 0o600), os.Chmod(there, 0o666)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// landlock is the kernel's, 0 for none.
func landlock(t *testing.T) int {
	t.Helper()
	abi, err := llsys.LandlockGetABIVersion()
	if err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	}
	return abi
}

func TestBox(t *testing.T) {
	free := map[string]string{
		"read": "ok", "execute": "ok", "write null": "ok", "write own": "ok", "unix": "ok", "inet": "ok", "inet6": "ok",
		"write open": "EACCES", "change open": "EACCES", "remove open": "EACCES", "write tmp": "EACCES",
		"packet": "EAFNOSUPPORT", "abstract": "EPERM", "signal": "EPERM", "userns": "EPERM",
	}
	with := func(more map[string]string) map[string]string {
		out := map[string]string{}
		for k, v := range free {
			out[k] = v
		}
		for k, v := range more {
			out[k] = v
		}
		return out
	}
	// What this kernel does not hold may come out either way.
	for what, since := range map[string]int{
		"write open": 1, "remove open": 1, "write tmp": 1, "change open": 3, "abstract": 6, "signal": 6,
	} {
		if landlock(t) < since {
			free[what] = ""
		}
	}
	offline := map[string]string{"inet": "EACCES", "inet6": "EACCES"}
	for name, c := range map[string]struct {
		as       manifest.Service
		writable bool
		block    string
		want     map[string]string
	}{
		"secrets":             {manifest.Secrets, false, "", free},
		"secrets that writes": {manifest.Secrets, true, "", with(map[string]string{"write open": "ok", "change open": "ok", "remove open": "ok"})},
		"hooks":               {manifest.Hooks, false, "", with(offline)},
		"hooks with network":  {manifest.Hooks, false, "network = true", free},
		"asked what it is":    {"", false, "", with(offline)},
		"network":             {manifest.Network, false, "", free},
		"runtime":             {manifest.Runtime, false, "", with(offline)},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, map[string]string{"boxed": c.block})
			dir := r.open(t)
			if c.writable {
				for i := range r.o.Finder.Host.Plugins {
					r.o.Finder.Host.Plugins[i].Writable = []string{dir}
				}
			}
			base := filepath.Dir(r.dir)
			t.Cleanup(func() { _ = os.Remove(filepath.Join("/tmp", filepath.Base(base)+"-plugin")) })
			l, err := net.Listen("unix", "@"+base)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			got, _ := r.ask(t, c.as, "boxed")
			for line := range strings.Lines(got) {
				what, came, _ := strings.Cut(strings.TrimSpace(line), ": ")
				if want, known := c.want[what]; !known || want != came && want != "" {
					t.Errorf("%s: %s, want %s", what, came, want)
				}
			}
			if n := strings.Count(got, "\n"); n != len(free) {
				t.Errorf("%d attempts, want %d:\n%s", n, len(free), got)
			}
		})
	}
}

// field reads a line of a process's status.
func field(t *testing.T, pid int, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if k, v, _ := strings.Cut(line, ":"); k == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// The kernel says of the process what it is to be, and not only the process itself.
func TestBoxSeenFromOutside(t *testing.T) {
	inherited, err := strconv.Atoi(field(t, os.Getpid(), "Seccomp_filters"))
	if err != nil {
		t.Fatal(err)
	}
	for as, filters := range map[manifest.Service]int{manifest.Secrets: 1, manifest.Hooks: 2, manifest.Network: 1, manifest.Runtime: 2} {
		t.Run(string(as), func(t *testing.T) {
			r := newRig(t, nil)
			p, err := r.Host.Start(t.Context(), "chatty", as) // without the SDK
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			want := map[string]string{"NoNewPrivs": "1", "Umask": "0077", "Seccomp_filters": strconv.Itoa(inherited + filters), "CapEff": "0000000000000000", "Name": "chatty"}
			if inherited+filters > 0 {
				want["Seccomp"] = "2"
			}
			for _, set := range []string{"CapInh", "CapPrm", "CapAmb", "CapBnd"} {
				want[set] = want["CapEff"]
			}
			if os.Geteuid() != 0 && as != manifest.Network {
				delete(want, "CapBnd") // no privilege can come of it
			}
			for k, v := range want {
				if got := field(t, p.Pid(), k); got != v {
					t.Errorf("%s %s, want %s", k, got, v)
				}
			}
			limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.Pid()))
			if err != nil {
				t.Fatal(err)
			}
			files := uint64(maxFiles)
			if as == manifest.Network {
				files = maxNetworkFiles
			}
			var own unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
				t.Fatal(err)
			}
			files = min(files, own.Max)
			for _, want := range []string{"Max core file size 1 1 bytes", fmt.Sprintf("Max open files %d %d files", files, files), "Max locked memory 8388608 8388608 bytes"} {
				if !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), want) {
					t.Errorf("no %q in\n%s", want, limits)
				}
			}
		})
	}
	if field(t, os.Getpid(), "NoNewPrivs") == "1" {
		t.Error("the host itself has no_new_privs")
	}
}

func TestNeedsFitIntoTheBox(t *testing.T) {
	for name, c := range map[string]struct {
		as    manifest.Service
		needs manifest.Needs
		host  hostconfig.Plugin
		what  string
	}{
		"nothing":              {as: manifest.Secrets},
		"a path":               {manifest.Secrets, manifest.Needs{WritablePaths: []string{"/var/lib/x"}}, hostconfig.Plugin{}, `to write to /var/lib/x writable = ["/var/lib/x"]`},
		"a path that it has":   {manifest.Secrets, manifest.Needs{WritablePaths: []string{"/var/lib/x"}}, hostconfig.Plugin{Writable: []string{"/var/lib"}}, ""},
		"beside":               {manifest.Secrets, manifest.Needs{WritablePaths: []string{"/var/library"}}, hostconfig.Plugin{Writable: []string{"/var/lib"}}, `to write to /var/library writable = ["/var/library"]`},
		"above":                {manifest.Hooks, manifest.Needs{WritablePaths: []string{"/var/lib/../x"}}, hostconfig.Plugin{Writable: []string{"/var/lib"}}, `to write to /var/lib/../x writable = ["/var/lib/../x"]`},
		"the network":          {manifest.Hooks, manifest.Needs{HostNetwork: true}, hostconfig.Plugin{}, "the network network = true"},
		"a network it has":     {manifest.Hooks, manifest.Needs{HostNetwork: true}, hostconfig.Plugin{Network: true}, ""},
		"a provider's network": {manifest.Secrets, manifest.Needs{HostNetwork: true}, hostconfig.Plugin{}, ""},
		"any's network":        {"", manifest.Needs{HostNetwork: true}, hostconfig.Plugin{}, ""},
		"a backend":            {manifest.Network, manifest.Needs{HostNetwork: true, WritablePaths: []string{"/x"}}, hostconfig.Plugin{}, `to write to /x writable = ["/x"]`},
		"with capabilities":    {manifest.Network, manifest.Needs{WritablePaths: []string{"/x"}}, hostconfig.Plugin{Caps: []string{"CAP_NET_ADMIN"}}, ""},
		"a runtime's network":  {manifest.Runtime, manifest.Needs{HostNetwork: true}, hostconfig.Plugin{}, "the network network = true"},
	} {
		what, remedy := boxOf(c.as, c.host).refuses(c.needs)
		if got := strings.TrimSpace(what + " " + remedy); got != c.what {
			t.Errorf("%s: %q, want %q", name, got, c.what)
		}
	}
	r := newRig(t, nil)
	_, err := r.fetch(t.Context(), "needs-path")
	if err == nil || !strings.Contains(err.Error(), "it needs to write to /var/lib/nucleus-test/x, which its operator does not allow") {
		t.Errorf("error %v", err)
	}
}

// What a plugin inherits is copied to low numbers before its box is entered.
func TestDomainIsOutOfTheWay(t *testing.T) {
	if landlock(t) == 0 {
		return // there is none
	}
	fd, err := boxOf(manifest.Secrets, hostconfig.Plugin{}).domain(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if fd < 16 {
		t.Errorf("descriptor %d", fd)
	}
}

// An operator who allows a path that is not there is told.
func TestWritablePathThatIsNotThere(t *testing.T) {
	if landlock(t) == 0 {
		return // nothing is made of it
	}
	r := newRig(t, map[string]string{"good": `writable = ["/nonexistent/x"]`})
	if _, err := r.Start(t.Context(), "good"); err == nil || !strings.Contains(err.Error(), "letting it write to /nonexistent/x: no such file") {
		t.Errorf("error %v", err)
	}
}

func (r *rig) grouped(t *testing.T) bool {
	t.Helper()
	f, err := cgroups.Detect("")
	if err != nil {
		t.Fatal(err)
	}
	return f.Usable()
}
