package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// swap exchanges two names without pause until it is stopped, as the owner of a
// tree does to who resolves a path in it twice (CVE-2021-30465).
func swap(t *testing.T, a, b string) (stop func()) {
	t.Helper()
	var done atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !done.Load() {
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("exchanging %s and %s: %v", a, b, err)
				return
			}
		}
	})
	return func() {
		done.Store(true)
		wg.Wait()
	}
}

// While sandboxes start, mount targets in a rootfs turn from directories into
// links out of it and back.
func TestMountTargetsSwappedDuringStart(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		victim := l.outsideDir(t, "outside")
		lent := l.dir(t, "lent")
		write(t, filepath.Join(lent, "lent"), "LENT", 0o644)
		ran := 0
		for i, target := range []string{"dev", "etc", "tmp", "proc", "volume", "var", "bin"} {
			for _, writable := range []string{"none", "overlay"} {
				root := l.rootfs(t, fmt.Sprintf("root-%d-%s", i, writable))
				if err := os.MkdirAll(filepath.Join(root, "volume", "deep"), 0o755); err != nil {
					t.Fatal(err)
				}
				bad := filepath.Join(l.dir(t, fmt.Sprintf("bad-%d-%s", i, writable)), "link")
				link(t, victim, bad)
				stop := swap(t, filepath.Join(root, target), bad)
				j := job{command: []string{"/bin/attacker", "sweep", "CANARY-OUT" + "SIDE"}}
				j = j.with("  rootfs {\n    path = %q\n    writable = %q\n  }", root, writable)
				j = j.with("  volume \"v\" {\n    source = %q\n    target = \"/volume/deep\"\n  }", lent)
				for range 4 {
					r := l.run(t, j)
					held(t, r, "sweep content")
					if len(r.lines("DONE")) > 0 {
						ran++
					}
					if r.code != 0 && r.code != 125 && r.code != 126 && r.code != 127 {
						t.Errorf("swapping %s: code %d\n%s%s", target, r.code, r.out, r.err)
					}
				}
				stop()
			}
		}
		if ran == 0 {
			t.Error("no teeth: no sandbox came up")
		}
	})
}

// The source of a volume, or a workspace, is exchanged with a directory that
// the job does not name. What is mounted is one or the other as a whole, as the
// name led at the moment it was resolved; a refused place is never mounted.
func TestSourceSwappedDuringStart(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		own := l.dir(t, "own")
		good := filepath.Join(own, "good")
		if err := os.Mkdir(good, 0o755); err != nil {
			t.Fatal(err)
		}
		bad := filepath.Join(own, "bad")
		link(t, l.state, bad) // refused: it is Nucleus's own
		l.Own(t, own)
		marker := filepath.Join(l.state, "marker")
		write(t, marker, "CANARY-OF-THE-STATE", 0o644)
		stop := swap(t, good, bad)
		defer stop()
		mounted := 0
		for range 20 {
			j := l.attack("sweep", "CANARY-OF-THE-"+"STATE").with("  volume \"v\" {\n    source = %q\n    target = \"/volume\"\n  }", good)
			r := l.run(t, j)
			held(t, r, "sweep content")
			if len(r.lines("DONE")) > 0 {
				mounted++
			}
		}
		if mounted == 0 {
			t.Log("the exchange was refused at every start")
		}
	})
}

