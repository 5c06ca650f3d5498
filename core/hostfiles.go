package core

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// blockDevices gives the numbers of the block devices that a job names by path.
func blockDevices(j *job.Job) map[string]string {
	out := map[string]string{}
	for _, d := range j.Resources.IO {
		var st unix.Stat_t
		if !strings.HasPrefix(d.Device, "/") || unix.Stat(d.Device, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		out[d.Device] = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	return out
}

// missingMountPoints looks for the mount points that must exist on the host. One
// that cannot be looked at is left to the start, which resolves it again.
func missingMountPoints(j *job.Job, h fact.Host) map[string]bool {
	out := map[string]bool{}
	for _, n := range plan.NestedMounts(j, h) {
		if errors.Is(lookBeneath(n.Source, n.Rel), unix.ENOENT) {
			out[n.Target] = true
		}
	}
	return out
}

func lookBeneath(dir, rel string) error {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, rel, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return os.NewSyscallError("openat2", err)
	}
	return os.NewSyscallError("close", unix.Close(fd))
}
