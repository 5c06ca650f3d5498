package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// fake makes a dead sandbox with this journal; the file is the account's.
func (s *site) fake(journal string) (id string) {
	s.t.Helper()
	id = state.NewID()
	dir := filepath.Join(s.root, "sandboxes", id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "journal.jsonl"), []byte(journal), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.who.Own(s.t, dir)
	return id
}

// What gc cannot understand it tells of and leaves, and it collects the rest.
func TestDamagedStateHindersNoCollection(t *testing.T) {
	for _, test := range []struct {
		what    string
		damage  func(s *site) (path string)
		said    string // "" if it is no damage that matters
		harmful bool
	}{
		{"torn last record", func(s *site) string {
			return s.fake("{\"seq\":1,\"phase\":\"done\",\"step\":\"x\"}\n{\"seq\":2,\"phase\":\"int")
		}, "", false},
		{"unknown step", func(s *site) string {
			return s.fake("{\"seq\":1,\"phase\":\"intent\",\"step\":\"teleport\",\"data\":{}}\n")
		}, `"teleport": written by another version`, true},
		{"damaged record", func(s *site) string { return s.fake("\x00\x01\x02\n{\"seq\":2}\n") }, "journal", true},
		{"unreadable journal", func(s *site) string {
			id := s.fake("")
			path := filepath.Join(s.root, "sandboxes", id, "journal.jsonl")
			if err := os.Remove(path); err != nil {
				s.t.Fatal(err)
			}
			if err := os.Mkdir(path, 0o700); err != nil {
				s.t.Fatal(err)
			}
			s.who.Own(s.t, path)
			return id
		}, "journal", true},
		{"foreign file", func(s *site) string {
			path := filepath.Join(s.root, "sandboxes", "notes.txt")
			if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
				s.t.Fatal(err)
			}
			return "notes.txt"
		}, "notes.txt", true},
		{"foreign directory", func(s *site) string {
			if err := os.MkdirAll(filepath.Join(s.root, "sandboxes", "backup", "x"), 0o700); err != nil {
				s.t.Fatal(err)
			}
			return "backup"
		}, "backup", true},
	} {
		t.Run(test.what, func(t *testing.T) {
			sites(t, func(s *site) {
				bad := test.damage(s)
				if test.harmful {
					defer os.RemoveAll(filepath.Join(s.root, "sandboxes", bad))
				}
				// Two more that are in order, whatever the order of the directory.
				for range 2 {
					r := s.start("run", "--", "/bin/sh", "-c", "sleep 20")
					s.workload(r)
					_ = r.cmd.Process.Kill()
					_ = s.wait(r)
				}
				s.quiet()
				code, out := s.try("gc")
				if (code != 0) != test.harmful || !strings.Contains(out, test.said) {
					s.t.Errorf("gc: exit code %d, want it to tell of %q: %s", code, test.said, out)
				}
				left := s.dead()
				if test.harmful && (len(left) != 1 || left[0] != bad) || !test.harmful && len(left) != 0 {
					s.t.Errorf("left: %q, want the bad one alone if any", left)
				}
				if code, out := s.try("run", "--", "/bin/true"); code != 0 {
					s.t.Errorf("a run beside it: exit code %d: %s", code, out)
				}
			})
		})
	}
}

// Pids come again. What the journal names is a process, not a number.
func TestReusedPidIsNotKilled(t *testing.T) {
	sites(t, func(s *site) {
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			s.t.Fatal(err)
		}
		for _, other := range []bool{true, false} {
			cmd := s.who.Command("/bin/sleep", "60")
			if err := cmd.Start(); err != nil {
				s.t.Fatal(err)
			}
			start := "1"
			if !other {
				stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
				if err != nil {
					s.t.Fatal(err)
				}
				start = strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[19]
			}
			data, err := json.Marshal(map[string]any{"pid": cmd.Process.Pid, "start": start, "boot": strings.TrimSpace(string(boot))})
			if err != nil {
				s.t.Fatal(err)
			}
			s.fake(`{"seq":1,"phase":"intent","step":"init","data":` + string(data) + "}\n")
			if code, out := s.try("gc"); code != 0 {
				s.t.Errorf("gc: exit code %d: %s", code, out)
			}
			if err := unix.Kill(cmd.Process.Pid, unix.SIGTERM); err != nil && other {
				s.t.Error(err)
			}
			want := map[bool]unix.Signal{true: unix.SIGTERM, false: unix.SIGKILL}[other]
			if code := finish(s.t, cmd, cmd.Wait()); code != -int(want) {
				s.t.Errorf("another process is %t: ended by %d, want %d", other, -code, want)
			}
		}
	})
}

