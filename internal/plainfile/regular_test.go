package plainfile

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a workload may have put in the place of a file is not waited for, not followed and
// not read.
func TestRegularReadsSmallFilesOnly(t *testing.T) {
	const most = 4096
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	at := func(name string) string { return filepath.Join(root, "etc", name) }
	if err := os.MkdirAll(at("dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"good": []byte("root:x:0:0:::\n"), "full": bytes.Repeat([]byte("x"), most), "big": bytes.Repeat([]byte("x"), most+1), "leased": nil} {
		if err := os.WriteFile(at(name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "outside"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"link": "good", "out": "../../outside", "absolute": filepath.Join(dir, "outside"), "up": ".."} {
		if err := os.Symlink(to, at(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(at("pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	if err := unix.Bind(s, &unix.SockaddrUnix{Name: at("socket")}); err != nil {
		t.Fatal(err)
	}
	leased, err := os.OpenFile(at("leased"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer leased.Close()
	if _, err := unix.FcntlInt(leased.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	// The kernel asks for a lease back by SIGIO, which would end us.
	if _, err := unix.FcntlInt(leased.Fd(), unix.F_SETSIG, int(unix.SIGURG)); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for name, want := range map[string]string{
		"good": "", "full": "", "dir": "not a regular file", "pipe": "not a regular file", "socket": "not a regular file",
		"big": "larger than", "link": "symbolic links", "out": "symbolic links", "absolute": "symbolic links", "up/outside": "symbolic links",
		"../../outside": "cross-device", "leased": "temporarily unavailable", "nothing": "no such file",
	} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			b, err := Regular(fd, "etc/"+name, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS, most)
			switch {
			case want == "" && (err != nil || len(b) == 0):
				t.Errorf("%s: %d bytes, %v", name, len(b), err)
			case want != "" && (err == nil || len(b) > 0 || !strings.Contains(err.Error(), want)):
				t.Errorf("%s: %d bytes, %v; want %q", name, len(b), err, want)
			}
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: it is waited for", name)
		}
	}
	runtime.KeepAlive(leased)
}
