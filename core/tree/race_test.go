package tree

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

const canary = "canary-that-must-stay-outside"

// swap exchanges two names as fast as it can until the test ends.
func swap(t *testing.T, a, b string) {
	t.Helper()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("exchanging: %v", err)
				return
			}
			// Lets the reader win now and then, on one CPU too.
			runtime.Gosched()
		}
	})
	t.Cleanup(func() {
		close(stop)
		wg.Wait()
	})
}

// outside is a directory next to the tree that looks like its directory "d".
func outside(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/f", []byte(canary), 0o644))
	must(t, os.Mkdir(dir+"/e", 0o755))
	must(t, os.WriteFile(dir+"/e/f", []byte(canary), 0o644))
	return dir
}

// Somebody who owns the tree swaps its parts for links that lead out, while it
// is read. The reader may fail or see either state; it never sees the outside.
func TestRacingSwapsNeverLeadOutside(t *testing.T) {
	inner := []node{{path: "d/"}, {path: "d/e/"}, {path: "d/e/f", content: "inside"}, {path: "d/f", content: "inside"}}
	for _, tt := range []struct{ name, a, b, target string }{
		{"a directory and a link", "d", "swap", ""},
		{"a nested directory and a link", "d/e", "swap", "/e"},
		{"a file and a link", "d/f", "swap", "/f"},
		{"a nested file and a link", "d/e/f", "swap", "/e/f"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			noFDLeak(t)
			out := outside(t)
			root := plant(t, append(inner, node{path: "swap", target: out + tt.target})...)
			a, b := root+"/"+tt.a, root+"/"+tt.b
			possible := map[string]bool{digestOf(t, root): true}
			must(t, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE))
			possible[digestOf(t, root)] = true
			f := open(t, root)
			swap(t, a, b)
			raced := readWhileRacing(t, f, func(digest string, stream []byte) {
				if bytes.Contains(stream, []byte(canary)) {
					t.Error("the stream holds a file from outside")
				}
				if digest != "" && stream == nil && !possible[digest] {
					t.Errorf("digest %s is of neither state", digest)
				}
			})
			if raced == 0 {
				t.Error("no read met a change: the race was not run")
			}
		})
	}
}

// readWhileRacing packs and digests for a while and counts the reads that
// noticed a change.
func readWhileRacing(t *testing.T, root *os.File, check func(digest string, stream []byte)) int {
	t.Helper()
	raced := 0
	note := func(err error) {
		var changed *ChangedError
		switch {
		case errors.As(err, &changed):
			raced++
		case err != nil:
			t.Errorf("unexpected error: %v", err)
		}
	}
	// Longer only where the machine is so busy that the two have not met yet.
	for start := time.Now(); time.Since(start) < 500*time.Millisecond || raced == 0 && time.Since(start) < 10*time.Second; {
		var b bytes.Buffer
		_, err := Pack(context.Background(), root, &b, PackOptions{})
		note(err)
		check("", b.Bytes())
		digest, err := Digest(context.Background(), root)
		note(err)
		check(digest, nil)
	}
	return raced
}

// A FIFO in place of a file must not hang the reader, nor a device open.
func TestRacingFIFODoesNotHang(t *testing.T) {
	noFDLeak(t)
	root := plant(t, node{path: "d/"}, node{path: "d/f", content: "x"}, node{path: "swap", fifo: true})
	f := open(t, root)
	swap(t, root+"/d/f", root+"/swap")
	done := make(chan struct{})
	go func() {
		defer close(done)
		readWhileRacing(t, f, func(string, []byte) {})
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the reader hangs")
	}
}

// The excluded file trades places with another all the time; under its own name
// its content may be copied, but never is anything visible under the excluded one.
func TestRacingSwapsDoNotRevealAnExcludedName(t *testing.T) {
	root := plant(t, node{path: "d/"}, node{path: "secret.pem", content: "x"}, node{path: "swap/"})
	f := open(t, root)
	swap(t, root+"/secret.pem", root+"/swap")
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		var b bytes.Buffer
		_, err := Pack(context.Background(), f, &b, PackOptions{Exclude: []string{"*.pem"}})
		if bytes.Contains(b.Bytes(), []byte("pem")) {
			t.Fatalf("the excluded name is in the stream (%v)", err)
		}
	}
}

