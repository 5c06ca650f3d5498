package core

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/plan"
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
	return readBounded(f)
}

// readBeneath reads a file of an untrusted tree, whose links may lead anywhere. It is looked
// at before it is opened: a device could take that for a command (a watchdog's begins to
// count, a tape is rewound). One that is not there has what the sandbox gets in its place.
func readBeneath(root int, path string, absent []byte) []byte {
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) {
		return absent
	}
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	// Not to wait for who has a lease on it (fcntl(2), F_SETLEASE).
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	return readBounded(f)
}

func readBounded(f *os.File) []byte {
	b, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err != nil || len(b) > maxSmall {
		return nil
	}
	return b
}
