package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func TestIdentityIsFixed(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		if l.UID == 0 {
			teeth(t, l.bare(t, "identity"), "identity", "uid 1000", "setgroups", "CAP_SYS_ADMIN")
		}
		jobs := []job{l.attack("identity")}
		if l.UID == 0 {
			jobs = append(jobs, l.attack("identity").with(`  user = "1000:1000"`), l.attack("identity").with(`  namespaces { user = "host" }`),
				l.attack("identity").with("  user = \"1000:1000\"\n  namespaces { user = \"host\" }"))
		}
		for _, j := range jobs {
			held(t, l.attacked(t, j), "identity")
		}
	})
}

// A file that would make another user of who executes it: set-user-ID,
// set-group-ID, or with capabilities, on a workspace, a volume or in a rootfs.
func TestSetUserIDFiles(t *testing.T) {
	asRoot(t, func(t *testing.T, l *lab) {
		plain := testutil.PlainUser(t)
		write(t, filepath.Join(plain.Dir, "suid"), readFile(t, l.attacker), 0o755)
		suid := filepath.Join(plain.Dir, "suid")
		if err := os.Chmod(suid, 0o755|os.ModeSetuid|os.ModeSetgid); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		c := plain.Command(suid, "setuid", fmt.Sprint(plain.UID))
		c.Args[0] = "attacker"
		c.Stdout = &out
		if err := c.Run(); err != nil {
			t.Fatal(err)
		}
		teeth(t, result{out: out.String()}, "setuid", "euid 0")

		root := l.rootfs(t, "suidroot")
		for _, path := range []string{l.attacker, filepath.Join(root, "bin", "attacker")} {
			if err := os.Chmod(path, 0o755|os.ModeSetuid|os.ModeSetgid); err != nil {
				t.Fatal(err)
			}
			// cap_setuid,cap_sys_admin=ep in the form that vfs_cap_data has (capability.h).
			caps := []byte{1, 0, 0, 2, 0x80, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
			if err := unix.Setxattr(path, "security.capability", caps, 0); err != nil {
				t.Fatal(err)
			}
		}
		for _, users := range []string{"auto", "host"} {
			for _, j := range []job{l.attack("setuid", "1000"), l.inRootfs(root, "setuid", "1000"), l.inRootfs(root, "setuid", "1000").with("")} {
				j = j.with("  user = \"1000:1000\"\n  namespaces { user = %q }", users)
				held(t, l.attacked(t, j), "setuid")
			}
		}
	})
}

// A file with set-ID bits that a sandbox leaves in a directory of the host lends
// the identity of its owner, who started the sandbox, to anybody there.
func TestSetIDFilesAreNotLeftBehind(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		volume := func(name, head string) (job, string) {
			dir := l.dir(t, name)
			j := l.attack("setidfiles", "/out").with("  volume \"out\" {\n    source = %q\n    target = \"/out\"\n  }", dir)
			return j.with("%s", head), dir
		}
		weak, dir := volume("setid-weak", "")
		weak.security = "    capabilities { keep = [\"CAP_FSETID\"] }\n"
		teeth(t, l.run(t, weak), "setidfiles", "fchmod 4755", "fchmodat 2755", "fchmodat high 6755", "fchmodat2", "mknodat 4755", "openat creat 4755",
			"openat creat high 4755", "openat tmpfile 4755", "openat2 4755")
		if len(setIDFiles(t, dir)) == 0 {
			t.Error("no teeth: there is nothing on the host")
		}
		for i, head := range []string{"", "  init = false", "  user = \"1000:1000\""} {
			if l.UID != 0 && strings.Contains(head, "user") {
				continue
			}
			j, dir := volume(fmt.Sprintf("setid-%d", i), head)
			held(t, l.attacked(t, j), "setidfiles")
			if got := setIDFiles(t, dir); len(got) > 0 {
				t.Errorf("left on the host: %q", got)
			}
			if _, err := os.Stat(filepath.Join(dir, "plain")); err != nil {
				t.Error(err)
			}
		}
	})
}

func setIDFiles(t *testing.T, dir string) (found []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		i, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if i.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
			found = append(found, e.Name())
		}
	}
	return found
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A process of the host's, with the same uid, hears nothing of the signals that
// are sent inside, to everybody, to the group, and to each pid.
func TestSignalsStayInside(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		sentinel, stopped := l.sentinel(t)
		weak := l.outside(t, "setsid", "--wait", l.attacker, "signals", fmt.Sprint(sentinel))
		teeth(t, weak, "signals", "pidfd")
		if !stopped() {
			t.Error("no teeth: the sentinel survives the signal")
		}
		jobs := []job{l.attack("signals"), l.attack("signals").with("  init = false")}
		if l.UID == 0 {
			jobs = append(jobs, l.attack("signals").with(`  namespaces { user = "host" }`))
		}
		for _, j := range jobs {
			sentinel, stopped := l.sentinel(t)
			j.command = append(j.command, fmt.Sprint(sentinel))
			r := l.attacked(t, j)
			held(t, r, "signals")
			if stopped() {
				t.Error("a process of the host's was signalled")
			}
		}
	})
}

// sentinel starts a process that dies of a signal, and tells whether it has.
func (l *lab) sentinel(t *testing.T) (pid int, stopped func() bool) {
	t.Helper()
	c := l.Command("sleep", "1000")
	c.SysProcAttr.Setsid = true
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var gone atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Wait()
		gone.Store(true)
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-done
	})
	return c.Process.Pid, func() bool {
		time.Sleep(100 * time.Millisecond)
		return gone.Load()
	}
}

// A daemon that has done everything to be on its own ends with the sandbox;
// the census of the lab sees it if not.
func TestDaemonEndsWithTheSandbox(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		control := l.outside(t, l.attacker, "daemon")
		teeth(t, control, "daemon", "started")
		if pids := processesOf(t, l.attacker); len(pids) != 1 {
			t.Errorf("no teeth: %d daemons live on outside", len(pids))
		} else {
			_ = syscall.Kill(pids[0], syscall.SIGKILL)
		}
		for _, head := range []string{"", "  init = false"} {
			r := l.attacked(t, l.attack("daemon").with("%s", head))
			teeth(t, r, "daemon", "started")
			deadline := time.Now().Add(testutil.Patient(2 * time.Second))
			for len(processesOf(t, l.attacker)) > 0 {
				if time.Now().After(deadline) {
					t.Fatalf("a process of the sandbox outlived it: %v", processesOf(t, l.attacker))
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	})
}

// processesOf finds the live processes that run a program.
func processesOf(t testing.TB, path string) []int {
	t.Helper()
	var want, st unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		t.Fatal(err)
	}
	var out []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		if unix.Stat(fmt.Sprintf("/proc/%d/exe", pid), &st) == nil && st.Ino == want.Ino && st.Dev == want.Dev {
			out = append(out, pid)
		}
	}
	return out
}

// The supervisor is killed: nothing of the sandbox lives on.
func TestSupervisorKilled(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		for _, head := range []string{"", "  init = false"} {
			c := l.command(t.Context(), t, l.attack("daemon", "stay").with("%s", head))
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			await(t, "the workload", func() bool { return len(processesOf(t, l.attacker)) > 0 })
			_ = c.Process.Kill()
			_ = c.Wait()
			await(t, "the end of the workload", func() bool { return len(processesOf(t, l.attacker)) == 0 })
			if r := l.outside(t, "nucleus", "gc", "-state-root", l.state); r.code != 0 {
				t.Errorf("gc: %s", r.err)
			}
		}
	})
}

func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(testutil.Patient(10 * time.Second))
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
