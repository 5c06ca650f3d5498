package tree

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// sample has every kind of entry, and names whose order tells a sort by
// elements from a sort of whole paths ("a-b" < "a/c" as strings).
var sample = []node{
	{path: "a/"},
	{path: "a/c", content: "hello\n"},
	{path: "a-b", content: ""},
	{path: "bin/", mode: 0o555},
	{path: "dangling", target: "../nowhere"},
	{path: "fifo", fifo: true, mode: 0o620},
	{path: "line\nbreak \xff", content: "x"},
	{path: "null", device: true, mode: 0o666},
	{path: "su", content: "#!", mode: 0o4755},
	{path: "tmp/", mode: 0o1777},
}

// The golden vectors: if one changes, every pinned digest in the world is void,
// so formatLine must change with it.
func TestDigestGolden(t *testing.T) {
	tests := []struct {
		name  string
		nodes []node
		want  string
	}{
		{"empty", nil, "sha256:ad032254cd673365308d823d9fc1555d167661629f848013c3de9d0ade1fbb3c"},
		{"one file", []node{{path: "f", content: "abc"}}, "sha256:007a27eacb1703ab2f6d42a6e4c2d1444aa1d74192d46a9d876cb46d0654ae81"},
		{"sample", sample, "sha256:86c8dd7aeeaa2d04d6c6fffc72599deb404a12f05858a0e6eb5e3bf4779a5d95"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := digestOf(t, plant(t, tt.nodes...)); got != tt.want {
				t.Errorf("digest = %s, want %s", got, tt.want)
			}
		})
	}
}

// reference computes the digest of docs/rootfs.md another way.
func reference(t *testing.T, root string) string {
	t.Helper()
	h := sha256.New()
	fmt.Fprintf(h, "nucleus-tree-v1\n")
	must(t, filepath.Walk(root, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		mode := st.Mode & 0o7777
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			fmt.Fprintf(h, "d %04o %s\x00", mode, rel)
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(h, "f %04o %d %x %s\x00", mode, len(b), sha256.Sum256(b), rel)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(h, "l %s\x00%s\x00", rel, target)
		case unix.S_IFIFO:
			fmt.Fprintf(h, "p %04o %s\x00", mode, rel)
		case unix.S_IFSOCK:
			fmt.Fprintf(h, "s %04o %s\x00", mode, rel)
		case unix.S_IFCHR:
			fmt.Fprintf(h, "c %04o %d:%d %s\x00", mode, unix.Major(st.Rdev), unix.Minor(st.Rdev), rel)
		}
		return nil
	}))
	return fmt.Sprintf("sha256:%x", h.Sum(nil))
}

func TestDigestIsTheDocumentedForm(t *testing.T) {
	root := plant(t, sample...)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: root + "/z.sock"}))
	if got, want := digestOf(t, root), reference(t, root); got != want {
		t.Errorf("digest = %s, the reference gives %s", got, want)
	}
}

func TestAttestCounts(t *testing.T) {
	noFDLeak(t)
	root := open(t, plant(t, sample...))
	for _, workers := range []int{0, 1, 2, 7} {
		s, err := Attest(context.Background(), root, workers)
		must(t, err)
		if s.Files != int64(len(sample)) || s.Bytes != 9 || s.Digest != digestOf(t, root.Name()) || s.Skipped != nil {
			t.Errorf("with %d workers: %+v", workers, s)
		}
	}
}

