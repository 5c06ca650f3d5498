package tree

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// node describes one entry of a fixture; paths end with "/" for directories.
type node struct {
	path    string
	mode    uint32 // 0: 0755 for directories, 0644 for files
	content string
	target  string // symbolic link
	device  bool   // character device 0:0, which everyone may make
	fifo    bool
}

// plant makes a tree whose modes do not depend on the umask.
func plant(t testing.TB, nodes ...node) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	plantAt(t, root, nodes...)
	return root
}

func plantAt(t testing.TB, root string, nodes ...node) {
	t.Helper()
	must(t, os.Mkdir(root, 0o755))
	must(t, os.Chmod(root, 0o755))
	for _, n := range nodes {
		path := root + "/" + strings.TrimSuffix(n.path, "/")
		mode := n.mode
		switch {
		case n.target != "":
			must(t, os.Symlink(n.target, path))
			continue
		case n.device:
			must(t, unix.Mknod(path, unix.S_IFCHR|0o600, 0))
		case n.fifo:
			must(t, unix.Mkfifo(path, 0o600))
		case strings.HasSuffix(n.path, "/"):
			must(t, os.Mkdir(path, 0o755))
			if mode == 0 {
				mode = 0o755
			}
		default:
			must(t, os.WriteFile(path, []byte(n.content), 0o600))
		}
		if mode == 0 {
			mode = 0o644
		}
		must(t, unix.Chmod(path, mode))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func digestOf(t testing.TB, path string) string {
	t.Helper()
	d, err := Digest(context.Background(), open(t, path))
	must(t, err)
	return d
}

// self is a set of options under which anyone may unpack.
func self() UnpackOptions {
	return UnpackOptions{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Verify: true}
}

// noFDLeak fails the test if it ends with more open descriptors than now.
func noFDLeak(t testing.TB) {
	t.Helper()
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(list)
	}
	before := count()
	t.Cleanup(func() {
		deadline := time.Now().Add(2 * time.Second)
		for count() > before {
			if time.Now().After(deadline) {
				t.Errorf("descriptors: %d before, %d after", before, count())
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// discard removes a tree whose modes may forbid it.
func discard(t testing.TB, root string) {
	t.Helper()
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(path, 0o700)
		}
		return err
	}))
	must(t, os.RemoveAll(root))
}

// list gives every entry below root with what a copy must keep.
func list(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, filepath.Walk(root, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		desc := fmt.Sprintf("%v %v", fi.Mode(), fi.ModTime().UnixNano())
		switch fi.Mode().Type() {
		case 0:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			desc += " " + string(b)
		case os.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			desc += " -> " + target
		}
		out[rel] = desc
		return nil
	}))
	return out
}
