package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// What a path leads to through the operator's links, and through those that a
// sandbox could have made.
func TestLinksBelowWhatIsLentWritable(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"work/sub/deep", "outside", "other"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"work/out": dir + "/outside", "work/up": "../outside", "work/in": "sub/deep", "work/sub/back": "..", "work/sub/chain": "../out",
		"mine": "work", "direct": dir + "/outside", "loop": "loop", "around": "other/../mine/sub", "through": "mine/up",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	lend := mountOf(filepath.Join(dir, "mine"))
	p := &Prepared{plan: &plan.Plan{}, writable: writable([]plan.Mount{lend, mountOf(filepath.Join(dir, "missing"))})}
	for path, want := range map[string]string{
		"": "", "work": "work", "mine": "work", "work/sub": "work/sub", "mine/in": "work/sub/deep", "work/sub/back": "work", "direct": "outside", "around": "work/sub",
		"other/../direct": "outside", "work/./sub//deep": "work/sub/deep",
	} {
		fd, err := p.open(dir + "/" + path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		got, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if want = filepath.Join(dir, want); err != nil || got != want {
			t.Errorf("%s leads to %s (%v), want %s", path, got, err, want)
		}
		_ = unix.Close(fd)
	}
	for path, want := range map[string]error{
		"work/out": errLeaves, "work/up": errLeaves, "mine/up": errLeaves, "work/sub/chain": errLeaves, "through": errLeaves, "work/out/x": errLeaves, "work/../outside": errLeaves,
		"work/none": unix.ENOENT, "none": unix.ENOENT, "loop": unix.ELOOP, "other/x/y": unix.ENOENT,
	} {
		if fd, err := p.open(dir + "/" + path); !errors.Is(err, want) {
			t.Errorf("%s: descriptor %d, %v, want %v", path, fd, err, want)
		}
	}
	// A directory is not made through such a link either.
	m := mountOf(filepath.Join(dir, "work/out/made"))
	if err := p.create(m); err == nil {
		t.Error("created through a link")
	}
	if _, _, err := p.source(filepath.Join(dir, "work/out"), "volume"); !hintsAt(err, "write the path") {
		t.Errorf("source: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "outside")); len(left) > 0 {
		t.Errorf("made outside: %v", left)
	}
	// Lent to be read only, a tree holds nobody's links but the operator's.
	lend.Options = []string{"rbind", "ro"}
	p.writable = writable([]plan.Mount{lend})
	if fd, err := p.open(filepath.Join(dir, "work/out")); err != nil {
		t.Error(err)
	} else {
		_ = unix.Close(fd)
	}
}

// Root would lend what the owner of the link cannot even read.
func TestLinksOfOtherUsers(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "secret/below"), 0o700); err != nil {
		t.Fatal(err)
	}
	const eve = 4242
	for name, owner := range map[string]int{"eve": eve, "ours": 0, "nobody": 65534} {
		link := filepath.Join(dir, name)
		if err := errors.Join(os.Symlink("secret", link), os.Lchown(link, owner, owner)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("eve/below", filepath.Join(dir, "oursToEve")); err != nil {
		t.Fatal(err)
	}
	p := &Prepared{plan: &plan.Plan{}}
	foreign := []string{"eve", "eve/below", "oursToEve"}
	if allIDsMapped() {
		foreign = append(foreign, "nobody")
	}
	for _, path := range foreign {
		_, _, err := p.source(filepath.Join(dir, path), "volume")
		if !errors.Is(err, errForeign) || !hintsAt(err, "write that path") {
			t.Errorf("%s: %v", path, err)
		}
		if err := p.create(mountOf(filepath.Join(dir, path, "made"))); !errors.Is(err, errForeign) {
			t.Errorf("%s: created below it: %v", path, err)
		}
	}
	for path, want := range map[string]string{"ours": "secret", "ours/below": "secret/below"} {
		f, real, err := p.source(filepath.Join(dir, path), "volume")
		if err != nil || real != filepath.Join(dir, want) {
			t.Errorf("%s: %s, %v", path, real, err)
		}
		_ = f.Close()
	}
	// The kernel's own links have a text that is no path.
	fd, err := p.open("/proc/self/root")
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fd)
}

func hintsAt(err error, text string) bool {
	var fe *Error
	return errors.As(err, &fe) && strings.Contains(fe.Hint, text)
}