func TestDigestNoticesAChangingFile(t *testing.T) {
	for name, change := range map[string]func(f *os.File) error{
		"grown":     func(f *os.File) error { return f.Truncate(8 * chunk) },
		"shortened": func(f *os.File) error { return f.Truncate(1 << 10) },
		"rewritten": func(f *os.File) error { _, err := f.WriteAt([]byte("y"), 0); return err },
		"chmodded":  func(f *os.File) error { return f.Chmod(0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			noFDLeak(t)
			root := plant(t, node{path: "f", content: strings.Repeat("x", 4*chunk)})
			// Timestamps tick: a change in the tick of the last one would not show.
			time.Sleep(20 * time.Millisecond)
			f, err := os.OpenFile(root+"/f", os.O_RDWR, 0)
			must(t, err)
			defer f.Close()
			once := sync.OnceValue(func() error { return change(f) })
			_, err = Pack(context.Background(), open(t, root), writerFunc(func(b []byte) (int, error) {
				return len(b), once()
			}), PackOptions{})
			var changed *ChangedError
			if !errors.As(err, &changed) || changed.Path != "f" {
				t.Errorf("Pack = %v, want a ChangedError that names f", err)
			}
		})
	}
}

func TestPackNoticesAChangingDirectory(t *testing.T) {
	root := plant(t, node{path: "d/"}, node{path: "d/f", content: strings.Repeat("x", 4*chunk)})
	time.Sleep(20 * time.Millisecond)
	once := sync.OnceValue(func() error { return os.WriteFile(root+"/d/new", nil, 0o644) })
	_, err := Pack(context.Background(), open(t, root), writerFunc(func(b []byte) (int, error) {
		return len(b), once()
	}), PackOptions{})
	var changed *ChangedError
	if !errors.As(err, &changed) || changed.Path != "d" {
		t.Errorf("Pack = %v, want a ChangedError that names d", err)
	}
}

// inNamespace runs this test again in a mount namespace of its own, where the
// rest of it may mount; what it mounts goes with it.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv("NUCLEUS_TREE_TEST") == t.Name() {
		return true
	}
	testutil.Needs(t, testutil.UserNS)
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), "NUCLEUS_TREE_TEST="+t.Name(), "TMPDIR="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("PASS")) {
		t.Errorf("in a namespace: %v\n%s", err, out)
	}
	return false
}

func TestMountPointsAreRefused(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, tt := range []struct {
		name, on string
		mount    func(path string) error
	}{
		{"another file system", "a/dir", func(p string) error { return unix.Mount("none", p, "tmpfs", 0, "") }},
		{"a directory of the same file system", "a/dir", func(p string) error { return unix.Mount(filepath.Dir(p), p, "", unix.MS_BIND, "") }},
		{"a file of the same file system", "a/file", func(p string) error { return unix.Mount(filepath.Dir(p)+"/other", p, "", unix.MS_BIND, "") }},
		{"a mount on a FIFO", "a/pipe", func(p string) error { return unix.Mount(filepath.Dir(p)+"/other", p, "", unix.MS_BIND, "") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := plant(t, node{path: "a/"}, node{path: "a/dir/"}, node{path: "a/file"}, node{path: "a/other"}, node{path: "a/pipe", fifo: true})
			must(t, tt.mount(root+"/"+tt.on))
			t.Cleanup(func() { must(t, unix.Unmount(root+"/"+tt.on, unix.MNT_DETACH)) })
			f := open(t, root)
			var mp *MountPointError
			if _, err := Digest(context.Background(), f); !errors.As(err, &mp) || mp.Path != tt.on {
				t.Errorf("Digest = %v, want a MountPointError for %s", err, tt.on)
			}
			if _, err := Pack(context.Background(), f, io.Discard, PackOptions{}); !errors.As(err, &mp) || mp.Path != tt.on {
				t.Errorf("Pack = %v, want a MountPointError for %s", err, tt.on)
			}
			if _, err := Pack(context.Background(), f, io.Discard, PackOptions{Exclude: []string{"/" + tt.on}}); err != nil {
				t.Errorf("Pack without it = %v", err)
			}
		})
	}
	// The root itself may be a mount.
	root := plant(t)
	must(t, unix.Mount("none", root, "tmpfs", 0, "mode=0755"))
	digestOf(t, root)
	must(t, unix.Unmount(root, unix.MNT_DETACH))
}
