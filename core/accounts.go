package core

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/plainfile"
)

// accounts reads the files that a job's user and group names are looked up in:
// the rootfs's own, opened beneath it, or the host's.
func accounts(j *job.Job) plan.Accounts {
	if j.Rootfs == nil {
		if j.User == "" && len(j.Groups) == 0 {
			return plan.Accounts{}
		}
		return plan.Accounts{Passwd: readSmall("/etc/passwd"), Group: readSmall("/etc/group")}
	}
	root, err := unix.Open(j.Rootfs.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return plan.Accounts{} // the file system phase tells, with the job's line
	}
	defer unix.Close(root)
	return plan.Accounts{
		Passwd: readBeneath(root, "etc/passwd", plan.OwnAccounts().Passwd),
		Group:  readBeneath(root, "etc/group", plan.OwnAccounts().Group),
	}
}

func readSmall(path string) []byte {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err != nil || len(b) > maxSmall {
		return nil
	}
	return b
}

// readBeneath reads a file of a rootfs. One that is not there has what the sandbox gets in its
// place.
func readBeneath(root int, path string, absent []byte) []byte {
	b, err := plainfile.Regular(root, path, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS, maxSmall)
	if errors.Is(err, unix.ENOENT) {
		return absent
	}
	return b
}
