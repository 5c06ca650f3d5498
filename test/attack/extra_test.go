package attack

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// In mode production another user's processes are not even seen (hidepid).
func TestOtherProcessesAreHidden(t *testing.T) {
	asRoot(t, func(t *testing.T, l *lab) {
		// Init is root's and the workload is not: without hidepid it is seen.
		open := l.attacked(t, l.attack("posture").with(`  user = "1000:1000"`)).posture(t)
		if open.Pids != 2 {
			t.Errorf("no teeth: %d processes are seen in mode agent", open.Pids)
		}
		root := l.rootfs(t, "root")
		d := l.outside(t, "nucleus", "rootfs", "digest", root)
		if d.code != 0 {
			t.Fatal(d.err)
		}
		testutil.Needs(t, testutil.CgroupController("memory"), testutil.CgroupController("pids"), testutil.CgroupController("cpu"))
		j := job{command: []string{"/bin/attacker", "posture"}}.with(`  mode = "production"
  user = "1000:1000"
  resources {
    memory = "128MiB"
    cpus = 1
    pids = 64
  }
  rootfs {
    path   = %q
    digest = %q
  }`, root, strings.Fields(d.out)[0])
		if hidden := l.attacked(t, j).posture(t); hidden.Pids != 1 {
			t.Errorf("%d processes are seen in mode production", hidden.Pids)
		}
	})
}

// A rootfs is attested before it is used: what its owner changes between the
// digest and the run ends the start, whatever the change is.
func TestChangedRootfsIsRefused(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		for _, change := range []struct {
			name string
			do   func(root string) error
		}{
			{"nothing", func(string) error { return nil }},
			{"content", func(root string) error { return os.WriteFile(filepath.Join(root, "etc", "x"), []byte("evil"), 0o644) }},
			{"a bit more permission", func(root string) error { return os.Chmod(filepath.Join(root, "etc"), 0o777) }},
			{"a link", func(root string) error { return os.Symlink("/etc/shadow", filepath.Join(root, "etc", "x")) }},
			{"set-user-ID", func(root string) error { return os.Chmod(filepath.Join(root, "bin", "attacker"), 0o755|os.ModeSetuid) }},
		} {
			root := l.rootfs(t, "attested-"+strings.ReplaceAll(change.name, " ", "-"))
			d := l.outside(t, "nucleus", "rootfs", "digest", root)
			if d.code != 0 {
				t.Fatal(d.err)
			}
			if err := change.do(root); err != nil {
				t.Fatal(err)
			}
			j := job{command: []string{"/bin/attacker", "env", "x"}}.with("  rootfs {\n    path = %q\n    digest = %q\n  }", root, strings.Fields(d.out)[0])
			r := l.run(t, j)
			ran := len(r.lines("DONE")) > 0
			if ran != (change.name == "nothing") {
				t.Errorf("changed: %s; ran: %t, code %d\n%s", change.name, ran, r.code, r.err)
			}
		}
	})
}

// Overlay attributes in a rootfs or a workspace, set by its owner, could make a
// name show another file's data, or hide one, in the layer above.
func TestOverlayAttributes(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		root := l.rootfs(t, "root")
		secret := filepath.Join(root, "secret")
		if err := os.Mkdir(secret, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(secret, "file"), "CANARY-OVERLAY", 0o600)
		plain := filepath.Join(root, "plain")
		if err := os.Mkdir(plain, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(plain, "file"), "plain", 0o644)
		for _, prefix := range []string{"user.overlay.", "trusted.overlay."} {
			for name, value := range map[string]string{"redirect": "/secret", "opaque": "y", "metacopy": "", "origin": "x"} {
				for _, path := range []string{plain, filepath.Join(plain, "file")} {
					v := value
					if name == "redirect" && path != plain {
						v = "/secret/file"
					}
					if err := unix.Lsetxattr(path, prefix+name, []byte(v), 0); err != nil && os.Geteuid() == 0 && prefix == "user.overlay." {
						t.Fatalf("setting %s%s: %v", prefix, name, err)
					}
				}
			}
		}
		l.Own(t, root)
		if l.UID == 0 { // owned by an id that the sandbox does not have: unreadable by itself
			for _, p := range []string{secret, filepath.Join(secret, "file")} {
				if err := os.Lchown(p, 400000000, 400000000); err != nil {
					t.Fatal(err)
				}
			}
		} else if err := os.Chmod(filepath.Join(secret, "file"), 0o000); err != nil {
			t.Fatal(err)
		}
		for _, writable := range []string{"none", "overlay"} {
			j := job{command: []string{"/bin/attacker", "sweep", "CANARY-OVER" + "LAY"}}.with("  rootfs {\n    path = %q\n    writable = %q\n  }", root, writable)
			r := l.run(t, j)
			if got := slices.DeleteFunc(r.wins("sweep"), func(w string) bool { return strings.HasSuffix(w, " /secret/file") }); len(got) > 0 {
				t.Errorf("writable = %q: the file shows under another name: %q", writable, got)
			}
		}
		// Teeth: the canary is found where it may be read.
		if err := os.Chmod(filepath.Join(secret, "file"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(secret, 0o755); err != nil {
			t.Fatal(err)
		}
		r := l.attacked(t, job{command: []string{"/bin/attacker", "sweep", "CANARY-OVER" + "LAY"}}.with("  rootfs {\n    path = %q\n  }", root))
		teeth(t, r, "sweep", "content /secret/file")
	})
}
