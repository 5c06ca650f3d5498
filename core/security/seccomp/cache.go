package seccomp

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/bpf"
)

// cache is a directory of compiled filters, one file for each policy digest. What is in it becomes policy, so it is
// used only through a descriptor of a directory that nobody else can write, and each file carries a digest that ties
// its content to the policy it stands for.
type cache struct {
	dir *os.File
}

// CacheError is a cache directory that cannot be trusted.
type CacheError struct {
	Dir    string
	Err    error
	Remedy string
}

func (e *CacheError) Error() string { return fmt.Sprintf("seccomp cache %q: %v", e.Dir, e.Err) }

func (e *CacheError) Unwrap() error { return e.Err }

const cacheMagic = "nucleus-seccomp-1\n"

const (
	// Unused is how long a compiled filter stays in a cache that nobody asks for.
	Unused = 30 * 24 * time.Hour
	// noted is how exact the time is at which one was last asked for.
	noted = 24 * time.Hour
)

func cacheError(path string, err error) error {
	remedy := fmt.Sprintf("remove %q: it is made anew", path)
	if os.Geteuid() != 0 { // root's does not depend on its environment
		remedy += ", or set XDG_CACHE_HOME to a directory of your own"
	}
	return &CacheError{Dir: path, Err: err, Remedy: remedy}
}

// makeCache opens a cache that need not exist. It is nil without an error where there is none and none can be made: users
// of services have homes that are not there (/nonexistent), or are read-only (ProtectHome= in systemd.exec(5)).
func makeCache(path string) (*cache, error) {
	switch err := os.MkdirAll(path, 0o700); {
	case err == nil:
		return openCache(path)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return nil, nil
	default:
		return nil, cacheError(path, err)
	}
}

func openCache(path string) (*cache, error) {
	fail := func(err error) (*cache, error) { return nil, cacheError(path, err) }
	fd, err := unix.Open(path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, 0)
	if err != nil {
		return fail(os.NewSyscallError("open", err))
	}
	c := &cache{dir: os.NewFile(uintptr(fd), path)}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch {
	case err != nil:
		err = os.NewSyscallError("fstat", err)
	case int(st.Uid) != os.Geteuid():
		err = fmt.Errorf("owned by user %d, not %d", st.Uid, os.Geteuid())
	case st.Mode&0o077 != 0:
		err = fmt.Errorf("mode is %#o, not 0700", st.Mode&0o777)
	}
	if err != nil {
		c.close()
		return fail(err)
	}
	return c, nil
}

func (c *cache) close() { c.dir.Close() }

// load returns the filter of a policy. Anything wrong with a file counts as a miss: it is then compiled and replaced.
func (c *cache) load(digest string) ([]byte, bool) {
	// O_NONBLOCK: a FIFO must not hang the start.
	fd, err := unix.Openat(int(c.dir.Fd()), digest+".bpf", unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, false
	}
	f := os.NewFile(uintptr(fd), digest)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG ||
		int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 || st.Nlink != 1 {
		return nil, false
	}
	content, err := io.ReadAll(io.LimitReader(f, int64(len(cacheMagic)+2*sha256.Size+1+maxFilterSize+1)))
	if err != nil {
		return nil, false
	}
	rest, ok := bytes.CutPrefix(content, []byte(cacheMagic))
	if !ok {
		return nil, false
	}
	sum, raw, ok := bytes.Cut(rest, []byte("\n"))
	if !ok || string(sum) != entrySum(digest, raw) {
		return nil, false
	}
	if _, err := bpf.Parse(raw); err != nil {
		return nil, false
	}
	if time.Since(time.Unix(st.Mtim.Unix())) > noted {
		now := unix.Timespec{Nsec: unix.UTIME_NOW}
		_ = unix.UtimesNanoAt(int(c.dir.Fd()), digest+".bpf", []unix.Timespec{now, now}, unix.AT_SYMLINK_NOFOLLOW) // on a read-only disk it is compiled again one day
	}
	return raw, true
}

func (c *cache) save(digest string, raw []byte) (err error) {
	name := digest + "." + rand.Text()
	dirfd := int(c.dir.Fd())
	fd, err := unix.Openat(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Unlinkat(dirfd, name, 0))
		}
	}()
	_, err = f.Write(append([]byte(cacheMagic+entrySum(digest, raw)+"\n"), raw...))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.NewSyscallError("renameat", unix.Renameat(dirfd, name, dirfd, digest+".bpf"))
}

// Prune removes from the cache at path the filters that nobody has asked for in the time Unused,
// and what a save left that was killed. A cache that does not exist has none; what is of no
// filter stays.
func Prune(path string, now time.Time) error {
	c, err := openCache(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.close()
	names, err := c.dir.Readdirnames(-1)
	if err != nil {
		return cacheError(path, err)
	}
	var errs []error
	for _, name := range names {
		digest, kind, _ := strings.Cut(name, ".")
		if sum, err := hex.DecodeString(digest); err != nil || len(sum) != sha256.Size || kind == "" {
			continue
		}
		allowed := Unused
		if kind != "bpf" {
			allowed = noted // which is written in milliseconds
		}
		var st unix.Stat_t
		err := unix.Fstatat(int(c.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && now.Sub(time.Unix(st.Mtim.Unix())) > allowed {
			err = unix.Unlinkat(int(c.dir.Fd()), name, 0)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) { // another has done it
			errs = append(errs, cacheError(path, fmt.Errorf("%s: %w", name, err)))
		}
	}
	return errors.Join(errs...)
}

// entrySum covers the digest of the policy too, so that a valid entry under another name is not taken for it.
func entrySum(digest string, raw []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n", digest)
	h.Write(raw)
	return hex.EncodeToString(h.Sum(nil))
}
