package attack

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func digest(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

// unchanged fails the test if one of Nucleus's programs has changed at its end.
func (l *lab) unchanged(t *testing.T) {
	t.Helper()
	before := map[string]string{}
	for _, n := range []string{"nucleus", "nucleus-init"} {
		before[n] = digest(t, filepath.Join(l.Bin, n))
	}
	t.Cleanup(func() {
		for n, d := range before {
			if digest(t, filepath.Join(l.Bin, n)) != d {
				t.Errorf("%s on the host was changed from inside", n)
			}
		}
	})
}

// CVE-2019-5736: the runtime's program on the host is overwritten through
// /proc/PID/exe. The programs belong to the calling user, who is the workload
// too in a map of one id, or with user = "host".
func TestRuntimeBinaryIsNotOverwritten(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		l.Own(t, l.Bin)
		l.unchanged(t)
		// Teeth: a PID 1 of the same user, whose program the user owns, is open.
		shell := filepath.Join(l.dir(t, "victim"), "sh")
		b, err := os.ReadFile("/bin/sh")
		if err != nil {
			t.Fatal(err)
		}
		write(t, shell, string(b), 0o755)
		l.Own(t, shell)
		flags := []string{"--pid", "--fork", "--mount-proc", "--mount"}
		if l.UID != 0 {
			flags = append(flags, "--user", "--map-root-user")
		}
		argv := append(flags, "--kill-child", shell, "-c", l.attacker+" exe; exit $?")
		teeth(t, l.outside(t, "unshare", argv...), "exe", "handle of /proc/1/exe")

		jobs := []job{l.attack("exe"), l.attack("exe").with("  init = false")}
		if l.UID == 0 {
			jobs = append(jobs, l.attack("exe").with(`  namespaces { user = "host" }`), l.attack("exe").with("  init = false\n"+`  namespaces { user = "host" }`))
		}
		for _, j := range jobs {
			held(t, l.attacked(t, j), "exe")
		}
	})
}

// The second half of CVE-2019-5736: a command that is "#!/proc/self/exe" makes
// the kernel execute the runtime itself inside, with libraries of the
// attacker's choice and as a process that can be written to.
func TestShebangOfSelf(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		l.Own(t, l.Bin)
		l.unchanged(t)
		trap := filepath.Join(l.tools, "trap")
		write(t, trap, "#!/proc/self/exe\n", 0o755)
		for _, head := range []string{"", "  init = false", `  namespaces { user = "host" }`} {
			if strings.Contains(head, "host") && l.UID != 0 {
				continue
			}
			j := job{command: []string{"/workspace/trap"}, head: l.toolsVolume()}.with("%s", head)
			r := l.run(t, j)
			// Teeth: the trap works, or the kernel has no such door. As PID 1 the
			// program says nothing, for it finds no supervisor.
			silent := strings.Contains(head, "init = false") && r.code == 125 && r.err == ""
			if !strings.Contains(r.err, "nucleus-init") && r.code != 126 && !silent {
				t.Errorf("no teeth: the runtime was not executed by the trap: code %d\n%s%s%s", r.code, j.text(), r.out, r.err)
			}
			if r.code == 0 {
				t.Errorf("the trap ended well: %s%s", r.out, r.err)
			}
		}
	})
}

// PID 1 is the host's program with what is left of the host in its memory.
func TestInitIsOutOfReach(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		weak := l.bare(t, "proc1")
		teeth(t, weak, "proc1", "root is", "exe is", "list of root", "read maps", "read environ", "opened mem", "opened descriptor", "ptrace", "pidfd_getfd", "opened the namespace")
		jobs := []job{l.attack("proc1")}
		if l.UID == 0 {
			jobs = append(jobs, l.attack("proc1").with(`  namespaces { user = "host" }`), l.attack("proc1").with(`  user = "1000:1000"`))
		}
		for _, j := range jobs {
			r := l.attacked(t, j)
			held(t, r, "proc1")
			if r.code != 0 {
				t.Errorf("the sandbox did not survive the attack: code %d\n%s", r.code, r.err)
			}
		}
	})
}

// CVE-2024-21626: a descriptor of the host's left open is a way out, above all
// as a working directory. The caller leaves directories open on purpose.
func TestDescriptorsAndWorkingDirectory(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		root, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		run := func(j job) result {
			c := l.command(t.Context(), t, j)
			c.ExtraFiles = []*os.File{root, root, root, root, root, root, root}
			c.Dir = "/"
			return finish(t, c)
		}
		bare := l.Command(l.attacker, "descriptor")
		bare.ExtraFiles = []*os.File{root}
		teeth(t, finish(t, bare), "descriptor", "directory 3 /")
		r := run(l.attack("descriptor"))
		if len(r.lines("DONE")) == 0 {
			t.Fatalf("the attack did not run: %s%s", r.out, r.err)
		}
		held(t, r, "descriptor")
		for fd := range 24 {
			for _, path := range []string{fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprintf("/proc/1/fd/%d", fd)} {
				if fd > 12 && strings.HasPrefix(path, "/proc/1") {
					continue
				}
				j := l.attack("descriptor")
				j = j.with("  workdir = %q", path)
				held(t, run(j), "descriptor")
			}
		}
		// A link of the rootfs's to a descriptor, which no check of names sees.
		fs := l.rootfs(t, "linked")
		for fd := range 12 {
			link(t, fmt.Sprintf("/proc/self/fd/%d", fd), filepath.Join(fs, fmt.Sprintf("cwd%d", fd)))
		}
		for fd := range 12 {
			j := l.inRootfs(fs, "descriptor").with("  workdir = \"/cwd%d\"", fd)
			held(t, run(j), "descriptor")
		}
	})
}

