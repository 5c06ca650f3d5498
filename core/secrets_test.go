package core_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// given is a source that has these values, by name.
func given(t *testing.T, values map[string]string) secret.Source {
	return secret.SourceFunc(func(_ context.Context, r secret.Request) (map[string]*secret.Value, error) {
		out := map[string]*secret.Value{}
		for _, g := range r.Groups {
			for _, ref := range g.Refs {
				text, ok := values[ref.Name]
				if !ok {
					continue
				}
				v, err := secret.New([]byte(text))
				if err != nil {
					t.Error(err)
					continue
				}
				out[ref.Name] = v
			}
		}
		return out, nil
	})
}

func withSecrets(t *testing.T, s secret.Source, events ...io.Writer) *core.Runtime {
	t.Helper()
	o := options
	o.Secrets, o.Events = s, events
	rt, err := core.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return rt
}

// secretJob is a job of a shell script; the first of the lines is line 3.
func secretJob(t *testing.T, script string, lines ...string) *job.Job {
	t.Helper()
	src := fmt.Sprintf("job \"x\" {\n  command = [\"/bin/sh\", \"-c\", %q]\n%s\n}\n", script, strings.Join(lines, "\n"))
	j, diags := job.Parse("job.hcl", []byte(src), job.Options{Dir: "/"})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return j
}

func planFor(t *testing.T, rt *core.Runtime, j *job.Job) *plan.Plan {
	t.Helper()
	p, err := rt.Plan(j)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func output(t *testing.T, rt *core.Runtime, j *job.Job) string {
	t.Helper()
	res, out, err := runOf(t, rt, planFor(t, rt, j))
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("%+v, %v\n%s", res, err, out)
	}
	return out
}

func runOf(t *testing.T, rt *core.Runtime, p *plan.Plan) (core.Result, string, error) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "out"), os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	res, err := rt.Run(t.Context(), p, core.RunOptions{Streams: core.Streams{Out: f, Err: f}})
	out, rerr := os.ReadFile(f.Name())
	if rerr != nil {
		t.Fatal(rerr)
	}
	return res, string(out), err
}

const lookAtSecrets = `cd /run/secrets
stat -c '%n %a %u:%g %s %F' . db deep deep/er/key
cat db deep/er/key
id -u
for try in 'echo x > db' 'echo x > new' 'rm -f db' 'mkdir d' 'chmod 0777 db' 'mv deep shallow' 'mv /run/secrets /run/gone' 'mount -o remount,rw .'; do
	if sh -c "$try" 2>/dev/null; then echo "won: $try"; fi
done
grep ' /run/secrets ' /proc/self/mountinfo | cut -d ' ' -f 5,6
grep ' /run/secrets ' /proc/self/mountinfo | sed 's/.* - //' | cut -d ' ' -f 1
ls /proc/self/fd | wc -l`

var twoFiles = []string{
	`secret "db" {`, `provider = "store"`, `}`,
	`secret "key" {`, `provider = "other"`, `target = "/run/secrets/deep/er/key"`, `mode = "0440"`, `}`,
}

// TestSecretsAreFiles that only the workload can read and that nobody can change.
func TestSecretsAreFiles(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	big := strings.Repeat("k", secret.MaxValue-1) + "\n"
	rt := withSecrets(t, given(t, map[string]string{"db": "hunter2\n", "key": big}))
	for name, more := range map[string][]string{
		"default":   nil,
		"1000:1000": {`user = "1000:1000"`},
		"on a tmpfs": {
			`tmpfs "/run" {`, `size = "1MiB"`, `}`,
		},
		"without an init": {`init = false`},
		"with hooks":      {`hook "createContainer" {`, `command = ["/bin/true"]`, `}`, `hook "startContainer" {`, `command = ["/bin/true"]`, `}`},
		"host's ids":      {`namespaces {`, `user = "host"`, `}`},
		"own id":          {`namespaces {`, `user = "keep-id"`, `}`},
	} {
		t.Run(name, func(t *testing.T) {
			ids, top, lines := "0:0", "0:0", more
			switch {
			case name == "own id":
				if os.Geteuid() == 0 {
					return // as "host's ids"
				}
				ids = fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())
				top = ids
			case name == "1000:1000":
				if os.Geteuid() != 0 {
					testutil.Needs(t, testutil.SubID)
				}
				ids = name
			case name == "host's ids" && os.Geteuid() != 0:
				return // refused by the plan
			}
			got := output(t, rt, secretJob(t, lookAtSecrets, append(append([]string(nil), lines...), twoFiles...)...))
			uid, _, _ := strings.Cut(ids, ":")
			want := ". 755 " + top + " 0 directory\n" +
				"db 400 " + ids + " 8 regular file\ndeep 755 " + top + " 0 directory\n" +
				"deep/er/key 440 " + ids + " 1048576 regular file\n" +
				"hunter2\n" + big + uid + "\n/run/secrets ro,nosuid,nodev,noexec,relatime\nramfs\n4\n"
			if name == "own id" {
				got = strings.ReplaceAll(got, "0:0", ids) // there is an id 0 where there are subordinate ids
			}
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", strings.ReplaceAll(got, big, "BIG\n"), strings.ReplaceAll(want, big, "BIG\n"))
			}
		})
	}
}

