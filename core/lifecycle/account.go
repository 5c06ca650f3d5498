package lifecycle

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// maxAccount bounds what is looked up, and maxAccounts where: the files are the workload's,
// which may have made them what it likes.
const (
	maxAccount  = 256
	maxAccounts = 1 << 20
)

// account resolves a USER[:GROUP] in the sandbox's own files. What they say decides between
// ids that the sandbox has, and about nothing else.
func (s *Sandbox) account(name string) (*exec.User, error) {
	if len(name) > maxAccount {
		return nil, &PhaseError{Phase: "exec", Err: fmt.Errorf("a user of %d bytes: at most %d", len(name), maxAccount)}
	}
	root, err := s.openRoot(unix.O_PATH)
	if err != nil {
		return nil, phase("exec", err)
	}
	defer unix.Close(root)
	var a plan.Accounts
	var missing error
	for _, f := range []struct {
		path string
		into *[]byte
	}{{"etc/passwd", &a.Passwd}, {"etc/group", &a.Group}} {
		b, err := readInside(root, f.path)
		if err != nil {
			missing = errors.Join(missing, fmt.Errorf("the sandbox's /%s: %w", f.path, err))
		}
		*f.into = b
	}
	u := &exec.User{}
	if u.UID, u.GID, err = a.Resolve(name); err != nil {
		return nil, &PhaseError{Phase: "exec", Err: errors.Join(err, missing), Hint: "write UID or UID:GID, as numbers"}
	}
	return u, nil
}

// readInside reads a small file below a sandbox's root. It is looked at before it is opened: a
// pipe would hold the opening up, a device could take it for a command, and what a link
// leads to was not asked for.
func readInside(root int, path string) ([]byte, error) {
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, os.NewSyscallError("openat2", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("not a regular file")
	}
	// Not to wait for who has a lease on it (fcntl(2), F_SETLEASE).
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
	if err == nil && len(b) > maxAccounts {
		err = fmt.Errorf("larger than %d bytes", maxAccounts)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}