func TestDigestDependsOn(t *testing.T) {
	change := map[string]func(root string) error{
		"content": func(r string) error { return os.WriteFile(r+"/a/c", []byte("hellO\n"), 0) },
		"content moved": func(r string) error {
			return errors.Join(os.WriteFile(r+"/a-b", []byte("h"), 0), os.WriteFile(r+"/a/c", []byte("ello\n"), 0))
		},
		"file mode":         func(r string) error { return unix.Chmod(r+"/a/c", 0o600) },
		"set-user-ID":       func(r string) error { return unix.Chmod(r+"/a/c", 0o4644) },
		"set-group-ID":      func(r string) error { return unix.Chmod(r+"/a/c", 0o2644) },
		"sticky":            func(r string) error { return unix.Chmod(r+"/tmp", 0o777) },
		"directory mode":    func(r string) error { return unix.Chmod(r+"/a", 0o700) },
		"mode of the root":  func(r string) error { return unix.Chmod(r, 0o700) },
		"FIFO mode":         func(r string) error { return unix.Chmod(r+"/fifo", 0o600) },
		"name":              func(r string) error { return os.Rename(r+"/a-b", r+"/a-c") },
		"place":             func(r string) error { return os.Rename(r+"/a-b", r+"/a/a-b") },
		"new file":          func(r string) error { return os.WriteFile(r+"/new", nil, 0o644) },
		"new directory":     func(r string) error { return os.Mkdir(r+"/new", 0o755) },
		"missing file":      func(r string) error { return os.Remove(r + "/a-b") },
		"missing directory": func(r string) error { return os.Remove(r + "/tmp") },
		"link target":       func(r string) error { return relink(r+"/dangling", "../elsewhere") },
		"link for file":     func(r string) error { return relink(r+"/a-b", "a/c") },
		"FIFO for device": func(r string) error {
			return errors.Join(os.Remove(r+"/null"), unix.Mkfifo(r+"/null", 0o600), unix.Chmod(r+"/null", 0o666))
		},
	}
	for name, do := range change {
		t.Run(name, func(t *testing.T) {
			root := plant(t, sample...)
			before := digestOf(t, root)
			must(t, do(root))
			err := Verify(context.Background(), open(t, root), before, 0)
			var mismatch *MismatchError
			if !errors.As(err, &mismatch) || mismatch.Want != before || mismatch.Got == before {
				t.Errorf("Verify = %v, want a MismatchError", err)
			}
		})
	}
}

func relink(path, target string) error {
	return errors.Join(os.Remove(path), os.Symlink(target, path))
}

func TestDigestDoesNotDependOn(t *testing.T) {
	change := map[string]func(root string) error{
		"time":          func(r string) error { return os.Chtimes(r+"/a/c", time.Unix(1, 0), time.Unix(2, 0)) },
		"where it is":   func(r string) error { return os.Rename(r, r+"-moved") },
		"hard links":    func(r string) error { return errors.Join(os.Remove(r+"/twin"), os.Link(r+"/a/c", r+"/twin")) },
		"link's target": func(r string) error { return os.WriteFile(filepath.Dir(r)+"/nowhere", []byte("x"), 0o644) },
		"user attribute": func(r string) error {
			err := unix.Setxattr(r+"/a/c", "user.comment", []byte("x"), 0)
			if errors.Is(err, unix.EOPNOTSUPP) {
				return nil
			}
			return err
		},
	}
	for name, do := range change {
		t.Run(name, func(t *testing.T) {
			root := plant(t, append([]node{{path: "twin", content: "hello\n"}}, sample...)...)
			before := digestOf(t, root)
			must(t, do(root))
			if _, err := os.Stat(root); err != nil {
				root += "-moved"
			}
			must(t, Verify(context.Background(), open(t, root), before, 0))
		})
	}
}

func TestDigestDoesNotDependOnOwnership(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	root := plant(t, sample...)
	before := digestOf(t, root)
	for _, path := range []string{root, root + "/a/c", root + "/dangling"} {
		must(t, os.Lchown(path, 12345, 23456))
	}
	must(t, Verify(context.Background(), open(t, root), before, 0))
}

func TestDigestCoversFileCapabilities(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	root := plant(t, node{path: "ping", content: "x", mode: 0o755})
	plain := digestOf(t, root)
	caps := make([]byte, capSize2)
	binary.LittleEndian.PutUint32(caps, capRevision2|1)
	binary.LittleEndian.PutUint32(caps[4:], 1<<unix.CAP_NET_RAW)
	must(t, unix.Setxattr(root+"/ping", "security.capability", caps, 0))
	raw := digestOf(t, root)
	binary.LittleEndian.PutUint32(caps[4:], 1<<unix.CAP_SYS_ADMIN)
	must(t, unix.Setxattr(root+"/ping", "security.capability", caps, 0))
	admin := digestOf(t, root)
	if plain == raw || raw == admin {
		t.Errorf("digests: %s without, %s with CAP_NET_RAW, %s with CAP_SYS_ADMIN", plain, raw, admin)
	}
}

