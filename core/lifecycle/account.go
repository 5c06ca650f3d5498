package lifecycle

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/plainfile"
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
		b, err := plainfile.Regular(root, f.path, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS, maxAccounts)
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