// CVE-2021-30465 by way of a directory that one job lends and another mounts
// below: a volume's target inside the workspace is a link out of it.
func TestTargetsInsideTheWorkspace(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		victim := l.outsideDir(t, "outside")
		lent := l.dir(t, "lent")
		for _, swapping := range []bool{false, true} {
			work := l.dir(t, fmt.Sprintf("work-%t", swapping))
			sub := filepath.Join(work, "sub")
			bad := filepath.Join(l.dir(t, fmt.Sprintf("aside-%t", swapping)), "bad")
			link(t, victim, bad)
			stop := func() {}
			if swapping {
				if err := os.Mkdir(sub, 0o755); err != nil {
					t.Fatal(err)
				}
				l.Own(t, work)
				stop = swap(t, sub, bad)
			} else {
				link(t, victim, sub)
				l.Own(t, work)
			}
			for range 5 {
				j := job{command: []string{"/bin/sh", "-c", "echo written > /workspace/sub/canary; echo written > /workspace/sub/new; echo DONE sh"}}
				j = j.with("  workspace {\n    path = %q\n    mode = \"bind-rw\"\n  }\n  volume \"v\" {\n    source = %q\n    target = \"/workspace/sub\"\n  }", work, lent)
				l.run(t, j)
				j = j.with("  tmpfs \"/workspace/other/deep\" {}")
				l.run(t, j)
			}
			stop()
			if n := names(t, work); len(n) > 1 {
				t.Errorf("mount points were made on the host: %q", n)
			}
		}
	})
}

// The agent of an earlier run leaves a link where a later job lends a directory
// (CVE-2026-39861 class): what is in a workspace is the sandbox's, and no link
// there may decide what of the host is lent.
func TestLinkLeftInTheWorkspace(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		victim := l.outsideDir(t, "outside")
		work := l.dir(t, "work")
		j := job{command: []string{"/bin/sh", "-c", `ln -s "$0" /workspace/data && echo DONE`, victim}}
		j = j.with("  workspace {\n    path = %q\n    mode = \"bind-rw\"\n  }", work)
		if r := l.run(t, j); r.code != 0 {
			t.Fatalf("no teeth: the first run left no link: %s", r.err)
		}
		if _, err := os.ReadFile(filepath.Join(work, "data", "canary")); err != nil {
			t.Errorf("no teeth: the link leads nowhere: %v", err)
		}
		second := job{command: []string{"/bin/sh", "-c", "cat /data/canary; echo x > /data/canary; echo DONE"}}
		second = second.with("  workspace {\n    path = %q\n    mode = \"bind-rw\"\n  }\n  volume \"data\" {\n    source = %q\n    target = \"/data\"\n  }", work, filepath.Join(work, "data"))
		r := l.run(t, second)
		if strings.Contains(r.out, "CANARY") {
			t.Errorf("the link that the sandbox left decided what was lent: %s", r.out)
		}
		if r.code == 0 {
			t.Error("the job ran")
		}
	})
}

// An attacker in the workspace keeps changing it while the start looks at it as
// its context: what arrives is one tree, without links out.
func TestContextChangesDuringCopy(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		victim := l.outsideDir(t, "outside")
		src := l.dir(t, "src")
		for i := range 40 {
			d := filepath.Join(src, fmt.Sprintf("d%02d", i))
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(d, "canary"), "inner", 0o644)
		}
		bad := filepath.Join(l.dir(t, "aside"), "bad")
		link(t, victim, bad)
		l.Own(t, src)
		stop := swap(t, filepath.Join(src, "d39"), bad)
		came := 0
		for i := range 8 {
			j := l.attack("sweep", "CANARY-OUT"+"SIDE").with("  context {\n    source = %q\n    target = \"/context\"\n    method = %q\n  }", src, []string{"copy", "bind"}[i%2])
			r := l.run(t, j)
			held(t, r, "sweep content")
			if len(r.lines("DONE")) > 0 {
				came++
			}
		}
		stop()
		t.Logf("%d of 8 starts came up", came)
		// Teeth: whoever follows the name finds the canary at once.
		deadline := time.Now().Add(testutil.Patient(2 * time.Second))
		stop = swap(t, filepath.Join(src, "d39"), bad)
		defer stop()
		for {
			if b, err := os.ReadFile(filepath.Join(src, "d39", "canary")); err == nil && strings.Contains(string(b), "OUTSIDE") {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("no teeth: the exchange is never seen")
			}
		}
	})
}