func TestCapabilitiesWithoutTheirNamespaceOwner(t *testing.T) {
	v2, err := hex.DecodeString("0100000200200000000000000000000000000000")
	must(t, err)
	v3, err := hex.DecodeString("0100000300200000000000000000000000000000a0860100")
	must(t, err)
	if got := normalCaps(v3); string(got) != string(v2) {
		t.Errorf("revision 3 becomes %x, want %x", got, v2)
	}
	for _, v := range [][]byte{v2, {}, {1, 2, 3}, append([]byte{9}, v3[1:]...)[:24:24]} {
		want := string(v)
		if len(v) == capSize3 {
			want = string(v2[:0]) + string([]byte{9}) + string(v2[1:])
		}
		if got := normalCaps(v); string(got) != want {
			t.Errorf("%x becomes %x, want %x", v, got, want)
		}
	}
}

func TestDigestNamesWhatItCannotRead(t *testing.T) {
	for _, tt := range []struct {
		name string
		node node
	}{
		{"file", node{path: "a/closed", mode: 0o200}},
		{"directory", node{path: "a/closed/", mode: 0o100}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			noFDLeak(t)
			root := plant(t, node{path: "a/"}, tt.node)
			t.Cleanup(func() { _ = os.Chmod(root+"/a/closed", 0o700) })
			f := open(t, root)
			asNobody(t, func() {
				_, err := Attest(context.Background(), f, 2)
				if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), `"a/closed"`) {
					t.Errorf("Attest = %v, want a permission error for a/closed", err)
				}
				_, err = Pack(context.Background(), f, new(strings.Builder), PackOptions{})
				if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), `"a/closed"`) {
					t.Errorf("Pack = %v, want a permission error for a/closed", err)
				}
				if _, err := Pack(context.Background(), f, new(strings.Builder), PackOptions{Exclude: []string{"closed"}}); err != nil {
					t.Errorf("Pack without it = %v", err)
				}
			})
		})
	}
}

// asNobody takes root's power over files from one thread, which ends with it.
func asNobody(t *testing.T, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Getuid() == 0 {
			runtime.LockOSThread() // never unlocked
			if _, _, e := unix.RawSyscall(unix.SYS_SETFSUID, 65534, 0, 0); e != 0 {
				t.Errorf("setfsuid: %v", e)
				return
			}
		}
		do()
	}()
	<-done
}

func TestDigestOfNoDirectory(t *testing.T) {
	root := plant(t, node{path: "f", content: "x"})
	if _, err := Digest(context.Background(), open(t, root+"/f")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("Digest of a file = %v, want ENOTDIR", err)
	}
}

func TestDigestEndsWithItsContext(t *testing.T) {
	noFDLeak(t)
	root := plant(t, sample...)
	// A petabyte of nothing: only the context can end this.
	huge, err := os.Create(root + "/a/huge")
	must(t, err)
	for size := int64(1 << 50); size >= 1<<34; size >>= 1 {
		if err = huge.Truncate(size); err == nil {
			break
		}
	}
	must(t, err)
	must(t, huge.Close())
	for _, workers := range []int{1, 2} {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		_, err := Attest(ctx, open(t, root), workers)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with %d workers: %v, want the context's error", workers, err)
		}
	}
}

func TestDigestRefusesEndlessDepth(t *testing.T) {
	noFDLeak(t)
	root := plant(t)
	deepen(t, root, digestDepth)
	digestOf(t, root)
	deepen(t, root, digestDepth+1)
	_, err := Digest(context.Background(), open(t, root))
	var limit *LimitError
	if !errors.As(err, &limit) || limit.What != "depth" {
		t.Errorf("Digest = %v, want a depth LimitError", err)
	}
}

// deepen makes n nested directories, with more than PATH_MAX bytes of path if
// they are many.
func deepen(t *testing.T, root string, n int) {
	t.Helper()
	const name = "a directory with a long name"
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range n {
		if err := unix.Mkdirat(fd, name, 0o755); !errors.Is(err, unix.EEXIST) {
			must(t, err)
		}
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
}