// Whoever removes the state root has removed the sandbox's files; what the
// sandbox did elsewhere must still be undone.
func TestStateRootRemovedWhileRunning(t *testing.T) {
	sites(t, func(s *site) {
		for name, args := range s.jobs("sleep 0.5 & wait; exit 5") {
			r := s.start(args...)
			s.workload(r)
			if err := os.RemoveAll(s.root); err != nil {
				s.t.Fatal(err)
			}
			if code := s.wait(r); code != 5 {
				s.t.Errorf("%s: exit code %d, want the workload's 5: %s", name, code, r.out)
			}
			s.nothingLeft(name + ", its state root removed")
		}
		// The directories are made again for who counts files.
		if code, out := s.try("gc"); code != 0 {
			s.t.Errorf("gc: exit code %d: %s", code, out)
		}
	})
}

// A state root that is full, to whatever degree, is an error that says so, or
// none at all; it is never a sandbox that is left.
func TestFullStateRoot(t *testing.T) {
	testutil.Needs(t, testutil.Root, testutil.Program("unshare"), testutil.Program("setpriv"))
	for _, kind := range []struct {
		name string
		make func(testing.TB) *testutil.Account
	}{{"self", testutil.Self}, {"plain", testutil.PlainUser}} {
		t.Run(kind.name, func(t *testing.T) {
			s := newSite(t, kind.make(t))
			mount := filepath.Join(s.who.Dir, "full")
			if err := os.Mkdir(mount, 0o755); err != nil {
				t.Fatal(err)
			}
			failed, worked := 0, 0
			for free := range 10 {
				// In a mount namespace of its own, which ends with the script. What
				// is left in the state root is listed last.
				script := fmt.Sprintf(`set -e
mount -t tmpfs -o size=64k,mode=0700,uid=%[1]d,gid=%[2]d tmpfs %[3]q
as() { setpriv --reuid %[1]d --regid %[2]d --clear-groups "$@"; }
export NUCLEUS_STATE_ROOT=%[3]q/root
as nucleus gc
as dd if=/dev/zero of=%[3]q/fill bs=4096 count=%[4]d 2>/dev/null || :
code=0; as nucleus run -- /bin/sh -c 'exit 9' 2>&1 || code=$?
echo "CODE $code"
find %[3]q/root -mindepth 2 | sed 's/^/LEFT /'
`, s.who.UID, s.who.GID, mount, 16-free)
				cmd := exec.Command("unshare", "-m", "--propagation", "private", "bash", "-c", script)
				cmd.Env, cmd.Dir = s.who.Env(), s.who.Dir
				out, err := cmd.CombinedOutput()
				text := string(out)
				switch {
				case err != nil:
					t.Fatalf("%d pages free: %v: %s", free, err, text)
				case strings.Contains(text, "CODE 9\n"):
					worked++
				case strings.Contains(text, "CODE 125\n") && strings.Contains(text, "no space left on device") && strings.Contains(text, "nucleus: hint: "):
					failed++
				default:
					t.Errorf("%d pages free: %s", free, text)
				}
				if strings.Contains(text, "LEFT ") {
					t.Errorf("%d pages free: left behind: %s", free, text)
				}
			}
			if failed == 0 || worked == 0 {
				t.Errorf("%d runs failed and %d worked: the disk was never full, or always", failed, worked)
			}
		})
	}
}

// Without permission to make user namespaces an ordinary user gets an error
// with a remedy, and a clean state root.
func TestNoUserNamespaces(t *testing.T) {
	testutil.Needs(t, testutil.UserNS, testutil.Program("unshare"))
	sites(t, func(s *site) {
		// The limit is of the user namespace that unshare makes: the host's is not touched.
		cmd := s.who.Command("unshare", "-Ur", "sh", "-c", "echo 0 > /proc/sys/user/max_user_namespaces && exec nucleus run -- /bin/true")
		cmd.Env = append(cmd.Env, "NUCLEUS_STATE_ROOT="+s.root)
		out, err := cmd.CombinedOutput()
		code := finish(s.t, cmd, err)
		if code != 125 || !strings.Contains(string(out), "creating namespaces") || !strings.Contains(string(out), "nucleus: hint: ") {
			s.t.Errorf("exit code %d, want 125 with a hint: %s", code, out)
		}
		s.nothingLeft("no user namespaces")
	})
}

// A limit of processes that the start itself runs into.
func TestNoProcesses(t *testing.T) {
	testutil.Needs(t, testutil.Program("prlimit"))
	sites(t, func(s *site) {
		if s.who.UID == 0 {
			return // root is not held by RLIMIT_NPROC
		}
		for n := 1; n < 40; n += 3 {
			cmd := s.who.Command("prlimit", "--nproc="+strconv.Itoa(n), "nucleus", "run", "--", "/bin/true")
			cmd.Env = append(cmd.Env, "NUCLEUS_STATE_ROOT="+s.root)
			done := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
			out, err := cmd.CombinedOutput()
			done.Stop()
			if code := finish(s.t, cmd, err); code != 0 && code != 125 && code != 2 { // 2: the Go runtime had no thread to start with
				s.t.Errorf("with %d processes: exit code %d: %s", n, code, out)
			}
			s.gc(fmt.Sprintf("with %d processes", n))
		}
	})
}
