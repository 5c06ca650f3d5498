package attack

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rootfs makes a minimal root directory of the identity's, which holds the attacker.
func (l *lab) rootfs(t *testing.T, name string) string {
	t.Helper()
	root := filepath.Join(l.Dir, name)
	for _, d := range []string{"bin", "etc", "dev", "proc", "sys", "tmp", "run", "root", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(l.attacker)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "bin", "attacker"), string(b), 0o755)
	l.Own(t, root)
	return root
}

// inRootfs makes the job of a sandbox with that root, in which the attacker runs.
func (l *lab) inRootfs(root string, args ...string) job {
	return job{command: append([]string{"/bin/attacker"}, args...)}.with("  rootfs {\n    path = %q\n  }", root)
}

func link(t testing.TB, target, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// snapshot tells everything of a tree that an attack could change.
func snapshot(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %s %d", path, info.Mode(), info.ModTime().UnixNano())
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += " " + string(b)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// outsideDir makes a tree of the host's with canaries, and fails the test if it
// is not as it was at its end.
func (l *lab) outsideDir(t *testing.T, name string) string {
	t.Helper()
	dir := l.dir(t, name)
	for _, n := range []string{"canary", "null", "hosts", "shadow"} {
		write(t, filepath.Join(dir, n), "CANARY-OUTSIDE", 0o666)
	}
	l.Own(t, dir)
	before := snapshot(t, dir)
	t.Cleanup(func() {
		if after := snapshot(t, dir); !slices.Equal(before, after) {
			t.Errorf("the host was changed: %s is now\n  %s", dir, strings.Join(after, "\n  "))
		}
	})
	return dir
}

// targets are the places of a root that something is mounted on, or written to.
var targets = []string{
	"dev", "dev/null", "dev/pts", "dev/shm", "dev/console", "proc", "proc/self", "sys", "sys/fs", "tmp", "run", "root", "var/tmp", "var",
	"etc", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/passwd", "etc/group", ".nucleus", ".nucleus/lower", "workspace", "volume", "volume/deep",
}

// Each mount target in turn is a link out of the rootfs, absolute or not
// (CVE-2021-30465, CVE-2026-41579 and relatives): nothing outside is created,
// mounted over or read.
func TestLinksAtMountTargets(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		victim := l.outsideDir(t, "outside")
		volume := l.dir(t, "lent")
		ran := 0
		for i, target := range targets {
			for k, to := range []string{victim, "../../../../../../../.." + victim} {
				for _, writable := range []string{"none", "overlay"} {
					if k == 1 && writable == "overlay" {
						continue // the same code, and starts cost time
					}
					root := l.rootfs(t, fmt.Sprintf("root-%d-%d-%s", i, k, writable))
					link(t, to, filepath.Join(root, target))
					j := job{command: []string{"/bin/attacker", "sweep", "CANARY-OUT" + "SIDE"}}
					j = j.with("  rootfs {\n    path = %q\n    writable = %q\n  }", root, writable)
					j = j.with("  volume \"v\" {\n    source = %q\n    target = \"/volume/deep\"\n  }\n  tmpfs \"/scratch/deep\" {}", volume)
					r := l.run(t, j)
					held(t, r, "sweep content")
					if len(r.lines("DONE")) > 0 {
						ran++
					} else if r.code != 125 && r.code != 126 && r.code != 127 {
						t.Errorf("link at %s: code %d\n%s%s", target, r.code, r.out, r.err)
					}
				}
			}
		}
		if ran == 0 {
			t.Error("no teeth: no sandbox with a link in its root came up")
		}
		// Teeth: what resolves the same names by the usual rules does go outside.
		root := l.rootfs(t, "naive")
		link(t, victim+"/../naive-victim", filepath.Join(root, "etc"))
		naive := l.dir(t, "naive-victim")
		write(t, filepath.Join(root, "etc", "hosts"), "written", 0o644)
		if len(names(t, naive)) == 0 {
			t.Error("no teeth: a link at a mount target leads nowhere")
		}
	})
}

// CVE-2025-31133: the rootfs has its own dev/null, a link, a file or another
// device, where masks are taken from. The masks must hold all the same.
func TestOwnNullDevice(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		victim := l.outsideDir(t, "outside")
		for i, make := range []func(path string){
			func(path string) { link(t, "/proc/sys/kernel/core_pattern", path) },
			func(path string) { link(t, victim+"/null", path) },
			func(path string) { write(t, path, "CANARY", 0o666) },
			func(path string) { link(t, "/proc/kallsyms", path) },
		} {
			for _, name := range []string{"null", "console"} {
				root := l.rootfs(t, fmt.Sprintf("null-%d-%s", i, name))
				make(filepath.Join(root, "dev", name))
				r := l.attacked(t, l.inRootfs(root, "leaks"))
				held(t, r, "leaks")
				held(t, l.attacked(t, l.inRootfs(root, "mounts")), "mounts")
			}
		}
		teeth(t, l.bare(t, "leaks"), "leaks", "/proc/kallsyms")
	})
}

// A rootfs may hold anything. What is read of it must not block the start, nor
// read what is not its own.
func TestFilesThatTheStartReads(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		victim := l.dir(t, "outside")
		write(t, filepath.Join(victim, "passwd"), "canaryuser:x:1234:1234::/:/bin/sh\n", 0o644)
		for _, file := range []string{"etc/passwd", "etc/group"} {
			root := l.rootfs(t, "fifo-"+filepath.Base(file))
			path := filepath.Join(root, file)
			if r := l.outside(t, "mkfifo", path); r.code != 0 {
				t.Fatal(r.err)
			}
			r := l.run(t, l.inRootfs(root, "env", "x").with(`  user = "somebody"`))
			if r.code == -1 {
				t.Errorf("a pipe at %s blocks the start", file)
			}
		}
		for k, to := range []string{victim + "/passwd", "../../outside/passwd"} {
			root := l.rootfs(t, fmt.Sprintf("passwd-%d", k))
			link(t, to, filepath.Join(root, "etc", "passwd"))
			r := l.run(t, l.inRootfs(root, "env", "x").with(`  user = "canaryuser"`))
			if r.code != 125 || strings.Contains(r.err, "1234") {
				t.Errorf("the host's file was read through a link at etc/passwd: code %d %s", r.code, r.err)
			}
		}
		// Teeth: with the file itself the user is found.
		root := l.rootfs(t, "honest")
		write(t, filepath.Join(root, "etc", "passwd"), "canaryuser:x:1234:1234::/:/bin/sh\n", 0o644)
		if r := l.run(t, l.inRootfs(root, "env", "x").with(`  user = "canaryuser"`)); strings.Contains(r.err, "is not in") {
			t.Errorf("no teeth: %s", r.err)
		}
	})
}
