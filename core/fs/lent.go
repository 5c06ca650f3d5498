package fs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
)

// inode identifies a directory of the host, whatever name leads to it.
type inode struct{ dev, ino uint64 }

// maxLinks is how many symbolic links the kernel follows too (path_resolution(7)).
const maxLinks = 40

// errLeaves tells that a link leads out of a directory that the job lends writable.
var errLeaves = errors.New("a symbolic link leads out of a directory that the sandbox can write to, and so could be the sandbox's own")

// writable finds the directories that this job lends writable. What does not
// exist yet holds no links.
func writable(mounts []plan.Mount) map[inode]bool {
	var out map[inode]bool
	for _, m := range mounts {
		var st unix.Stat_t
		if m.Kind != plan.MountBind || m.Has("ro") || unix.Stat(m.Source, &st) != nil {
			continue
		}
		if out == nil {
			out = map[inode]bool{}
		}
		out[inode{st.Dev, st.Ino}] = true
	}
	return out
}

// errForeign tells that somebody else's link is in the path.
var errForeign = errors.New("belongs to another user, who could lead the path anywhere")

// open opens a host path that the job names, as O_PATH. The operator's own
// links are followed, and root's. Below a directory that the job lends writable
// a link may be the work of the sandbox, of an earlier run too, and none may
// lead out of it: else a workspace would decide what of the host is lent (the
// class of CVE-2026-39861). For the same reason no other user's link is
// followed: root would lend what that user cannot even read.
func (p *Prepared) open(path string) (int, error) {
	if !strings.Contains(path, "/..") { // which may lead out of what is lent as well
		fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
		if !errors.Is(err, unix.ELOOP) {
			return fd, os.NewSyscallError("open", err)
		}
	}
	at, err := openRoot()
	if err != nil {
		return -1, err
	}
	todo, links := strings.Split(path, "/"), 0
	for len(todo) > 0 {
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil {
			_ = unix.Close(at)
			return -1, os.NewSyscallError("fstat", err)
		}
		if p.writable[inode{st.Dev, st.Ino}] {
			return openInside(at, todo)
		}
		name := todo[0]
		if todo = todo[1:]; name == "" || name == "." {
			continue
		}
		next, target, err := step(at, name)
		if err == nil && target != "" {
			if links++; links > maxLinks {
				err = os.NewSyscallError("open", unix.ELOOP)
			}
			todo = append(strings.Split(target, "/"), todo...)
			if target[0] != '/' && err == nil {
				continue // from where we are
			}
			if err == nil {
				next, err = openRoot()
			}
		}
		_ = unix.Close(at)
		if err != nil {
			return -1, err
		}
		at = next
	}
	return at, nil
}

func openRoot() (int, error) {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return fd, os.NewSyscallError("open", err)
}

// step opens one name in a directory, or tells where the link leads that it is.
func step(at int, name string) (fd int, target string, err error) {
	fd, err = unix.Openat(at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", os.NewSyscallError("openat", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return fd, "", os.NewSyscallError("fstat", err)
	}
	defer unix.Close(fd)
	if !trusted(st.Uid) {
		return -1, "", fmt.Errorf("the symbolic link %q (owner %d) %w", name, st.Uid, errForeign)
	}
	var where unix.Statfs_t
	if err := unix.Fstatfs(fd, &where); err != nil {
		return -1, "", os.NewSyscallError("fstatfs", err)
	}
	if where.Type == unix.PROC_SUPER_MAGIC {
		// The text of a link in /proc/PID is no path; only the kernel can follow it.
		fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		return fd, "", os.NewSyscallError("openat", err)
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err == nil && n == 0 {
		err = unix.ENOENT
	}
	return -1, string(buf[:max(n, 0)]), os.NewSyscallError("readlinkat", err)
}

// trusted tells whether a link of this owner may be followed. In a user
// namespace that does not map all ids, the owners that it does not map show as
// the overflow id (user_namespaces(7)): there they are the host's, whoever it is.
func trusted(uid uint32) bool {
	if uid == 0 || int(uid) == os.Geteuid() {
		return true
	}
	return uid == overflowID && !allIDsMapped()
}

// overflowID is the default of /proc/sys/kernel/overflowuid.
const overflowID = 65534

var allIDsMapped = sync.OnceValue(func() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err != nil || slices.Equal(strings.Fields(string(b)), []string{"0", "0", "4294967295"})
})

// openInside resolves the rest of a path beneath a directory, which it closes.
func openInside(at int, rest []string) (int, error) {
	rel := strings.Trim(strings.Join(rest, "/"), "/")
	if rel == "" {
		return at, nil
	}
	defer unix.Close(at)
	fd, err := unix.Openat2(at, rel, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
	if errors.Is(err, unix.EXDEV) {
		return -1, fmt.Errorf("%q: %w", rel, errLeaves)
	}
	return fd, os.NewSyscallError("openat2", err)
}
