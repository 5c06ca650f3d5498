package tree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func TestUnpackMakesTheSameTree(t *testing.T) {
	noFDLeak(t)
	root := plant(t, sample...)
	s, stream := packed(t, root, PackOptions{})
	for _, gone := range s.Skipped {
		must(t, os.Remove(root+"/"+gone))
	}
	must(t, os.Chmod(root+"/su", 0o755))
	must(t, os.Chmod(root+"/tmp", 0o777))
	for name, r := range map[string]io.Reader{
		"at once":      bytes.NewReader(stream),
		"byte by byte": iotest.OneByteReader(bytes.NewReader(stream)),
		"end with it":  iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		t.Run(name, func(t *testing.T) {
			dst := plant(t)
			got, err := Unpack(int(open(t, dst).Fd()), r, self())
			must(t, err)
			if got != s.Digest || digestOf(t, dst) != s.Digest {
				t.Errorf("Unpack gives %s, the copy has %s, want %s", got, digestOf(t, dst), s.Digest)
			}
			want, have := list(t, root), list(t, dst)
			// Removing entries above changed the time of the source's root.
			delete(want, ".")
			delete(have, ".")
			if !maps.Equal(want, have) {
				t.Errorf("source %q\ncopy %q", want, have)
			}
		})
	}
}

func TestUnpackGivesTheTreeToItsOwner(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	_, stream := packed(t, plant(t, sample...), PackOptions{})
	dst := plant(t)
	_, err := Unpack(int(open(t, dst).Fd()), bytes.NewReader(stream), UnpackOptions{UID: 1234, GID: 2345, Verify: true})
	must(t, err)
	must(t, filepath.Walk(dst, func(path string, _ os.FileInfo, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err == nil && (st.Uid != 1234 || st.Gid != 2345) {
			t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
		}
		return err
	}))
}

