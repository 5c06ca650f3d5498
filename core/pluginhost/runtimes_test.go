package pluginhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/runtimes"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// boxes is a runtime plugin made with the SDK. It names the program of its block, and
// tells what it was called with in its facts.
type boxes struct {
	prepare func(r *runtime.PrepareRequest, p *runtime.Prepared) error
	conf    boxesConfig
}

type boxesConfig struct {
	Program string `hcl:"program,optional" desc:"What runs the bundle." default:"/bin/true"`
	SHA256  string `hcl:"sha256,optional" desc:"What it must be."`
}

func (b *boxes) Configure(_ context.Context, _ config.Instance, c boxesConfig) error {
	b.conf = c
	return nil
}

func (b *boxes) Prepare(_ context.Context, r *runtime.PrepareRequest) (*runtime.Prepared, error) {
	p := goodPrepared()
	p.Program.Path, p.Program.SHA256, p.Spec = b.conf.Program, b.conf.SHA256, r.Spec
	p.Facts = map[string]string{"call": fmt.Sprintf("%s %s %d %t %d", r.Call.SandboxID, r.Call.InstanceID, r.Network, r.Rootless, r.Call.Attempt)}
	if b.prepare != nil {
		return p, b.prepare(r, p)
	}
	return p, nil
}

func (b *boxes) serve(f *fake) {
	plugin.Serve(plugin.Plugin{Name: f.name, Version: "1", Runtime: b, RuntimeConfig: config.To(b)})
}

// runtimeBehaviours are those of runtime plugins.
func runtimeBehaviours() map[string]func(*fake) {
	return map[string]func(*fake){
		"box-good": (&boxes{}).serve,
		"box-refuses": (&boxes{prepare: func(*runtime.PrepareRequest, *runtime.Prepared) error {
			return errs.ConfigErrorf(errs.Path("program"), "it has no terminal")
		}}).serve,
		"box-crashes": (&boxes{prepare: func(*runtime.PrepareRequest, *runtime.Prepared) error { crash(); return nil }}).serve,
		"box-crashes-once": (&boxes{prepare: func(r *runtime.PrepareRequest, _ *runtime.Prepared) error {
			if r.Call.Attempt == 1 {
				crash()
			}
			return nil
		}}).serve,
		"box-hangs": (&boxes{prepare: func(*runtime.PrepareRequest, *runtime.Prepared) error { hang(); return nil }}).serve,
		"box-hostile": (&boxes{prepare: func(_ *runtime.PrepareRequest, p *runtime.Prepared) error {
			p.Run.Args = append(p.Run.Args, "{root}")
			return nil
		}}).serve,
		"box-other-spec": (&boxes{prepare: func(_ *runtime.PrepareRequest, p *runtime.Prepared) error {
			p.Spec = append([]byte(`{"mounts":1,`), p.Spec[1:]...)
			return nil
		}}).serve,
		"box-giant": (&boxes{prepare: func(_ *runtime.PrepareRequest, p *runtime.Prepared) error {
			p.Spec = bytes.Repeat([]byte("x"), maxMessage+1)
			return nil
		}}).serve,
	}
}

func goodSpec() []byte {
	return []byte(`{"ociVersion":"1.2.0","process":{"args":["/bin/true"],"cwd":"/","user":{"uid":0,"gid":0}},"root":{"path":"/rootfs"}}`)
}

func goodPrepared() *runtime.Prepared {
	return &runtime.Prepared{
		Program:     runtime.Program{Path: "/bin/true", SHA256: strings.Repeat("0a", 32), Libraries: true, Devices: []string{"/dev/kvm"}},
		Spec:        goodSpec(),
		Run:         runtime.Command{Args: []string{"box", "run", "--pid=" + runtime.WordPIDFile, "--log=" + runtime.WordFailureFile, "{}", `{"json": {"a":1}}`, "", runtime.WordID}, Env: []string{"A=", "B={id}"}},
		Exec:        runtime.Command{Args: []string{"box", "exec", "--pid=" + runtime.WordPIDFile, "-" + runtime.WordID}},
		Signal:      runtime.Command{Args: []string{"box", "kill", runtime.WordID, runtime.WordPID, runtime.WordSignal}},
		SignalGroup: runtime.Command{Args: []string{"box", "kill", "-g", runtime.WordID, runtime.WordPID, runtime.WordSignal}},
		Facts:       map[string]string{"version": "1.2 (ünïcode)"},
	}
}

