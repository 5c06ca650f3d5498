package core

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/pathname"
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

// ownFile finds what a job may write that holds the file it comes from. The decoder, which
// looks at no host, compares names; a link or another mount of the directory has another name.
func ownFile(j *job.Job) []string {
	if j.File == "" || j.File == "-" || j.File == "<stdin>" {
		return nil
	}
	writable := map[string]string{}
	if w := j.Workspace; w != nil && w.Mode == "bind-rw" {
		writable["workspace.path"] = w.Path
	}
	for _, v := range j.Volumes {
		if !v.ReadOnly {
			writable[fmt.Sprintf("volume[%q].source", v.Name)] = v.Source
		}
	}
	var out []string
	for origin, source := range writable {
		if !pathname.Within(j.Dir, source) && holds(source, filepath.Join(j.Dir, filepath.Base(j.File))) {
			out = append(out, origin)
		}
	}
	slices.Sort(out)
	return out
}

// holds reports whether a path, or where its links lead, is what lies at source or below it.
// What cannot be looked at is not: the start fails to open it, or it cannot be reached so.
func holds(source, path string) bool {
	top, err := os.Stat(source)
	if err != nil {
		return false
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	for _, p := range []string{path, real} {
		for ; p != "/"; p = filepath.Dir(p) {
			if st, err := os.Stat(p); err == nil && os.SameFile(st, top) {
				return true
			}
		}
	}
	return false
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
