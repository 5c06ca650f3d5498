package cgroups

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/plainfile"
)

// The v1 controllers that are of use to a sandbox. Never devices or cpuset:
// /dev is the sandbox's own, and joining cpuset is slow.
var v1Names = []string{"memory", "cpu", "cpuacct", "pids", "freezer", "blkio"}

// unified is the key of the v2 hierarchy, as in /proc/self/cgroup.
const unified = ""

// host is where facts come from; tests put fake trees in its place.
type host struct {
	cgroupFile string // of this thread in /proc
	mountFile  string // /proc/self/mountinfo
	systemdDir string // exists when systemd is the service manager
	procDir    string // /proc
	euid, pid  int
	writable   func(path string) error
	delegate   func(dir string) bool // marked by systemd as delegated
}

func thisHost() host {
	return host{
		// Not /proc/self, which is Go's main thread: another goroutine may just be
		// making a process on it, in the group of a sandbox (Spawn).
		cgroupFile: "/proc/thread-self/cgroup",
		mountFile:  "/proc/self/mountinfo",
		systemdDir: "/run/systemd/system",
		procDir:    "/proc",
		euid:       os.Geteuid(),
		pid:        os.Getpid(),
		writable:   func(path string) error { return unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS) },
		delegate:   delegateMark,
	}
}

// delegateMark reads the mark that systemd puts on a group with Delegate=yes:
// user.delegate since 251, trusted.delegate (readable by root only) since 236.
func delegateMark(dir string) bool {
	buf := make([]byte, 8)
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		if n, err := unix.Getxattr(dir, name, buf); err == nil && string(buf[:n]) == "1" {
			return true
		}
	}
	return false
}

// Detect finds out what cgroups can do for this process. It only reads. parent
// is the operator's choice (cgroup_parent), a path from the root of the
// hierarchies such as "/sandboxes", or empty. What the host cannot do is a
// fact, not an error; an error means that it could not be found out.
func Detect(parent string) (Facts, error) { return thisHost().detect(parent) }

func (h host) detect(parent string) (Facts, error) {
	f := Facts{
		Layout:      None,
		Controllers: make(map[string]Feature, 6),
		Parents:     make(map[string]string, 6),
		Own:         make(map[string]string, 6),
	}
	if parent != "" && (!filepath.IsAbs(parent) || filepath.Clean(parent) != parent) {
		return f, fmt.Errorf("parent cgroup %q: want a clean absolute path from the root of the hierarchy", parent)
	}
	own, err := groupsOf(h.cgroupFile)
	if errors.Is(err, os.ErrNotExist) {
		f.unusable("this kernel has no cgroups", "boot a kernel that has CONFIG_CGROUPS")
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("reading the groups of this process: %w", err)
	}
	mounts, err := h.mounts(own)
	if err != nil {
		return f, err
	}
	v1 := false
	for _, name := range v1Names {
		_, mounted := mounts[name]
		v1 = v1 || mounted
	}
	_, v2 := mounts[unified]
	switch {
	case v1 && v2:
		f.Layout = Hybrid
		h.detectV1(&f, own, mounts, parent)
	case v1:
		f.Layout = V1
		h.detectV1(&f, own, mounts, parent)
	case v2:
		f.Layout = V2
		h.detectV2(&f, own, mounts[unified], parent)
	default:
		f.unusable("no cgroup file system is mounted", "mount -t cgroup2 none /sys/fs/cgroup")
	}
	return f, nil
}

// groupsOf reads a /proc/PID/cgroup: the path of the group by v1 controller, and under ""
// on v2.
func groupsOf(file string) (map[string]string, error) {
	text, err := plainfile.Read(file)
	if err != nil {
		return nil, err
	}
	groups := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		// A path may have colons in it.
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			return nil, fmt.Errorf("%s: %q is no line of a cgroup file", file, line)
		}
		for name := range strings.SplitSeq(f[1], ",") {
			groups[name] = f[2]
		}
	}
	return groups, nil
}

// mount is one mounted cgroup hierarchy.
type mount struct {
	point   string
	root    string // which group of the hierarchy is seen at point
	options string // of the file system: the v1 controllers
}

// dir returns where the group at path (from /proc/self/cgroup or the operator)
// is seen in this mount.
func (m mount) dir(path string) (string, error) {
	// The kernel shows what lies outside of our cgroup namespace as "/..", which
	// no clean path stands for.
	if outside(m.root) || outside(path) {
		return "", fmt.Errorf("the cgroup mount %q (of %q) does not show %q: one is outside this cgroup namespace", m.point, m.root, path)
	}
	if m.root == "/" {
		return filepath.Join(m.point, path), nil
	}
	rel, err := filepath.Rel(m.root, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return "", fmt.Errorf("the cgroup mount %q shows only %q, not %q", m.point, m.root, path)
	}
	return filepath.Join(m.point, rel), nil
}

func outside(path string) bool { return path == "/.." || strings.HasPrefix(path, "/../") }

// mounts finds the mount of each hierarchy that this process has a group in. A host
// may have thousands of other mounts, and this is on the start path.
func (h host) mounts(own map[string]string) (map[string]mount, error) {
	want := make(map[string]bool, 8)
	for _, name := range append([]string{unified}, v1Names...) {
		if _, ok := own[name]; ok {
			want[name] = true
		}
	}
	text, err := plainfile.Read(h.mountFile)
	if err != nil {
		return nil, fmt.Errorf("reading the mounts of this process: %w", err)
	}
	var groups []byte // the lines that are worth taking apart
	for line := range bytes.Lines(text) {
		if bytes.Contains(line, []byte(" - cgroup")) { // no space is within a field
			groups = append(groups, line...)
		}
	}
	found := make(map[string]mount, len(want))
	_, err = mountinfo.GetMountsFromReader(bytes.NewReader(groups), func(info *mountinfo.Info) (skip, stop bool) {
		m := mount{point: info.Mountpoint, root: info.Root, options: info.VFSOptions}
		var names []string
		switch info.FSType {
		case "cgroup2":
			names = []string{unified}
		case "cgroup":
			names = strings.Split(info.VFSOptions, ",")
		default:
			return true, false
		}
		for _, name := range names {
			if !want[name] {
				continue
			}
			if _, err := m.dir(own[name]); err == nil {
				delete(want, name)
			} else if _, seen := found[name]; seen {
				continue
			}
			found[name] = m
		}
		return true, len(want) == 0
	})
	if err != nil {
		return nil, fmt.Errorf("reading the mounts of this process: %w", err)
	}
	return found, nil
}

// canHold reports whether groups can be made in dir.
func (h host) canHold(dir string) error {
	if err := h.writable(dir); err != nil {
		return &os.PathError{Op: "write", Path: dir, Err: err}
	}
	return nil
}
