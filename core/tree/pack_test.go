package tree

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/tree/exclude"
)

func packed(t testing.TB, root string, o PackOptions) (Summary, []byte) {
	t.Helper()
	var b bytes.Buffer
	s, err := Pack(context.Background(), open(t, root), &b, o)
	must(t, err)
	return s, b.Bytes()
}

// W52: names alone never exclude, and what is excluded is nowhere to be seen.
func TestPackExcludesByPatternOnly(t *testing.T) {
	root := plant(t,
		node{path: ".git/"}, node{path: ".git/config", content: "kept-1"},
		node{path: ".env", content: "kept-2"},
		node{path: "credentials.txt", content: "kept-3"},
		node{path: "node_modules/"}, node{path: "node_modules/x", content: "kept-4"},
		node{path: "secret_sauce.go", content: "kept-5"},
		node{path: "keys/"}, node{path: "keys/a.pem", content: "gone-1"},
		node{path: "b.pem", content: "gone-2"},
		node{path: "build/"}, node{path: "build/deep/"}, node{path: "build/deep/o", content: "gone-3"},
	)
	s, stream := packed(t, root, PackOptions{Exclude: []string{"*.pem", "build/"}})
	for _, kept := range []string{"kept-1", "kept-2", "kept-3", "kept-4", "kept-5", "keys"} {
		if !bytes.Contains(stream, []byte(kept)) {
			t.Errorf("%s is not in the stream", kept)
		}
	}
	for _, gone := range []string{"gone-", "pem", "build", "deep"} {
		if bytes.Contains(stream, []byte(gone)) {
			t.Errorf("%s is in the stream", gone)
		}
	}
	if len(s.Skipped) > 0 {
		t.Errorf("excluded files are listed as skipped: %q", s.Skipped)
	}
	for _, gone := range []string{"keys/a.pem", "b.pem", "build"} {
		must(t, os.RemoveAll(root+"/"+gone))
	}
	if got := digestOf(t, root); got != s.Digest {
		t.Errorf("digest = %s, a tree without the excluded files has %s", s.Digest, got)
	}
}

// What is excluded is not opened either: a FIFO, a mount or a file that can't
// be read is no obstacle, and nobody learns that it was looked for.
func TestPackDoesNotTouchWhatIsExcluded(t *testing.T) {
	root := plant(t, node{path: "a", content: "x"}, node{path: "private/"}, node{path: "private/b", content: "y"})
	in, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	must(t, err)
	defer unix.Close(in)
	for _, p := range []string{root + "/private", root + "/private/b"} {
		_, err = unix.InotifyAddWatch(in, p, unix.IN_OPEN|unix.IN_ACCESS)
		must(t, err)
	}
	packed(t, root, PackOptions{Exclude: []string{"private/"}})
	buf := make([]byte, 4096)
	if n, err := unix.Read(in, buf); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("excluded files were opened: %d bytes of events, %v", n, err)
	}
	packed(t, root, PackOptions{})
	if n, err := unix.Read(in, buf); err != nil || n == 0 {
		t.Errorf("the watch sees nothing without the pattern: %d bytes, %v", n, err)
	}
}

func TestPackListsWhatCannotBeCopied(t *testing.T) {
	noFDLeak(t)
	root := plant(t, sample...)
	s, stream := packed(t, root, PackOptions{})
	if want := []string{"fifo", "null"}; !slices.Equal(s.Skipped, want) || s.Left != 2 {
		t.Errorf("skipped %q, %d in all, want %q", s.Skipped, s.Left, want)
	}
	if s.Files != int64(len(sample)-2) || s.Bytes != 9 {
		t.Errorf("%d files, %d bytes, want %d and 9", s.Files, s.Bytes, len(sample)-2)
	}
	if bytes.Contains(stream, []byte("fifo")) {
		t.Error("the FIFO is in the stream")
	}
}

func TestPackListsFewOfMany(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 * maxSkipped {
		must(t, unix.Mkfifo(filepath.Join(dir, strconv.Itoa(i)), 0o600))
	}
	s, _ := packed(t, dir, PackOptions{})
	if len(s.Skipped) != maxSkipped || s.Left != 3*maxSkipped || s.Files != 0 {
		t.Errorf("%d are listed of %d, and %d files", len(s.Skipped), s.Left, s.Files)
	}
}

func TestPackIsTheSameEachTime(t *testing.T) {
	root := plant(t, sample...)
	_, a := packed(t, root, PackOptions{})
	_, b := packed(t, root, PackOptions{})
	if !bytes.Equal(a, b) {
		t.Error("two streams of one tree differ")
	}
}

func TestPackLimits(t *testing.T) {
	noFDLeak(t)
	root := plant(t,
		node{path: "a/"}, node{path: "a/b/"}, node{path: "a/b/five", content: "12345"},
		node{path: "link", target: "a"}, node{path: "pipe", fifo: true},
		node{path: "six", content: "123456"},
	)
	for _, tt := range []struct {
		name string
		o    PackOptions
		what string // "" if it fits
	}{
		{"all fits", PackOptions{MaxBytes: 11, MaxFiles: 6, MaxDepth: 2}, ""},
		{"bytes", PackOptions{MaxBytes: 10}, "bytes"},
		{"files", PackOptions{MaxFiles: 5}, "files"},
		{"depth", PackOptions{MaxDepth: 1}, "depth"},
		{"excluded files do not count", PackOptions{MaxBytes: 6, MaxFiles: 3, MaxDepth: 1, Exclude: []string{"a"}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Pack(context.Background(), open(t, root), new(bytes.Buffer), tt.o)
			var limit *LimitError
			switch {
			case tt.what == "" && err != nil:
				t.Errorf("Pack = %v", err)
			case tt.what != "" && (!errors.As(err, &limit) || limit.What != tt.what):
				t.Errorf("Pack = %v, want a LimitError about %s", err, tt.what)
			}
		})
	}
}

// A sparse file costs its owner nothing; it must not cost us a copy.
func TestPackRefusesAHugeFileBeforeReadingIt(t *testing.T) {
	root := plant(t, node{path: "huge"})
	must(t, os.Truncate(root+"/huge", 1<<42))
	var b bytes.Buffer
	_, err := Pack(context.Background(), open(t, root), &b, PackOptions{})
	var limit *LimitError
	if !errors.As(err, &limit) || limit.Path != "huge" || limit.Limit != DefaultMaxBytes {
		t.Errorf("Pack = %v, want a LimitError that names huge", err)
	}
	if b.Len() > 1000 {
		t.Errorf("%d bytes were written first", b.Len())
	}
}

func TestPackRefusesBadPatterns(t *testing.T) {
	root := open(t, plant(t))
	_, err := Pack(context.Background(), root, new(bytes.Buffer), PackOptions{Exclude: []string{"ok", "a//b"}})
	if !errors.Is(err, exclude.ErrPattern) {
		t.Errorf("Pack = %v, want ErrPattern", err)
	}
}

func TestPackReportsTheWriter(t *testing.T) {
	noFDLeak(t)
	root := plant(t, node{path: "big", content: strings.Repeat("x", 1<<20)}, node{path: "z", content: "x"})
	broken := errors.New("broken pipe")
	_, err := Pack(context.Background(), open(t, root), writerFunc(func([]byte) (int, error) { return 0, broken }), PackOptions{})
	if !errors.Is(err, broken) {
		t.Errorf("Pack = %v, want the writer's error", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