// Standard streams that are files, directories or sockets of the host are
// handles to more than a stream.
func TestStandardStreamsGiveNoHandle(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		dir, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		out, err := os.CreateTemp(l.Dir, "stdout")
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		run := func(name string, args ...string) result {
			if _, err := out.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if err := out.Truncate(0); err != nil {
				t.Fatal(err)
			}
			c := l.Command(name, args...)
			c.Stdin, c.Stdout, c.Stderr = dir, out, out
			_ = c.Run() // what it did is in the file
			b, err := os.ReadFile(out.Name())
			if err != nil {
				t.Fatal(err)
			}
			return result{out: string(b)}
		}
		teeth(t, run(l.attacker, "descriptor"), "descriptor", "directory 0 /", "file 1")
		j := l.attack("descriptor")
		file := filepath.Join(l.Dir, "streams.hcl")
		write(t, file, j.text(), 0o644)
		r := run("nucleus", "run", "-state-root", l.state, "-config", file)
		held(t, r, "descriptor")
	})
}

// The environment of the caller stays outside, and what a job sets cannot reach
// into init or into the helpers that run on the host (CVE-2025-23266).
func TestEnvironment(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		const canary = "CANARY-OF-THE-CALLER"
		library := filepath.Join(l.dir(t, "preload"), "x.so")
		write(t, library, "not a library", 0o755)
		hostile := []string{"SECRET=" + canary, "LD_PRELOAD=" + library, "LD_LIBRARY_PATH=" + filepath.Dir(library), "GODEBUG=asyncpreemptoff=1", "GOTRACEBACK=crash", "BASH_ENV=" + canary}
		bare := l.Command(l.attacker, "env", canary)
		bare.Env = append(bare.Env, hostile...)
		teeth(t, finish(t, bare), "env", canary+" of self")
		for _, head := range []string{"", `  user = "1000:1000"`} {
			c := l.command(t.Context(), t, l.attack("env", canary, "LD_PRELOAD", "GODEBUG").with("%s", head))
			c.Env = append(c.Env, hostile...)
			held(t, finish(t, c), "env")
		}
	})
}

// Names, ids and paths of an attacker's are printed, and must not drive the
// terminal of who reads them.
func TestEscapeSequences(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		const escape = "\x1b]0;owned\x07\x1b[2J\u009b31m\r"
		if r := l.outside(t, "sh", "-c", `"$0"`, "./"+escape); !strings.Contains(r.err, "\x1b") {
			t.Errorf("no teeth: the shell printed %q", r.err)
		}
		evil := l.dir(t, "evil")
		fs := l.rootfs(t, "named")
		if err := os.Mkdir(filepath.Join(fs, escape), 0o755); err != nil {
			t.Fatal(err)
		}
		jobs := []job{
			{command: []string{"/bin/" + escape}},
			{command: []string{escape}},
			job{command: []string{"/bin/true"}}.with("  workdir = %s", hcl("/"+escape)),
			job{command: []string{"/bin/true"}}.with("  user = %s", hcl(escape)),
			job{command: []string{"/bin/true"}}.with("  hostname = %s", hcl(escape)),
			job{command: []string{"/bin/true"}}.with("  %s {}", "block").with("  env = { A = %s }", hcl(escape)),
			job{command: []string{"/bin/true"}}.with("  volume \"v\" {\n    source = %s\n    target = \"/v\"\n  }", hcl(evil+"/"+escape)),
			l.inRootfs(fs, "env", "x").with("  tmpfs %s {}", hcl("/"+escape+"/below")),
		}
		for _, j := range jobs {
			r := l.run(t, j)
			if i := strings.IndexFunc(r.err, control); i >= 0 {
				t.Errorf("a control character in %q\nof the job\n%s", r.err[max(0, i-60):min(len(r.err), i+60)], j.text())
			}
			if r.err == "" {
				t.Errorf("no teeth: nothing was said of\n%s", j.text())
			}
		}
		for _, name := range []string{escape, "../../" + escape} {
			r := l.outside(t, "nucleus", "run", "-state-root", l.state, "-name", name, "--", "/bin/true")
			if i := strings.IndexFunc(r.err, control); i >= 0 || r.code == 0 {
				t.Errorf("name %q: code %d, %q", name, r.code, r.err)
			}
		}
	})
}

// control tells the characters that a terminal obeys.
func control(r rune) bool {
	return r != '\n' && r != '\t' && (r < 0x20 || r >= 0x7f && r < 0xa0)
}

// hcl quotes for HCL, which knows other escapes than Go.
func hcl(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r >= 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// What the runtime keeps for itself is not to be found inside, under any name,
// nor are the supervisor's sockets.
func TestStateIsOutOfReach(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		wanted := []string{"control.sock", "journal.jsonl", "state.json", "plan.json", "events.jsonl", "nucleus-init", "nucleus"}
		seen := make(chan []string, 1)
		go func() {
			for range 400 {
				if found, _ := filepath.Glob(filepath.Join(l.state, "sandboxes", "*", "journal.jsonl")); len(found) > 0 {
					seen <- found
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
			seen <- nil
		}()
		held(t, l.attacked(t, l.attack(append([]string{"names"}, wanted...)...)), "names")
		if found := <-seen; len(found) == 0 {
			t.Error("no teeth: the state root held no journal while the sandbox ran")
		}
		for _, source := range []string{l.state, filepath.Join(l.state, "sandboxes"), l.Dir, l.Bin} {
			j := l.attack(append([]string{"names"}, wanted...)...).with("  volume \"v\" {\n    source = %q\n    target = \"/volume\"\n  }", source)
			if r := l.run(t, j); len(r.all()) > 0 || r.code != 125 {
				t.Errorf("a volume with Nucleus's own files: code %d, found %q", r.code, r.all())
			}
		}
	})
}
