package attack

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// A directory that is mounted writable, and that the rules allow to read only,
// is reached for by every other name of it.
func TestLandlockByOtherPaths(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		testutil.Needs(t, testutil.Landlock(3))
		try := func(name, access string) (result, []string, []string) {
			data := l.dir(t, name)
			// Directory and scratch are one mount, so that links and renames between
			// them are only refused by Landlock.
			scratch := filepath.Join(data, "scratch")
			if err := os.Mkdir(scratch, 0o777); err != nil {
				t.Fatal(err)
			}
			protected := filepath.Join(data, "protected")
			if err := os.Mkdir(protected, 0o777); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(protected, "canary"), "CANARY", 0o666)
			l.Own(t, data)
			before := snapshot(t, protected)
			j := l.attack("landlock", "/volume/protected", "/volume/scratch").with("  volume \"v\" {\n    source = %q\n    target = \"/volume\"\n  }", data)
			j.security = fmt.Sprintf(`    no_default_landlock = true
    landlock {
      rule {
        paths  = ["/workspace", "/proc", "/dev"]
        access = ["read", "execute"]
      }
      rule {
        paths  = ["/volume/protected"]
        access = [%s]
      }
      rule {
        paths  = ["/volume/scratch"]
        access = ["read", "write", "create", "remove", "execute"]
      }
    }
`, access)
			r := l.attacked(t, j)
			return r, before, snapshot(t, protected)
		}
		r, _, after := try("open", `"read", "write", "create", "remove", "execute"`)
		teeth(t, r, "landlock", "wrote by its path", "wrote by /proc/self/fd", "wrote by /proc/self/root", "wrote by a hard link", "rename over", "created")
		if len(after) < 3 {
			t.Errorf("no teeth: %q", after)
		}
		r, before, after := try("closed", `"read"`)
		held(t, r, "landlock")
		if strings.Join(before, "\n") != strings.Join(after, "\n") {
			t.Errorf("the host's directory was changed:\n  %s", strings.Join(after, "\n  "))
		}
	})
}

// What the host mounts below a volume while the sandbox runs does not appear
// inside, nor does what is unmounted go on being used by the host.
func TestMountsDoNotPropagateIn(t *testing.T) {
	asRoot(t, func(t *testing.T, l *lab) {
		volume := l.dir(t, "shared")
		sub := filepath.Join(volume, "sub")
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(volume, volume, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Unmount(volume, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}()
		if err := unix.Mount("", volume, "", unix.MS_SHARED, ""); err != nil {
			t.Fatal(err)
		}
		while := func(c *exec.Cmd) result {
			in, err := c.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			ready := make(chan struct{})
			c.Stdout = &notify{to: &out, ready: ready}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			<-ready
			if err := unix.Mount("tmpfs", sub, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(sub, "canary"), "CANARY", 0o644)
			_ = in.Close()
			if err := c.Wait(); err != nil {
				t.Error(err)
			}
			if err := unix.Unmount(sub, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
			return result{out: out.String()}
		}
		weak := l.Command("unshare", "--mount", "--propagation", "slave", l.attacker, "see", sub+"/canary")
		teeth(t, while(weak), "see", sub+"/canary holds CANARY")
		for _, users := range []string{"auto", "host"} {
			j := l.attack("see", "/volume/sub/canary").with("  namespaces { user = %q }\n  volume \"v\" {\n    source = %q\n    target = \"/volume\"\n  }", users, volume)
			r := while(l.command(t.Context(), t, j))
			if len(r.lines("DONE")) == 0 {
				t.Fatalf("the attack did not run: %s", r.out)
			}
			held(t, r, "see")
		}
	})
}

// notify tells when something was written.
type notify struct {
	to    *strings.Builder
	ready chan struct{}
	told  bool
}

func (n *notify) Write(b []byte) (int, error) {
	if !n.told {
		n.told = true
		close(n.ready)
	}
	return n.to.Write(b)
}
