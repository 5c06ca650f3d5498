package software

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// example is a folder of the project's examples and what running it shows.
type example struct {
	needs    []testutil.Requirement
	own      []testutil.Requirement // needed of the account itself: asked only of the test process
	prepare  bool                   // prepare.sh comes first
	runsc    bool                   // gVisor's program is needed
	args     []string
	want     string
	dialogue string
	made     []string // what must be there afterwards, and is not committed
}

var examples = map[string]example{
	"hello":          {want: `hello from nucleus`},
	"python":         {needs: programs("python3"), want: `5 numbers summarised in report\.txt`, made: []string{"work/report.txt"}},
	"build":          {needs: programs("gcc", "make"), want: `hello from a sandbox`, made: []string{"work/hello", "work/hello.o", "work/text.o"}},
	"postgres":       {needs: programs("initdb", "pgbench"), want: `number of transactions actually processed: 200/200`},
	"shell":          {needs: programs("bash", "script"), want: `.*uid=0\(root\).*`, dialogue: "< sandbox:/# \n> id\\r\n< uid=0\n> exit\\r\n"},
	"rootfs-busybox": {needs: programs("busybox"), prepare: true, made: []string{"rootfs"}, want: `changed`},
	"limits":         {own: limiting, want: "200 MB in memory: exit code 137\n100 processes: exit code 2"},
	"egress":         {needs: programs("bash"), want: `example\.org: no rule names it` + "\n" + `192\.0\.2\.1: .*` + "\n" + `169\.254\.169\.254: .*` + "\n" + `127\.0\.0\.1: .*`},
	"context":        {want: `\./settings\.ini` + "\n" + `\[server\]` + "\n" + `port = 8080` + "\n" + `cannot write`},
	"untrusted":      {runsc: true, want: `[0-9.]+-gvisor\nread: a line of somebody's`, made: []string{"work/output"}},
	"production":     {needs: programs("busybox"), own: limiting, prepare: true, made: []string{"rootfs", "digest.hcl"}, args: []string{"-var-file", "digest.hcl"}, want: "1000\ncannot execute what it wrote"},
}

var limiting = []testutil.Requirement{testutil.CgroupController("memory"), testutil.CgroupController("cpu"), testutil.CgroupController("pids")}

func programs(names ...string) (out []testutil.Requirement) {
	for _, n := range names {
		out = append(out, installed(n))
	}
	return out
}

// TestExamples runs a copy of each example as it stands.
func TestExamples(t *testing.T) {
	const dir = "../../examples"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	asEach(t, func(t *testing.T, h host) {
		for _, e := range entries {
			if _, err := os.Stat(filepath.Join(dir, e.Name(), "job.hcl")); err != nil {
				continue
			}
			t.Run(e.Name(), func(t *testing.T) {
				x, ok := examples[e.Name()]
				if !ok {
					t.Fatal("this example is not tried: say in examples what it shows")
				}
				h.show(t, filepath.Join(dir, e.Name()), x)
			})
		}
	})
}

func (h host) show(t *testing.T, from string, x example) {
	t.Helper()
	testutil.Needs(t, x.needs...)
	if len(x.own) > 0 {
		// Delegation to another user than the one who runs the tests cannot be probed from here.
		if h.UID != os.Geteuid() {
			testutil.Needs(t, testutil.Unprivileged)
		}
		testutil.Needs(t, x.own...)
	}
	if x.runsc {
		testutil.Needs(t, testutil.Runsc)
	}
	testutil.NoLeaks(t, h.scope())
	dir := filepath.Join(h.Home, "examples", filepath.Base(from))
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	// What a run in the checkout has left is not what this one makes.
	for _, made := range x.made {
		if err := os.RemoveAll(filepath.Join(dir, made)); err != nil {
			t.Fatal(err)
		}
	}
	h.Own(t, filepath.Join(h.Home, "examples"))
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Patient(patience))
	defer cancel()
	run := func(c *exec.Cmd, dialogue []exchange) result {
		c.Dir = dir
		c.Env = append(c.Env, "NUCLEUS_STATE_ROOT="+h.state, "SHELL=/bin/sh")
		c.WaitDelay = 5 * time.Second
		r := finish(t, c, dialogue)
		if r.code != 0 {
			t.Errorf("%s: exit code %d\n%s\n%s", c, r.code, tail(r.out), tail(r.err))
		}
		return r
	}
	if x.prepare {
		run(h.CommandContext(ctx, "./prepare.sh"), nil)
	}
	var r result
	if x.dialogue != "" {
		dialogue, err := parseDialogue(x.dialogue)
		if err != nil {
			t.Fatal(err)
		}
		r = run(h.CommandContext(ctx, "script", "-qec", h.Bin+"/nucleus run -config job.hcl", "/dev/null"), dialogue)
	} else {
		r = run(h.CommandContext(ctx, "nucleus", slices.Concat([]string{"run", "-config", "job.hcl"}, x.args)...), nil)
	}
	if !regexp.MustCompile("(?m)^" + x.want + "\r?$").MatchString(r.out) {
		t.Errorf("the output does not show %s\n%s\n%s", x.want, tail(r.out), tail(r.err))
	}
	for _, made := range x.made {
		if _, err := os.Stat(filepath.Join(dir, made)); err != nil {
			t.Error(err)
		}
	}
}
