package gvisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/zclconf/go-cty/cty"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// stub is a program that says what runsc would. It is no script: those have no ELF
// header.
func stub(t *testing.T, says string) string {
	t.Helper()
	dir := t.TempDir()
	src := filepath.Join(dir, "main.go")
	code := fmt.Sprintf("package main\nimport (\"fmt\";\"os\")\nfunc main() { if len(os.Args) == 2 && os.Args[1] == \"--version\" && len(os.Environ()) == 0 { fmt.Println(%q) } }\n", says)
	if err := os.WriteFile(src, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "runsc")
	build(t, "-o", bin, src)
	return bin
}

func prepare(t *testing.T, c Config, q runtime.PrepareRequest) (*runtime.Prepared, error) {
	t.Helper()
	r := New()
	r.runscs = places{"/nonexistent/runsc"}
	if err := r.Configure(t.Context(), config.Instance{ID: "i"}, c); err != nil {
		t.Fatal(err)
	}
	q.Call.InstanceID = "i"
	if q.Spec == nil {
		q.Spec = spec(t, nil)
	}
	return r.Prepare(t.Context(), &q)
}

func TestWithoutAConfigBlockTheDefaultsHold(t *testing.T) {
	b, err := config.Of[Config]()
	if err != nil {
		t.Fatal(err)
	}
	v, err := b.Unmarshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	var c Config
	if err := b.Decode(v, &c); err != nil {
		t.Fatal(err)
	}
	if c != unconfigured || New().configuration("never seen") != c {
		t.Errorf("the schema's defaults are %+v, and without it they are %+v", c, unconfigured)
	}
}

func TestTheSchemaRefusesWhatIsNoValue(t *testing.T) {
	b, err := config.Of[Config]()
	if err != nil {
		t.Fatal(err)
	}
	for attr, values := range map[string]map[string]bool{
		"sha256":        {strings.Repeat("0a", 32): true, strings.Repeat("0A", 32): false, "": false, "0a": false, strings.Repeat("0a", 33): false},
		"platform":      {"systrap": true, "kvm": true, "ptrace": true, "--debug": false, "kvm --debug": false, "": false},
		"network_stack": {"auto": true, "host": true, "own": true, "none": false, "sandbox": false},
		"runsc":         {"/opt/runsc": true, "runsc": false, "--debug": false},
	} {
		for value, good := range values {
			all := map[string]cty.Value{}
			for _, a := range b.Attrs {
				all[a.Name] = cty.NullVal(cty.String)
			}
			all[attr] = cty.StringVal(value)
			if ds := b.Check(cty.ObjectVal(all)); (len(ds) == 0) != good || len(ds) > 0 && ds[0].Path.String() != attr {
				t.Errorf("%s = %q: %+v", attr, value, ds)
			}
		}
	}
}

func TestTheNetworkIsTheOneThatIsMeant(t *testing.T) {
	bin := stub(t, "runsc version release-20260905.0")
	for _, c := range []struct {
		stack   string
		network runtime.Network
		want    string
		own     bool
	}{
		{"auto", runtime.NetworkNone, "none", true},
		{"auto", runtime.NetworkHost, "host", false},
		{"auto", runtime.NetworkOwn, "host", false},
		{"host", runtime.NetworkNone, "host", false},
		{"host", runtime.NetworkHost, "host", false},
		{"host", runtime.NetworkOwn, "host", false},
		{"own", runtime.NetworkNone, "none", true},
		{"own", runtime.NetworkOwn, "sandbox", true},
	} {
		got, err := prepare(t, Config{Runsc: bin, Platform: "systrap", NetworkStack: c.stack}, runtime.PrepareRequest{Network: c.network})
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		if got.OwnNetwork != c.own || !slices.Contains(got.Run.Args, "--network="+c.want) || got.Facts["network_stack"] != c.want {
			t.Errorf("%+v: %+v", c, got)
		}
	}
	_, err := prepare(t, Config{Runsc: bin, Platform: "systrap", NetworkStack: "own"}, runtime.PrepareRequest{Network: runtime.NetworkHost})
	if e := errs.Of(err); e == nil || len(e.Diagnostics) != 1 || e.Diagnostics[0].Path.String() != "network_stack" {
		t.Errorf("error %v", err)
	}
	if _, err := prepare(t, Config{Runsc: bin, Platform: "systrap", NetworkStack: "auto"}, runtime.PrepareRequest{Network: 99}); errs.CodeOf(err) != errs.Precondition {
		t.Errorf("error %v", err)
	}
}