func TestUnpackIntoAPathHandle(t *testing.T) {
	s, stream := packed(t, plant(t, sample...), PackOptions{})
	fd, err := unix.Open(plant(t), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	if got, err := Unpack(fd, bytes.NewReader(stream), self()); err != nil || got != s.Digest {
		t.Errorf("Unpack = %s, %v, want %s", got, err, s.Digest)
	}
}

func TestUnpackWantsAnEmptyDirectory(t *testing.T) {
	_, stream := packed(t, plant(t, sample...), PackOptions{})
	dst := plant(t, node{path: "there"})
	if _, err := Unpack(int(open(t, dst).Fd()), bytes.NewReader(stream), self()); !errors.Is(err, unix.ENOTEMPTY) {
		t.Errorf("Unpack = %v, want ENOTEMPTY", err)
	}
}

// Every proper beginning of a stream is refused, so no lost writer goes unnoticed.
func TestUnpackRefusesAShortStream(t *testing.T) {
	noFDLeak(t)
	_, stream := packed(t, plant(t, node{path: "a/"}, node{path: "a/f", content: "abc"}, node{path: "l", target: "a"}), PackOptions{})
	for n := range stream {
		if _, err := Unpack(int(open(t, plant(t)).Fd()), bytes.NewReader(stream[:n]), self()); !errors.Is(err, ErrStream) {
			t.Errorf("the first %d of %d bytes: %v, want ErrStream", n, len(stream), err)
		}
	}
}

// A byte changed anywhere is refused or changes nothing that the digest covers:
// times are all that it does not.
func TestUnpackRefusesADamagedStream(t *testing.T) {
	s, stream := packed(t, plant(t, node{path: "f", content: "abc"}, node{path: "l", target: "a"}), PackOptions{})
	accepted := 0
	for i := range stream {
		bad := bytes.Clone(stream)
		bad[i] ^= 1
		dst := plant(t)
		got, err := Unpack(int(open(t, dst).Fd()), bytes.NewReader(bad), self())
		discard(t, dst)
		if err == nil && got != s.Digest {
			t.Errorf("byte %d changed: digest %s", i, got)
		}
		if err == nil {
			accepted++
		}
	}
	if times := 3 * 12; accepted > times {
		t.Errorf("%d damaged streams were accepted, only %d bytes hold times", accepted, times)
	}
}

func TestUnpackReportsTheReader(t *testing.T) {
	broken := errors.New("connection reset")
	_, err := Unpack(int(open(t, plant(t)).Fd()), iotest.ErrReader(broken), self())
	if !errors.Is(err, broken) || errors.Is(err, ErrStream) {
		t.Errorf("Unpack = %v, want the reader's error", err)
	}
}

// script writes streams that Pack would not.
type script struct{ b []byte }

func hostile() *script { return (&script{[]byte(streamMagic)}).dir("", 0o755) }

func (s *script) str(v string) *script {
	s.b = binary.LittleEndian.AppendUint16(s.b, uint16(len(v)))
	s.b = append(s.b, v...)
	return s
}

func (s *script) u(n int, v uint64) *script {
	s.b = append(s.b, binary.LittleEndian.AppendUint64(nil, v)[:n]...)
	return s
}

func (s *script) dir(name string, mode uint64) *script {
	return s.u(1, recDir).str(name).u(4, mode).u(8, 0).u(4, 0)
}

func (s *script) up() *script { return s.u(1, recUp) }

func (s *script) file(name string, mode, size uint64, content string) *script {
	s.u(1, recFile).str(name).u(4, mode).u(8, 0).u(4, 0).u(8, size)
	s.b = append(s.b, content...)
	return s
}

func (s *script) link(name, target string) *script {
	return s.u(1, recLink).str(name).u(8, 0).u(4, 0).str(target)
}

func (s *script) trailer(files, size uint64, sum []byte) *script {
	s.u(1, recTrailer).u(8, files).u(8, size)
	s.b = append(s.b, sum...)
	return s
}

func TestUnpackRefusesHostileStreams(t *testing.T) {
	noFDLeak(t)
	zero := make([]byte, sha256.Size)
	tests := []struct {
		name   string
		stream *script
	}{
		{"nothing", &script{}},
		{"another magic", &script{[]byte("nucleus-pack-v2\n")}},
		{"a file as root", (&script{[]byte(streamMagic)}).file("", 0o644, 0, "")},
		{"a root with a name", (&script{[]byte(streamMagic)}).dir("x", 0o755)},
		{"the parent", hostile().file("..", 0o644, 1, "x")},
		{"the parent as directory", hostile().dir("..", 0o755).file("outside", 0o644, 1, "x")},
		{"the directory itself", hostile().dir(".", 0o755)},
		{"no name", hostile().file("", 0o644, 1, "x")},
		{"an absolute path", hostile().file("/etc/passwd", 0o644, 1, "x")},
		{"a path", hostile().dir("a", 0o755).up().file("a/b", 0o644, 1, "x")},
		{"a path with parents", hostile().file("../outside", 0o644, 1, "x")},
		{"a NUL in a name", hostile().file("a\x00b", 0o644, 1, "x")},
		{"a long name", hostile().file(strings.Repeat("a", maxName+1), 0o644, 1, "x")},
		{"a name twice", hostile().file("a", 0o644, 1, "x").file("a", 0o644, 1, "y")},
		{"a link, then a file of its name", hostile().link("a", "../outside").file("a", 0o644, 1, "x")},
		{"a link, then a directory of its name", hostile().link("a", "..").dir("a", 0o755).file("outside", 0o644, 1, "x")},
		{"a directory, then a link of its name", hostile().dir("a", 0o755).up().link("a", "..")},
		{"names out of order", hostile().file("b", 0o644, 1, "x").file("a", 0o644, 1, "x")},
		{"an unknown record", hostile().u(1, 'C').str("null").u(8, 0x103)},
		{"an unknown mode", hostile().file("a", 0o100644, 1, "x")},
		{"a negative size", hostile().file("a", 0o644, 1<<63, "x")},
		{"an impossible time", hostile().u(1, recFile).str("a").u(4, 0o644).u(8, 0).u(4, 1e9).u(8, 0)},
		{"an empty link", hostile().link("a", "")},
		{"a link with a NUL", hostile().link("a", "b\x00c")},
		{"a long link", hostile().link("a", strings.Repeat("a", maxTarget+1))},
		{"a trailer inside", hostile().trailer(0, 0, zero)},
		{"no trailer", hostile().up().up()},
		{"a wrong digest", hostile().up().trailer(0, 0, zero)},
		{"a wrong count", hostile().up().trailer(1, 0, emptySum())},
		{"a wrong size", hostile().up().trailer(0, 1, emptySum())},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			parent := t.TempDir()
			must(t, os.WriteFile(parent+"/outside", []byte("canary"), 0o644))
			plantAt(t, parent+"/root")
			before := list(t, parent)
			_, err := Unpack(int(open(t, parent+"/root").Fd()), bytes.NewReader(tt.stream.b), self())
			if !errors.Is(err, ErrStream) {
				t.Errorf("Unpack = %v, want ErrStream", err)
			}
			if got := list(t, parent)["outside"]; got != before["outside"] {
				t.Errorf("a file outside changed: %q", got)
			}
		})
	}
}

