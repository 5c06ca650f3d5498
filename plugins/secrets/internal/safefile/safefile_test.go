package safefile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
)

func write(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func refuses(t *testing.T, path string, rule Rule, code fault.Code, text string) {
	t.Helper()
	b, err := Read(path, rule)
	if err == nil || fault.Of(err) != code || !strings.Contains(err.Error(), text) {
		t.Errorf("read %q, error %v (%s); want %s: %s", b, err, fault.Of(err), code, text)
	}
	if err != nil && strings.Contains(err.Error(), "s3cret") {
		t.Errorf("the error tells the value: %v", err)
	}
}

func TestReadGivesAPrivateFile(t *testing.T) {
	for _, mode := range []os.FileMode{0o400, 0o600} {
		b, err := Read(write(t, "key", "s3cret\n", mode), Rule{Forbid: Private})
		if err != nil || string(b) != "s3cret\n" {
			t.Errorf("mode %o: %q, %v", mode, b, err)
		}
	}
}

func TestReadRefusesWhatOthersCouldReadOrChange(t *testing.T) {
	for _, tt := range []struct {
		mode   os.FileMode
		forbid uint32
		remedy string
	}{
		{0o640, Private, "chmod 0600 "},
		{0o604, Private, "chmod 0600 "},
		{0o620, Private, "chmod 0600 "},
		{0o664, Trusted, "chmod 0644 "},
		{0o446, Trusted, "chmod 0444 "},
		{0o444, Credential, "chmod 0440 "},
	} {
		path := write(t, "key", "s3cret", tt.mode)
		refuses(t, path, Rule{Forbid: tt.forbid}, fault.PermissionDenied, tt.remedy+path)
	}
	for mode, forbid := range map[os.FileMode]uint32{0o644: Trusted, 0o440: Credential} {
		if _, err := Read(write(t, "key", "s3cret", mode), Rule{Forbid: forbid}); err != nil {
			t.Error(err)
		}
	}
}

func TestReadRefusesTheFileOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away") //nolint:forbidigo // testutil is of another module
	}
	path := write(t, "key", "s3cret", 0o600)
	if err := os.Chown(path, 4711, 0); err != nil {
		t.Fatal(err)
	}
	refuses(t, path, Rule{Forbid: Private}, fault.PermissionDenied, fmt.Sprintf("belongs to user 4711, who could change it; chown 0 %s", path))
}

// Each of these would block, or do something, if it were opened as a file is.
func TestReadRefusesWhatIsNoRegularFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	socket := filepath.Join(dir, "socket")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, path := range []string{fifo, socket, dir, "/dev/zero"} {
			refuses(t, path, Rule{Forbid: Private}, fault.FailedPrecondition, "regular file")
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("waits for a writer")
	}
}

func TestReadFollowsNoMagicLink(t *testing.T) {
	path := write(t, "key", "s3cret", 0o600)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	refuses(t, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), Rule{Forbid: Private}, fault.FailedPrecondition, "a link on its path is not followed")
}

func TestReadFollowsALinkOnlyWhereItMay(t *testing.T) {
	path := write(t, "key", "s3cret", 0o600)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(link, Rule{Forbid: Private}); err != nil {
		t.Error(err)
	}
	refuses(t, link, Rule{Forbid: Private, NoLinks: true}, fault.FailedPrecondition, "a link on its path is not followed")
	refuses(t, link, Rule{Forbid: Private, Dirs: []string{filepath.Dir(link)}}, fault.PermissionDenied, "not below "+filepath.Dir(link))
}

func TestReadStaysBelowItsDirectories(t *testing.T) {
	path := write(t, "key", "s3cret", 0o600)
	other := t.TempDir()
	if _, err := Read(path, Rule{Forbid: Private, Dirs: []string{other, filepath.Dir(path)}}); err != nil {
		t.Error(err)
	}
	refuses(t, path, Rule{Forbid: Private, Dirs: []string{other}}, fault.PermissionDenied, "not below "+other)
	// A name that begins with the directory's is not below it.
	refuses(t, other+"x/key", Rule{Forbid: Private, Dirs: []string{other}}, fault.PermissionDenied, "not below "+other)
}

func TestReadTellsThatThereIsNone(t *testing.T) {
	path := write(t, "key", "s3cret", 0o600)
	refuses(t, path+"x", Rule{}, fault.NotFound, "create the file, or correct the path")
	refuses(t, path+"/x", Rule{}, fault.NotFound, "create the file, or correct the path")
}

func TestReadRefusesALongFile(t *testing.T) {
	if b, err := Read(write(t, "key", strings.Repeat("x", Limit), 0o600), Rule{}); err != nil || len(b) != Limit {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	refuses(t, write(t, "key", strings.Repeat("x", Limit+1), 0o600), Rule{}, fault.FailedPrecondition, "longer than 1 MiB")
}

func TestPathMustBeAbsoluteAndClean(t *testing.T) {
	for _, path := range []string{"", "a", "./a", "/a/../b", "/a/", "/a\x00b"} {
		if err := Path("path", path); fault.Of(err) != fault.InvalidArgument {
			t.Errorf("%q: %v", path, err)
		}
	}
	if err := Path("path", "/a/b"); err != nil {
		t.Error(err)
	}
}