func wantRuntime(t *testing.T, name, src string) runtimes.Want {
	t.Helper()
	return runtimes.Want{Plugin: name, Config: body(t, src), Spec: goodSpec(), Network: runtime.NetworkOwn, Rootless: true}
}

func prepare(t *testing.T, r *rig, name, src string) (*runtimes.Answer, error) {
	t.Helper()
	a, err := (&Runtimes{Host: r.Host}).Prepare(t.Context(), "id", wantRuntime(t, name, src))
	if err == nil {
		t.Cleanup(func() { _ = a.File.Close() })
	}
	return a, err
}

// fileDigest is that of a file, computed here.
func fileDigest(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return digestOf(string(b))
}

// A plugin is told of the sandbox, and what it names is opened; it is gone soon after.
func TestRuntimePluginIsAsked(t *testing.T) {
	r := newRig(t, nil)
	a, err := prepare(t, r, "box-good", fmt.Sprintf("sha256 = %q\n", strings.ToUpper(fileDigest(t, "/bin/true"))))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := a.Facts["call"], "id id/box-good 3 true 1"; got != want {
		t.Errorf("called with %q, want %q", got, want)
	}
	st, err := a.File.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if want, err := os.Stat("/bin/true"); err != nil || !os.SameFile(st, want) {
		t.Errorf("another file is open: %v, %v", st, err)
	}
	if !bytes.Equal(a.Spec, goodSpec()) || len(a.Signal.Args) != 5 {
		t.Errorf("answer %+v", a.Prepared)
	}
	r.Forget()
	if left := r.marked(); len(left) > 0 {
		t.Errorf("left after Forget: %q", left)
	}
	// One that ends is replaced, once: it has no effect that would be doubled.
	if a, err := prepare(t, r, "box-crashes-once", ""); err != nil || !strings.HasSuffix(a.Facts["call"], " 2") {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestRuntimePluginFailures(t *testing.T) {
	r := newRig(t, map[string]string{"box-giant": `memory = "2GiB"`})
	for name, x := range map[string]struct{ plugin, config, want, hint string }{
		"the schema":   {"box-good", "programm = \"/x\"\n", `runtime plugin "box-good": job.hcl:1: Unsupported argument`, ""},
		"not there":    {"box-nowhere", "", "no nucleus-plugin-box-nowhere in", "plugin_dirs"},
		"no runtime":   {"net-good", "", "it runs no sandboxes", "nucleus plugin info net-good"},
		"the request":  {"box-refuses", "program = \"/x\"\n", `runtime plugin "box-refuses": job.hcl:1: it has no terminal`, ""},
		"a crash":      {"box-crashes", "", "asking how the sandbox is run: it ended (exit status 9)", "it said: last words"},
		"its answer":   {"box-hostile", "", "run: argument \"{root}\": {root} is not replaced here, but {id}", ""},
		"its spec":     {"box-other-spec", "", "cannot unmarshal number into Go struct field Spec.mounts", ""},
		"a giant":      {"box-giant", "", "received message larger than max", ""},
		"no program":   {"box-good", "program = \"/nowhere\"\n", "its program /nowhere: no such file or directory", "nucleus plugin schema box-good"},
		"a directory":  {"box-good", "program = \"/usr\"\n", "its program /usr: /usr: not a regular file", ""},
		"no digest":    {"box-good", "sha256 = \"abc\"\n", "its SHA-256 is not of 64 hexadecimal digits", ""},
		"wrong digest": {"box-good", "sha256 = \"" + strings.Repeat("0b", 32) + "\"\n", "its program /bin/true: it has the SHA-256 " + fileDigest(t, "/bin/true") + ", and the plugin wants " + strings.Repeat("0b", 32), "if it was changed on purpose: config { sha256 = \"" + fileDigest(t, "/bin/true")},
	} {
		a, err := prepare(t, r, x.plugin, x.config)
		var re *runtimes.Error
		if a != nil || !errors.As(err, &re) {
			t.Errorf("%s: %v, %v (%T)", name, a, err, err)
			continue
		}
		if !strings.Contains(err.Error(), x.want) || !strings.Contains(re.Hint, x.hint) {
			t.Errorf("%s: %v (hint %q), want %q (hint %q)", name, err, re.Hint, x.want, x.hint)
		}
	}
}

// One who does not answer is not waited for longer than whoever asks.
func TestRuntimePluginThatHangs(t *testing.T) {
	r := newRig(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Patient(time.Second))
	defer cancel()
	_, err := (&Runtimes{Host: r.Host}).Prepare(ctx, "id", wantRuntime(t, "box-hangs", ""))
	if err == nil || !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("got %v", err)
	}
}

// In the modes that want everything pinned the program is, too.
func TestRuntimeProgramIsPinned(t *testing.T) {
	r := newRig(t, nil)
	b, err := r.o.Finder.DigestOf("box-good")
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.o.Finder.Host.Plugins {
		r.o.Finder.Host.Plugins[i].SHA256 = []string{b}
	}
	r.o.Finder.PinnedOnly = true
	_, err = prepare(t, r, "box-good", "")
	var re *runtimes.Error
	if !errors.As(err, &re) || !strings.Contains(err.Error(), "the mode wants its digest, and the plugin names none") {
		t.Fatalf("got %v", err)
	}
	_, rest, _ := strings.Cut(re.Hint, "config { ")
	line, _, _ := strings.Cut(rest, " }")
	if _, err := prepare(t, r, "box-good", line+"\n"); err != nil { // what the hint says
		t.Errorf("with %s: %v", line, err)
	}
}

// What is executed is nobody's but root's or the caller's.
func TestRuntimeProgramIsTrusted(t *testing.T) {
	r := newRig(t, nil)
	dir := t.TempDir() // the plugin needs not enter it
	elf, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, content []byte, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good", elf, 0o755)
	open := file("open/p", elf, 0o755)
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Symlink(good, link), os.Chmod(filepath.Dir(open), 0o777)); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct{ path, want, hint string }{
		"good":                      {good, "", ""},
		"a link of the caller's":    {link, "", ""},
		"writable by its group":     {file("group", elf, 0o775), "group: others can write to it (mode 0775)", "chmod go-w"},
		"writable by others":        {file("other", elf, 0o757), "other: others can write to it (mode 0757)", "chmod go-w"},
		"in a directory of others'": {open, "open: others can write to it (mode 0777)", "chmod go-w"},
		"not executable":            {file("plain", elf, 0o644), "permission denied", ""},
		"a script":                  {file("script", []byte("#!/bin/sh\n"), 0o755), "it is no ELF file", "no script"},
		"empty":                     {file("empty", nil, 0o755), "it is no ELF file", ""},
	}
	if os.Geteuid() == 0 {
		theirs := file("theirs", elf, 0o755)
		if err := os.Chown(theirs, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		tests["another user's"] = struct{ path, want, hint string }{theirs, "theirs: belongs to user 12345", "let it belong to root"}
	} else {
		tests["not readable"] = struct{ path, want, hint string }{file("run-only", elf, 0o111), "it may be executed, but not read", "chmod a+r"}
	}
	for name, x := range tests {
		_, err := prepare(t, r, "box-good", fmt.Sprintf("program = %q\n", x.path))
		if err == nil && x.want == "" {
			continue
		}
		var re *runtimes.Error
		if !errors.As(err, &re) || x.want == "" || !strings.Contains(err.Error(), x.want) || !strings.Contains(re.Hint, x.hint) {
			t.Errorf("%s: %v (%+v), want %q", name, err, re, x.want)
		}
	}
}