func emptySum() []byte {
	m := newManifest()
	m.dir(0o755, ".")
	return m.sum()
}

// The control of the table above: the same builder makes a stream that is taken.
func TestUnpackTakesAWellFormedScript(t *testing.T) {
	sum := sha256.Sum256([]byte("x"))
	m := newManifest()
	m.dir(0o755, ".")
	m.dir(0o700, "a")
	m.file(0o755, 1, sum[:], "a/su")
	m.link("up", "..")
	s := hostile().dir("a", 0o1700).file("su", 0o6755, 1, "x").up().link("up", "..").up().trailer(3, 1, m.sum())
	dst := plant(t)
	_, err := Unpack(int(open(t, dst).Fd()), bytes.NewReader(s.b), self())
	must(t, err)
	for path, want := range map[string]uint32{"/a": 0o700, "/a/su": 0o755} {
		var st unix.Stat_t
		must(t, unix.Lstat(dst+path, &st))
		if got := st.Mode & 0o7777; got != want {
			t.Errorf("%s has mode %04o, want %04o: special bits must go", path, got, want)
		}
	}
}

func TestUnpackLimits(t *testing.T) {
	noFDLeak(t)
	deep := hostile()
	for range DefaultMaxDepth + 1 {
		deep.dir("d", 0o755)
	}
	for _, tt := range []struct {
		name   string
		stream *script
		o      UnpackOptions
		what   string
	}{
		{"an announced size", hostile().file("a", 0o644, 1<<62, ""), self(), "bytes"},
		{"a sum of sizes", hostile().file("a", 0o644, 3, "abc").file("b", 0o644, 3, "abc"), UnpackOptions{MaxBytes: 5}, "bytes"},
		{"files", hostile().link("a", "x").link("b", "x").link("c", "x"), UnpackOptions{MaxFiles: 2}, "files"},
		{"depth", deep, self(), "depth"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.UID, tt.o.GID = self().UID, self().GID
			_, err := Unpack(int(open(t, plant(t)).Fd()), bytes.NewReader(tt.stream.b), tt.o)
			var limit *LimitError
			if !errors.As(err, &limit) || limit.What != tt.what {
				t.Errorf("Unpack = %v, want a LimitError about %s", err, tt.what)
			}
		})
	}
}

// Verify reads the file system, not its own memory.
func TestUnpackVerifyReadsBack(t *testing.T) {
	_, stream := packed(t, plant(t, node{path: "a", content: "abc"}, node{path: "z", content: "x"}), PackOptions{})
	for _, verify := range []bool{true, false} {
		dst := plant(t)
		meddler := &meddlingReader{r: bytes.NewReader(stream), at: len(stream) - 1, do: func() {
			must(t, os.WriteFile(dst+"/a", []byte("abC"), 0))
		}}
		o := self()
		o.Verify = verify
		_, err := Unpack(int(open(t, dst).Fd()), meddler, o)
		var mismatch *MismatchError
		if verify && !errors.As(err, &mismatch) {
			t.Errorf("Unpack = %v, want a MismatchError", err)
		}
		if !verify && err != nil {
			t.Errorf("without verification: %v", err)
		}
	}
}