// TestSecretsInARootfs, read-only and with a writable layer, whose own
// /run/secrets leads elsewhere.
func TestSecretsInARootfs(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	rt := withSecrets(t, given(t, map[string]string{"db": "hunter2"}))
	for _, c := range []struct{ name, writable, link, want string }{
		{"read-only", "none", "", "hunter2"},
		{"read-only, /run is a link", "none", "run", "hunter2"},
		{"overlay", "overlay", "", "hunter2"},
		{"overlay, a link in the way", "overlay", "run/secrets", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, err := os.MkdirTemp("", "nucleus-secret-rootfs-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(root) })
			plant(t, root)
			if c.link != "" {
				if err := os.RemoveAll(filepath.Join(root, c.link)); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink("/tmp", filepath.Join(root, c.link)); err != nil {
					t.Fatal(err)
				}
			}
			j := secretJob(t, "cat /run/secrets/db", "rootfs {", fmt.Sprintf("path = %q", root), fmt.Sprintf("writable = %q", c.writable), "}", `volume "usr" {`, `source = "/usr"`, `target = "/host/usr"`, `read_only = true`, `exec = true`, `}`, `secret "db" {`, `provider = "store"`, `}`)
			res, out, err := runOf(t, rt, planFor(t, rt, j))
			if c.want == "" {
				if err == nil || !strings.HasPrefix(err.Error(), `job.hcl:13: fs: rootfs entry "/run/secrets" is a symbolic link`) {
					t.Fatalf("%+v, %v, %s", res, err, out)
				}
				return
			}
			if err != nil || out != c.want {
				t.Fatalf("%+v, %v, %s", res, err, out)
			}
		})
	}
}

