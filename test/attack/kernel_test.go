package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// Every door to new namespaces, and to those that exist: unshare, clone with
// rubbish in the upper half of its flags, clone3, setns, the 32-bit doors.
func TestNamespacesByAnyDoor(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		weak := l.bare(t, "namespaces")
		teeth(t, weak, "namespaces", "unshare user", "unshare mnt", "unshare net", "clone user", "clone pid", "clone3 user", "setns self mnt")
		held(t, l.attacked(t, l.attack("namespaces")), "namespaces")
	})
}

func TestMountsCannotBeChanged(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		volume := l.dir(t, "volume")
		weak := l.bare(t, "mounts", volume)
		teeth(t, weak, "mounts", "mount tmpfs", "mount proc", "bind /", "fsopen tmpfs", "remount", "umount /proc", "chroot", "open_tree", "wrote below")
		clear(t, volume)
		j := l.attack("mounts", "/volume").with("  volume \"v\" {\n    source    = %q\n    target    = \"/volume\"\n    read_only = true\n  }", volume)
		held(t, l.attacked(t, j), "mounts")
		if left := names(t, volume); len(left) > 0 {
			t.Errorf("the read-only volume was written to: %q", left)
		}
		// With every capability, and no filter, Landlock alone keeps the mounts.
		held(t, l.attacked(t, l.weakened(t, j)), "mounts mount")
	})
}

// procfs and sysfs give the machine to who can write to them: no file outside
// of the process's own directory may even be opened for it.
func TestWriteGadgets(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		if l.UID == 0 {
			teeth(t, l.bare(t, "gadgets"), "gadgets", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/poweroff_cmd", "/sys/power/state")
		} else {
			teeth(t, l.bare(t, "gadgets"), "gadgets", "/proc/sys/kernel/ns_last_pid")
		}
		jobs := []job{l.attack("gadgets", "all"), l.attack("gadgets", "all").with(`  network "host" {}`)}
		if l.UID == 0 {
			jobs = append(jobs, l.attack("gadgets", "all").with("  network \"host\" {}\n  namespaces { user = \"host\" }"))
		}
		for _, j := range jobs {
			var bad []string
			for _, path := range l.attacked(t, j).wins("gadgets") {
				if !slices.Contains(harmless, path) {
					bad = append(bad, path)
				}
			}
			if len(bad) > 0 {
				t.Errorf("open for writing: %q", bad)
			}
		}
	})
}

// harmless may be opened by everybody everywhere, and what is written there
// concerns the writer: the workload can make init the first victim when its own
// memory is short, which ends its own sandbox; a login id only its owner can
// set.
var harmless = []string{"/proc/1/oom_score_adj", "/proc/1/loginuid"}

func TestHostIsNotRead(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		if l.UID == 0 {
			teeth(t, l.bare(t, "leaks"), "leaks", "/proc/kallsyms", "/proc/timer_list", "/etc/shadow")
		} else {
			teeth(t, l.bare(t, "leaks"), "leaks", "/proc/kallsyms", "/proc/interrupts")
		}
		held(t, l.attacked(t, l.attack("leaks")), "leaks")
		if l.UID == 0 {
			held(t, l.attacked(t, l.attack("leaks").with(`  namespaces { user = "host" }`)), "leaks")
		}
	})
}

func TestDeviceNodes(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		volume := l.dir(t, "volume")
		if l.UID == 0 {
			teeth(t, l.bare(t, "devices", volume), "devices", "made "+volume+"/attack-mem", "opened /tmp/attack-kmsg")
		}
		lend := fmt.Sprintf("  volume \"v\" {\n    source = %q\n    target = \"/volume\"\n  }", volume)
		held(t, l.attacked(t, l.attack("devices", "/volume").with("%s", lend)), "devices")
		if l.UID != 0 {
			return
		}
		held(t, l.attacked(t, l.attack("devices", "/volume").with("%s\n  namespaces { user = \"host\" }", lend)), "devices")
		// Nodes that somebody left on a volume or a workspace.
		node := filepath.Join(volume, "kmsg")
		if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 11))); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(node, 0o666); err != nil {
			t.Fatal(err)
		}
		teeth(t, l.outside(t, l.attacker, "opendev", node), "opendev", node)
		for _, users := range []string{"auto", "host"} {
			j := l.attack("opendev", "/volume/kmsg").with("%s\n  namespaces { user = %q }", lend, users)
			held(t, l.attacked(t, j), "opendev")
		}
	})
}

// Keys are found by whoever has the right uid, in any namespace of the host.
func TestKeyrings(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		teeth(t, l.bare(t, "keys", "canary"), "keys", "keyring", "added to")
		held(t, l.attacked(t, l.attack("keys", "canary")), "keys")
		if l.UID == 0 {
			held(t, l.attacked(t, l.attack("keys", "canary").with(`  namespaces { user = "host" }`)), "keys")
		}
		// The filter open, the caller's session keyring is still not there.
		j := l.attack("keys", "canary")
		j.security = "    seccomp {\n      allow = [\"keyctl\", \"add_key\"]\n    }\n"
		r := l.withKey(t, j)
		teeth(t, r, "keys", "keyring") // keyctl works
		if slices.ContainsFunc(r.wins("keys"), func(w string) bool { return strings.Contains(w, "secret") }) {
			t.Errorf("the caller's key was read: %q", r.wins("keys"))
		}
	})
}

// withKey runs a job from a session whose keyring holds the canary.
func (l *lab) withKey(t *testing.T, j job) result {
	t.Helper()
	testutil.Needs(t, testutil.Program("python3"))
	c := l.command(t.Context(), t, j)
	// A new anonymous session keyring with one key, then the program.
	script := `import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.syscall(250, 1, 0) >= 0, "keyctl"
assert libc.syscall(248, b"user", b"canary", b"SECRET", 6, -3) >= 0, "add_key"
os.execv(sys.argv[1], sys.argv[1:])`
	outside := c.Args
	c.Path, c.Args = "/usr/bin/python3", append([]string{"python3", "-c", script}, outside...)
	control := l.Command("/usr/bin/python3", "-c", script, l.attacker, "keys", "canary")
	teeth(t, finish(t, control), "keys", "secret SECRET")
	return finish(t, c)
}

func TestCoreDumps(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		held(t, l.attacked(t, l.attack("core")), "core")
		if pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err == nil && !strings.HasPrefix(string(pattern), "|") && l.UID == 0 {
			teeth(t, l.unshared(t, []string{"--mount"}, "core"), "core", "dumped")
		}
	})
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func clear(t testing.TB, dir string) {
	t.Helper()
	for _, n := range names(t, dir) {
		if err := os.RemoveAll(filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
}