// Whatever appears in the directory meanwhile, Unpack writes to nothing that it
// has not created, and so neither through a link nor into a linked file.
func TestUnpackWritesOnlyWhatItCreated(t *testing.T) {
	for name, plantLink := range map[string]func(outside, path string) error{
		"a symbolic link": os.Symlink,
		"a hard link":     os.Link,
	} {
		for _, kind := range []struct{ name, existing, path string }{
			{"for a file", "outside", "f"},
			{"for a directory", "dir", "d"},
			{"for a link", "outside", "l"},
		} {
			if name == "a hard link" && kind.existing == "dir" {
				continue
			}
			t.Run(name+" "+kind.name, func(t *testing.T) {
				parent := t.TempDir()
				must(t, os.WriteFile(parent+"/outside", []byte("canary"), 0o644))
				must(t, os.Mkdir(parent+"/dir", 0o755))
				dst := parent + "/root"
				plantAt(t, dst)
				_, stream := packed(t, plant(t, node{path: "d/"}, node{path: "d/f", content: "evil"},
					node{path: "f", content: "evil"}, node{path: "l", target: "f"}), PackOptions{})
				before, beforeDir := list(t, parent)["outside"], list(t, parent+"/dir")
				once := sync.OnceFunc(func() { must(t, plantLink(parent+"/"+kind.existing, dst+"/"+kind.path)) })
				head := len(hostile().b)
				_, err := Unpack(int(open(t, dst).Fd()), &meddlingReader{r: bytes.NewReader(stream), at: head, do: once}, self())
				if !errors.Is(err, unix.EEXIST) {
					t.Errorf("Unpack = %v, want EEXIST", err)
				}
				if got := list(t, parent)["outside"]; got != before {
					t.Errorf("the file outside is now %q", got)
				}
				if got := list(t, parent+"/dir"); !maps.Equal(got, beforeDir) {
					t.Errorf("the directory outside is now %q", got)
				}
			})
		}
	}
}

// meddlingReader gives its last bytes only after do.
type meddlingReader struct {
	r    io.Reader
	at   int
	do   func()
	done int
}

func (m *meddlingReader) Read(b []byte) (int, error) {
	if m.done >= m.at {
		m.do()
	} else {
		b = b[:min(len(b), m.at-m.done)]
	}
	n, err := m.r.Read(b)
	m.done += n
	return n, err
}

// FuzzUnpack: whatever the stream, nothing outside the directory changes, no
// limit is passed, and an accepted stream left just the tree that it claims.
func FuzzUnpack(f *testing.F) {
	_, stream := packed(f, plant(f, sample...), PackOptions{})
	f.Add(stream)
	f.Add(hostile().dir("a", 0o755).file("su", 0o6755, 1, "x").up().link("up", "..").up().trailer(3, 1, emptySum()).b)
	f.Add(hostile().file("../outside", 0o644, 1<<40, "x").b)
	f.Add(hostile().up().trailer(0, 0, emptySum()).b)
	parent := f.TempDir()
	must(f, os.WriteFile(parent+"/outside", []byte("canary"), 0o644))
	f.Fuzz(func(t *testing.T, stream []byte) {
		root := parent + "/root"
		plantAt(t, root)
		defer discard(t, root)
		o := self()
		o.MaxBytes, o.MaxFiles, o.MaxDepth = 1<<16, 64, 8
		dir, err := os.Open(root)
		must(t, err)
		defer dir.Close()
		digest, err := Unpack(int(dir.Fd()), bytes.NewReader(stream), o)
		canary, cerr := os.ReadFile(parent + "/outside")
		must(t, cerr)
		names, lerr := os.ReadDir(parent)
		must(t, lerr)
		if string(canary) != "canary" || len(names) != 2 {
			t.Fatalf("outside the directory: %q, %q", canary, names)
		}
		s, aerr := Attest(context.Background(), dir, 1)
		if aerr == nil && (s.Files > o.MaxFiles || s.Bytes > o.MaxBytes) {
			t.Fatalf("%d files, %d bytes", s.Files, s.Bytes)
		}
		if err != nil {
			return
		}
		if len(digest) != len(digestPrefix)+2*sha256.Size {
			t.Fatalf("digest %q", digest)
		}
	})
}
