package pluginhost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DigestCache remembers the digests of files, so that a plugin of many megabytes
// is not hashed for each run. A file is known by what the kernel says of it; its
// ctime cannot be set back by anybody who could not change the clock as well.
// The directory belongs to the caller alone (mode 0700): whoever could write to
// it could vouch for any file. The zero value remembers nothing.
type DigestCache struct{ Dir string }

// Of gives the SHA-256 of an open file's content.
func (c *DigestCache) Of(f *os.File) (string, error) {
	key, err := identity(f)
	if err != nil {
		return "", err
	}
	if d := c.read(key); d != "" {
		return d, nil
	}
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62))
	if err != nil {
		return "", err
	}
	digest := hex.EncodeToString(h.Sum(nil))
	// Only what did not change while it was hashed is remembered, or vouched for.
	after, err := identity(f)
	if err != nil {
		return "", err
	}
	if after != key {
		return "", errors.New("it changed while it was hashed")
	}
	if st, err := f.Stat(); err == nil && st.Size() == n {
		c.write(key, digest)
	}
	return digest, nil
}

// identity is all that the kernel says of a file's content without reading it.
func identity(f *os.File) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st); err != nil {
		return "", os.NewSyscallError("statx", err)
	}
	return fmt.Sprintf("%d:%d-%d-%d-%d.%09d-%d.%09d-%d", st.Dev_major, st.Dev_minor, st.Ino, st.Size,
		st.Mtime.Sec, st.Mtime.Nsec, st.Ctime.Sec, st.Ctime.Nsec, st.Mnt_id), nil
}

func (c *DigestCache) path(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(c.Dir, hex.EncodeToString(sum[:]))
}

// read gives "" for what is not known. A cache that is not the caller's alone is
// as good as none.
func (c *DigestCache) read(key string) string {
	if c == nil || c.Dir == "" || private(c.Dir) != nil {
		return ""
	}
	b, err := os.ReadFile(c.path(key))
	if err != nil {
		return ""
	}
	digest, known, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	if len(digest) != sha256.Size*2 || known != key {
		return ""
	}
	return digest
}

// write is best effort: what cannot be remembered is hashed again.
func (c *DigestCache) write(key, digest string) {
	if c == nil || c.Dir == "" {
		return
	}
	if store(c.Dir, filepath.Base(c.path(key)), []byte(digest+" "+key+"\n")) == nil {
		prune(c.Dir, maxDigests)
	}
}

const (
	// maxDigests bounds the cache: each state of a file that was ever hashed has one.
	maxDigests = 256
	// maxAge is how long something is remembered that may be of no use any more.
	maxAge = 90 * 24 * time.Hour
	// forgotten is the age of a file that somebody began to write and never named.
	forgotten = time.Hour
)

// prune removes from a cache the oldest files that are too many or too old, and what
// was never finished. It is called when something was written, which is seldom.
func prune(dir string, most int) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	type file struct {
		path string
		at   time.Time
	}
	var files []file
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			continue // another process has removed it
		}
		f := file{filepath.Join(dir, e.Name()), st.ModTime()}
		if !strings.HasPrefix(e.Name(), unfinished) {
			files = append(files, f)
		} else if time.Since(f.at) > forgotten {
			_ = os.Remove(f.path)
		}
	}
	slices.SortFunc(files, func(a, b file) int { return b.at.Compare(a.at) })
	for i, f := range files {
		if i >= most || time.Since(f.at) > maxAge {
			_ = os.Remove(f.path)
		}
	}
}

// unfinished starts the name of a file that is being written.
const unfinished = ".new"

// store puts a file into a cache so that it is never half there.
func store(dir, name string, content []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := private(dir); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, unfinished)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// private tells whether a cache is the caller's alone.
func private(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o077 != 0 || st.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s: not a directory of the caller alone", dir)
	}
	return nil
}
