package changes_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/changes"
)

// layers makes two directories and fills them: a name that ends in a slash is a directory.
func layers(t *testing.T, upper, lower map[string]string) (up, low int) {
	t.Helper()
	var fds []int
	for _, files := range []map[string]string{upper, lower} {
		root := t.TempDir()
		for name, content := range files {
			at := filepath.Join(root, name)
			dir := at
			if !strings.HasSuffix(name, "/") {
				dir = filepath.Dir(at)
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if dir == at {
				continue
			}
			if err := os.WriteFile(at, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		fds = append(fds, fd)
	}
	return fds[0], fds[1]
}

// read gives a line for each entry, with the content of files if there is any.
func read(t *testing.T, up, low int, o changes.Options) []string {
	t.Helper()
	var b bytes.Buffer
	if err := changes.Write(&b, up, low, o); err != nil {
		t.Fatal(err)
	}
	r := changes.NewReader(&b, o.Content)
	var got []string
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c%c %s", e.Change, e.Type, e.Path)
		if e.Replaced {
			line = "D" + line
		}
		if o.Content && e.Type == changes.File {
			c, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			line += "=" + string(c)
		}
		if e.Target != "" {
			line += ">" + e.Target
		}
		got = append(got, line)
	}
}

func TestChanges(t *testing.T) {
	up, low := layers(t, map[string]string{
		"b/new": "1", "b/old": "2", "kind/": "", "a\nb": "3", "merged/": "", "was-dir": "4", ".wh.d/x": "5", "b.c": "6",
	}, map[string]string{"b/old": "0", "kind": "0", "merged/x": "0", "was-dir/y": "0", "gone/x": "0"})
	at := func(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", up, name) }
	for _, err := range []error{
		os.Symlink("/etc/passwd", at("link")), unix.Mkfifo(at("fifo"), 0o600), os.Link(at("b/new"), at("z")), os.Chmod(at("merged"), 0o700),
		// Whiteouts, which everybody may make; the second hides nothing.
		unix.Mknod(at("gone"), unix.S_IFCHR|0o600, 0), unix.Mknod(at("never"), unix.S_IFCHR|0o600, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"Ao /ws/.wh.d", "Ao /ws/.wh.d/x", "Af /ws/a\nb=3", "Af /ws/b/new=1", "Mf /ws/b/old=2", "Af /ws/b.c=6", "Ao /ws/fifo", "D- /ws/gone",
		"DAd /ws/kind", "Al /ws/link>/etc/passwd", "Md /ws/merged", "DAf /ws/was-dir=4", "Ah /ws/z>/ws/b/new",
	}
	if got := read(t, up, low, changes.Options{Target: "/ws", Content: true}); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// What a sandbox was made with is told of only once its workload has changed it.
func TestOwn(t *testing.T) {
	up, low := layers(t, map[string]string{"etc/hosts": "1", "etc/x": "2", "context/file": "3", "proc/": ""}, nil)
	o := changes.Options{
		Target: "/", Own: map[string]bool{"/etc": true, "/etc/hosts": true, "/proc": true}, Whole: map[string]bool{"/context": true},
		Since: time.Now().Add(time.Second).UnixNano(),
	}
	if got, want := read(t, up, low, o), []string{"Af /etc/x"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	o.Since = time.Now().Add(-time.Hour).UnixNano()
	if got, want := read(t, up, low, o), []string{"Af /etc/hosts", "Af /etc/x"}; !slices.Equal(got, want) {
		t.Errorf("changed since: got %q, want %q", got, want)
	}
}

// A stream that is cut off anywhere is never taken for a whole one.
func TestCutStream(t *testing.T) {
	up, low := layers(t, map[string]string{"a": "content", "b": ""}, nil)
	var b bytes.Buffer
	if err := changes.Write(&b, up, low, changes.Options{Target: "/ws", Content: true}); err != nil {
		t.Fatal(err)
	}
	for n := range b.Len() {
		r := changes.NewReader(bytes.NewReader(b.Bytes()[:n]), true)
		var err error
		for err == nil {
			_, err = r.Next()
		}
		if !errors.Is(err, changes.ErrStream) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
	}
}