// TestNothingOfAJobBecomesAnArgument: whatever the job's values are, the command
// lines are the same.
func TestNothingOfAJobBecomesAnArgument(t *testing.T) {
	bin := stub(t, "runsc version release-20260905.0")
	flags := []string{"--root=/state", "--ignore-cgroups", "--overlay2=none", "--file-access=exclusive", "--file-access-mounts=shared", "--network=none", "--platform=systrap"}
	all := func(more ...string) []string { return slices.Concat([]string{"runsc"}, flags, more) }
	for _, hostile := range []string{"--network=host", "-debug", "a b", "{id}", "{pid}", "\n", "", "--TESTONLY-unsafe-nonroot"} {
		q := runtime.PrepareRequest{Network: runtime.NetworkNone, Rootless: true, Spec: spec(t, func(s *specs.Spec) {
			s.Hostname, s.Domainname = hostile, hostile
			s.Process.Args, s.Process.Env, s.Process.Cwd = []string{hostile, hostile}, []string{hostile, "A=" + hostile}, "/"+hostile
			s.Annotations = map[string]string{hostile: hostile}
			s.Mounts = []specs.Mount{{Destination: "/" + hostile, Type: "bind", Source: "/rootfs/" + hostile, Options: []string{hostile}}}
		})}
		q.Call.SandboxID = hostile
		got, err := prepare(t, Config{Runsc: bin, Platform: "systrap", NetworkStack: "auto"}, q)
		if err != nil {
			t.Fatalf("%q: %v", hostile, err)
		}
		for _, c := range []struct {
			got  runtime.Command
			want []string
		}{
			{got.Run, all("--log={failure-file}", "--panic-log={failure-file}", "run", "--bundle=/bundle", "--pid-file={pid-file}", "{id}")},
			{got.Exec, all("exec", "--process=/dev/fd/3", "--internal-pid-file={pid-file}", "{id}")},
			{got.Signal, all("kill", "--pid={pid}", "{id}", "{signal}")},
			{got.SignalGroup, all("kill", "--pgid={pid}", "{id}", "{signal}")},
		} {
			if !slices.Equal(c.got.Args, c.want) || len(c.got.Env) != 0 {
				t.Errorf("%q: got %q with %q, want %q", hostile, c.got.Args, c.got.Env, c.want)
			}
		}
	}
}

// An older runsc does not know the flag, and would take no signal at all.
func TestGroupsAreSignalledByARunscThatCan(t *testing.T) {
	for version, want := range map[string]bool{"release-20260905.0": true, "release-20270101.1": true, "release-20260904.0": false, "release-20240916.0": false} {
		got, err := prepare(t, Config{Runsc: stub(t, "runsc version "+version), Platform: "systrap", NetworkStack: "auto"}, runtime.PrepareRequest{Network: runtime.NetworkNone})
		if err != nil {
			t.Fatal(err)
		}
		if len(got.SignalGroup.Args) > 0 != want || len(got.Signal.Args) == 0 {
			t.Errorf("%s: %+v", version, got)
		}
	}
}

