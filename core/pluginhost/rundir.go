package pluginhost

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSocketDir leaves room for what go-plugin appends, within the 108 bytes of a
// socket's address (unix(7)).
const maxSocketDir = 108 - len("/plugin-dir1234567890/plugin1234567890") - 1

// socketDir makes a directory for one plugin's socket, and locks it as long as this
// process lives: that is how others know that it is in use.
func (h *Host) socketDir() (dir string, lock *os.File, err error) {
	for _, parent := range h.o.RunDirs {
		if dir = filepath.Join(parent, "12345678"); len(dir) > maxSocketDir {
			continue
		}
		if err := ownDir(parent); err != nil {
			return "", nil, err
		}
		sweep(parent)
		// Another host may have swept the directory before it was locked.
		for range 10 {
			if dir, lock, err = lockedDir(parent); err == nil || !errors.Is(err, errSwept) {
				break
			}
		}
		return dir, lock, err
	}
	return "", nil, fmt.Errorf("the path of its socket would be too long: %s", dir)
}

var errSwept = errors.New("another process takes the directory of the plugin's socket for one that is not in use")

func lockedDir(parent string) (string, *os.File, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", nil, err
	}
	dir := filepath.Join(parent, hex.EncodeToString(b[:]))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, err
	}
	f, err := tryLock(dir)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.ENOENT):
		return "", nil, errSwept
	case err != nil:
		_ = os.Remove(dir)
		return "", nil, err
	}
	ours, err := f.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Lstat(dir); err == nil && os.SameFile(ours, there) {
			return dir, f, nil
		}
	}
	_ = f.Close()
	return "", nil, errSwept
}

// tryLock opens and locks a directory. The lock ends with the process.
func tryLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, os.NewSyscallError("flock", err)
	}
	return f, nil
}

// sweep removes what hosts that were killed could not: directories that nobody has
// locked. It is best effort, as nothing depends on it.
func sweep(parent string) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, e := range entries {
		if b, err := hex.DecodeString(e.Name()); err != nil || len(b) != 4 || !e.IsDir() {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		f, err := tryLock(dir)
		if err != nil {
			continue
		}
		_ = os.RemoveAll(dir)
		_ = f.Close()
	}
}

// ownDir makes a directory that nobody else can write to, or finds it so.
func ownDir(path string) error {
	if err := os.MkdirAll(path, 0o711); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o022 != 0 || st.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s is not a directory that only the caller can write to (mode %04o, owner %d): remove it", path, st.Mode&0o7777, st.Uid)
	}
	if os.Geteuid() == 0 && st.Mode&0o011 != 0o011 {
		// Plugins of other users pass through, whatever the umask was.
		return os.Chmod(path, 0o711)
	}
	return nil
}

func within(dir, path string) error {
	if rel, err := filepath.Rel(dir, path); err != nil || rel == ".." || strings.HasPrefix(rel, "../") || filepath.Clean(path) != path {
		return fmt.Errorf("it listens at %q, outside of the directory that was made for it", path)
	}
	return nil
}