// plant makes a rootfs whose programs are the host's, which the job lends.
func plant(t *testing.T, root string) {
	t.Helper()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"etc", "run/secrets", "tmp", "proc", "dev", "sys", "root", "host/usr", "var/tmp", "usr"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"bin", "lib", "lib64"} {
		for _, at := range []string{n, "usr/" + n} {
			if err := os.Symlink("/host/usr/"+n, filepath.Join(root, at)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestSecretsInTheEnvironment of the workload, and of nothing else.
func TestSecretsInTheEnvironment(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	long := strings.Repeat("x", secret.MaxEnv-len("LONG=")-1)
	rt := withSecrets(t, given(t, map[string]string{"token": "hun ter=2\n\x01", "long": long, "empty": ""}))
	env := []string{
		`secret "token" {`, `provider = "store"`, `env = "TOKEN"`, `}`, `secret "long" {`, `provider = "store"`, `env = "LONG"`, `}`,
		`secret "empty" {`, `provider = "store"`, `env = "EMPTY"`, `}`,
	}
	for name, more := range map[string][]string{
		"with an init":    nil,
		"without an init": {`init = false`},
		"beside a hook":   {`hook "startContainer" {`, `command = ["/bin/sh", "-c", "! /usr/bin/env | /usr/bin/grep TOKEN"]`, `}`},
	} {
		t.Run(name, func(t *testing.T) {
			got := output(t, rt, secretJob(t, `printf '%s|%s|%s' "$TOKEN" "$${#LONG}" "$${EMPTY-unset}"; ls /run; test ! -e /run/secrets`, append(append([]string(nil), more...), env...)...))
			if want := fmt.Sprintf("hun ter=2\n\x01|%d|", len(long)); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// TestSecretsAreRefused with the line of the job, and nothing is left.
func TestSecretsAreRefused(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	fails := func(err error) secret.Source {
		return secret.SourceFunc(func(context.Context, secret.Request) (map[string]*secret.Value, error) { return nil, err })
	}
	file := []string{`secret "a" {`, `provider = "store"`, `}`, `secret "b" {`, `provider = "other"`, `}`}
	env := []string{`secret "a" {`, `provider = "store"`, `env = "A"`, `}`}
	many := func(n int) (lines []string, values map[string]string) {
		values = map[string]string{}
		for i := range n {
			name := fmt.Sprintf("s%d", i)
			lines = append(lines, fmt.Sprintf("secret %q { \n provider = \"store\" \n }", name))
			values[name] = strings.Repeat("v", secret.MaxValue)
		}
		return lines, values
	}
	nine, values := many(9)
	for _, c := range []struct {
		name   string
		source secret.Source
		lines  []string
		want   string
	}{
		{"an error of nobody in particular", fails(errors.New("vault sealed")), file, "job.hcl:3: secrets: vault sealed"},
		{"an error of a secret", fails(&secret.Error{Name: "b", Err: errors.New("denied")}), file, `job.hcl:6: secrets: secret "b": denied`},
		{"an error of a provider", fails(&secret.Error{Provider: "other", Err: errors.New("denied")}), file, `job.hcl:6: secrets: secrets provider "other": denied`},
		{"an error that drives a terminal", fails(errors.New("a\x1b[2Jb\nc")), file, "job.hcl:3: secrets: a"},
		{"no value", given(t, map[string]string{"a": "x"}), file, `job.hcl:6: secrets: secret "b": provider "other" gave no value`},
		{"no answer at all", fails(nil), file, `job.hcl:3: secrets: secret "a": provider "store" gave no value`},
		{"a NUL in a variable", given(t, map[string]string{"a": "x\x00y"}), env, `job.hcl:3: secrets: secret "a": the value has a NUL byte`},
		{"a variable too long", given(t, map[string]string{"a": strings.Repeat("x", secret.MaxEnv-2)}), env, `job.hcl:3: secrets: secret "a": the value has 131070 bytes`},
		{"too much together", given(t, values), nine, `job.hcl:27: secrets: secret "s8": with its value`},
		{"more than was asked for", secret.SourceFunc(func(ctx context.Context, r secret.Request) (map[string]*secret.Value, error) {
			out, err := given(t, map[string]string{"a": "x", "b": "y"}).Fetch(ctx, r)
			out.Values["c"], _ = secret.New([]byte("z"))
			return out.Values, err
		}), file, "1 values came that the job does not ask for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rt := withSecrets(t, c.source)
			p := planFor(t, rt, secretJob(t, "echo the workload ran", c.lines...))
			before := descriptors(t)
			res, out, err := runOf(t, rt, p)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.ContainsAny(err.Error(), "\x1b\n") || res.Cause != "runtime" || out != "" {
				t.Errorf("%+v, %v, %q; want %s", res, err, out, c.want)
			}
			if left, err := os.ReadDir(filepath.Join(options.StateRoot, "sandboxes")); err != nil || len(left) != 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			for _, d := range descriptors(t) {
				if strings.Contains(d, "nucleus-secret") {
					t.Errorf("descriptors before: %v\nafter: %v", before, descriptors(t))
					break
				}
			}
		})
	}
}

// descriptors tells what this process has open.
func descriptors(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name()) // the listing's own is gone
		out = append(out, to)
	}
	return out
}

// TestTheSourceStopsWithTheStart, for whatever reason the start ends.
func TestTheSourceStopsWithTheStart(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	asked := make(chan struct{}, 1)
	rt := withSecrets(t, secret.SourceFunc(func(ctx context.Context, _ secret.Request) (map[string]*secret.Value, error) {
		asked <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}))
	run := func(ctx context.Context, lines ...string) error {
		_, err := rt.Run(ctx, planFor(t, rt, secretJob(t, "true", append([]string{`secret "a" {`, `provider = "store"`, `}`}, lines...)...)), core.RunOptions{})
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		time.Sleep(10 * time.Millisecond)
		cancel()
	}()
	if err := run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	err := run(t.Context(), `volume "v" {`, `source = "/does/not/exist"`, `target = "/v"`, `}`)
	if err == nil || !strings.HasPrefix(err.Error(), "job.hcl:7: fs:") {
		t.Errorf("another step fails: %v", err)
	}
}

// TestSecretsNeedASource, for the plan and for a plan of another runtime.
func TestSecretsNeedASource(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	j := secretJob(t, "true", `secret "a" {`, `provider = "store"`, `}`)
	rt := withSecrets(t, nil)
	if _, err := rt.Plan(j); err == nil || !strings.HasPrefix(err.Error(), `job.hcl:3: secret "a": secrets providers are not available in this version`) {
		t.Errorf("%v", err)
	}
	p := planFor(t, withSecrets(t, given(t, nil)), j)
	if _, err := rt.Run(t.Context(), p, core.RunOptions{}); err == nil || !strings.HasPrefix(err.Error(), `job.hcl:3: secrets: secret "a": there is nobody to ask`) {
		t.Errorf("%v", err)
	}
}

// TestSecretsInEachOthersWay, or in that of another mount, are refused where they
// stand in the job.
func TestSecretsInEachOthersWay(t *testing.T) {
	volume := []string{`volume "v" {`, `source = "/usr"`, `target = %q`, `read_only = true`, `}`}
	at := func(target string) []string {
		return append(append([]string(nil), volume[:2]...), append([]string{fmt.Sprintf(volume[2], target)}, volume[3:]...)...)
	}
	secretAt := func(name, target string) []string {
		return []string{fmt.Sprintf("secret %q {", name), `provider = "store"`, fmt.Sprintf("target = %q", target), `}`}
	}
	for name, c := range map[string]struct {
		lines []string
		line  int
		want  string
	}{
		"relative":                       {secretAt("a", "run/secrets/a"), 5, "absolute"},
		"not clean":                      {secretAt("a", "/run/secrets/../a"), 5, ".."},
		"elsewhere":                      {secretAt("a", "/etc/shadow"), 5, "is not below /run/secrets"},
		"the directory itself":           {secretAt("a", "/run/secrets"), 5, "is not below /run/secrets"},
		"in a read-only volume":          {append(at("/data"), secretAt("a", "/data/key")...), 10, "is not below /run/secrets"},
		"twice":                          {append(secretAt("a", "/run/secrets/x"), secretAt("b", "/run/secrets/x")...), 9, "mounted on \"/run/secrets/x\" already"},
		"one below the other":            {append(secretAt("a", "/run/secrets/x"), secretAt("b", "/run/secrets/x/y")...), 9, "is the file of the secret"},
		"a volume over them":             {append(secretAt("a", "/run/secrets/x"), at("/run/secrets")...), 9, "is where secrets are"},
		"a volume below":                 {append(secretAt("a", "/run/secrets/x"), at("/run/secrets/x/y")...), 9, "is where secrets are"},
		"a volume above":                 {append(secretAt("a", "/run/secrets/x"), at("/run")...), 9, "/run"},
		"a file and a variable":          {[]string{`secret "a" {`, `provider = "store"`, `target = "/run/secrets/a"`, `env = "A"`, `}`}, 6, "remove env"},
		"two of one name":                {append(secretAt("a", "/run/secrets/x"), secretAt("a", "/run/secrets/y")...), 7, "secret"},
		"a variable of the job's own":    {[]string{`env = { A = "1" }`, `secret "a" {`, `provider = "store"`, `env = "A"`, `}`}, 6, "is in env too"},
		"a variable that can't be named": {[]string{`secret "a" {`, `provider = "store"`, `env = "A=B"`, `}`}, 5, ""},
	} {
		t.Run(name, func(t *testing.T) {
			src := "job \"x\" {\n  command = [\"/bin/true\"]\n" + strings.Join(c.lines, "\n") + "\n}\n"
			_, diags := job.Parse("job.hcl", []byte(src), job.Options{Dir: "/"})
			for _, d := range diags {
				if d.Subject.Start.Line == c.line && strings.Contains(d.Summary+" "+d.Detail, c.want) {
					return
				}
			}
			t.Errorf("want %q in line %d: %v", c.want, c.line, diags.Errs())
		})
	}
}

// TestSourcesAreAskedOnce, with what the job says, in its order.
func TestSourcesAreAskedOnce(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	var asked []string
	rt := withSecrets(t, secret.SourceFunc(func(ctx context.Context, r secret.Request) (map[string]*secret.Value, error) {
		var b strings.Builder
		fmt.Fprint(&b, len(r.Sandbox))
		for _, g := range r.Groups {
			fmt.Fprintf(&b, " %s:", g.Provider)
			for _, ref := range g.Refs {
				attrs := 0
				if ref.Config != nil {
					m, _ := ref.Config.JustAttributes()
					attrs = len(m)
				}
				fmt.Fprintf(&b, "%s/%d/%s,", ref.Name, attrs, ref.Where)
			}
		}
		asked = append(asked, b.String())
		got, err := given(t, map[string]string{"a": "1", "b": "2", "c": "3"}).Fetch(ctx, r)
		return got.Values, err
	}))
	out := output(t, rt, secretJob(t, "cat /run/secrets/a /run/secrets/b /run/secrets/c",
		`secret "a" {`, `provider = "store"`, `config {`, `path = "/x"`, `}`, `}`, `secret "b" {`, `provider = "other"`, `}`, `secret "c" {`, `provider = "store"`, `}`))
	if want := "32 store:a/1/job.hcl:3,c/0/job.hcl:12, other:b/0/job.hcl:9,"; out != "123" || len(asked) != 1 || asked[0] != want {
		t.Errorf("%q, asked %q, want %q", out, asked, want)
	}
}