func TestSocketsOfTheHostAreForWorkloadsThatNotify(t *testing.T) {
	bin := stub(t, "runsc version release-20260905.0")
	for env, want := range map[string]bool{"NOTIFY_SOCKET=/run/n/notify": true, "NOTIFY_SOCKET=@abstract": false, "XNOTIFY_SOCKET=/x": false} {
		got, err := prepare(t, Config{Runsc: bin, Platform: "systrap", NetworkStack: "auto"}, runtime.PrepareRequest{
			Network: runtime.NetworkNone, Spec: spec(t, func(s *specs.Spec) { s.Process.Env = []string{env} }),
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []runtime.Command{got.Run, got.Exec, got.Signal} {
			if slices.Contains(c.Args, "--host-uds=open") != want {
				t.Errorf("%s: %q", env, c.Args)
			}
		}
	}
}

func TestThePlatformIsPassedOn(t *testing.T) {
	bin := stub(t, "runsc version release-20260905.0")
	for _, platform := range []string{"systrap", "ptrace", "kvm"} {
		got, err := prepare(t, Config{Runsc: bin, Platform: platform, NetworkStack: "auto"}, runtime.PrepareRequest{Network: runtime.NetworkNone})
		if platform == "kvm" {
			if _, no := os.Stat("/dev/kvm"); no != nil {
				if errs.CodeOf(err) != errs.Precondition || !strings.Contains(err.Error(), "/dev/kvm") {
					t.Errorf("error %v", err)
				}
				continue
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(got.Run.Args, "--platform="+platform) || slices.Equal(got.Program.Devices, []string{"/dev/kvm"}) != (platform == "kvm") {
			t.Errorf("%s: %+v", platform, got)
		}
	}
}

func TestTheDigestIsTheCoresToCheck(t *testing.T) {
	bin := stub(t, "runsc version release-20260905.0")
	sum := sha256.Sum256([]byte("another"))
	got, err := prepare(t, Config{Runsc: bin, SHA256: hex.EncodeToString(sum[:]), Platform: "systrap", NetworkStack: "auto"}, runtime.PrepareRequest{Network: runtime.NetworkNone})
	if err != nil {
		t.Fatal(err)
	}
	want := runtime.Program{Path: bin, SHA256: hex.EncodeToString(sum[:])}
	if got.Program.Path != want.Path || got.Program.SHA256 != want.SHA256 || got.Program.Libraries || len(got.Program.Devices) != 0 {
		t.Errorf("got %+v, want %+v", got.Program, want)
	}
}

func TestRefusalsNameTheirAttribute(t *testing.T) {
	dir := t.TempDir()
	put := func(name, content string, mode os.FileMode) string {
		t.Helper()
		at := filepath.Join(dir, name)
		if err := os.WriteFile(at, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(at, mode); err != nil {
			t.Fatal(err)
		}
		return at
	}
	loose := stub(t, "runsc version release-20260905.0")
	if err := os.Chmod(loose, 0o775); err != nil {
		t.Fatal(err)
	}
	for says, bin := range map[string]string{
		"no such file":         filepath.Join(dir, "gone"),
		"no regular file":      dir,
		"chmod 755":            put("plain", "x", 0o600),
		"chmod go-w":           loose,
		"no program of this":   put("script", "#!/bin/sh\n", 0o700),
		"is release-20230101":  stub(t, "runsc version release-20230101.0"),
		"is no runsc":          stub(t, "crun version 1.14"),
		"of which day":         stub(t, "runsc version VERSION_MISSING"),
		"release-20240915.0, ": stub(t, "runsc version release-20240915.0"),
	} {
		t.Run(says, func(t *testing.T) {
			_, err := prepare(t, Config{Runsc: bin, Platform: "systrap", NetworkStack: "auto"}, runtime.PrepareRequest{Network: runtime.NetworkNone})
			e := errs.Of(err)
			if e == nil || e.Code != errs.Config || len(e.Diagnostics) != 1 || e.Diagnostics[0].Path.String() != "runsc" || !strings.Contains(e.Error(), says) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestRunscIsLookedForWhereItIsPut(t *testing.T) {
	dir, bin := t.TempDir(), stub(t, "runsc version release-20260905.0")
	_, err := places{dir + "/a", dir + "/b"}.find(t.Context(), "")
	if errs.CodeOf(err) != errs.Precondition || !strings.Contains(err.Error(), dir+"/a, "+dir+"/b") || !strings.Contains(err.Error(), "gvisor.dev") {
		t.Errorf("error %v", err)
	}
	// A link leads to the file that counts.
	if err := os.Symlink(bin, dir+"/b"); err != nil {
		t.Fatal(err)
	}
	got, err := places{dir + "/a", dir + "/b"}.find(t.Context(), "")
	if err != nil || got.path != bin || got.version != "release-20260905.0" || got.dynamic {
		t.Errorf("got %+v, error %v", got, err)
	}
	// The first that is there counts, and is not passed over for being wrong.
	if err := os.WriteFile(dir+"/a", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (places{dir + "/a", dir + "/b"}).find(t.Context(), ""); err == nil {
		t.Error("a runsc that cannot be run was passed over")
	}
}

func TestADynamicProgramIsToldApart(t *testing.T) {
	f, err := os.Open("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if d, err := dynamic(f); err != nil || !d {
		t.Errorf("/bin/sh: %v, %v", d, err)
	}
}

func TestARunscThatDoesNotAnswerIsNotWaitedFor(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("the caller has gone"))
	if _, err := inspect(ctx, stub(t, "runsc version release-20260905.0")); err == nil || !strings.Contains(err.Error(), "the caller has gone") {
		t.Errorf("error %v", err)
	}
}

// As root the plugin has a user of its own, and a checkout in root's home is none of his.
func TestARunscThatCannotBeReachedIsTold(t *testing.T) {
	private := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(private, 0); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		goruntime.LockOSThread()
		defer goruntime.UnlockOSThread()
		syscall.RawSyscall(syscall.SYS_SETFSUID, 65534, 0, 0)
		defer syscall.RawSyscall(syscall.SYS_SETFSUID, 0, 0, 0)
	}
	at := filepath.Join(private, "runsc")
	_, err := places{at}.find(t.Context(), "")
	if err == nil || !strings.Contains(err.Error(), "cannot reach "+at) {
		t.Errorf("got %v", err)
	}
}
