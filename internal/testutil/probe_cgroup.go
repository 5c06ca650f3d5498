package testutil

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// CgroupV2 is a host whose only cgroup hierarchy is version 2.
var CgroupV2 = Requirement{"cgroup-v2", func() Finding {
	var fs unix.Statfs_t
	err := unix.Statfs("/sys/fs/cgroup", &fs)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return missing("nothing is mounted on /sys/fs/cgroup")
	case err != nil:
		return unknown("statfs /sys/fs/cgroup: %v", err)
	case fs.Type != unix.CGROUP2_SUPER_MAGIC:
		return missing("the host has cgroup v1 hierarchies")
	}
	return available()
}}

// controllerFiles name one file that a child group has only if the controller
// acts on it, on version 2 and on version 1.
var controllerFiles = map[string][2]string{
	"memory":  {"memory.max", "memory.limit_in_bytes"},
	"pids":    {"pids.max", "pids.max"},
	"cpu":     {"cpu.max", "cpu.cfs_quota_us"},
	"cpuset":  {"cpuset.cpus", "cpuset.cpus"},
	"io":      {"io.max", "blkio.throttle.read_bps_device"},
	"freezer": {"cgroup.freeze", "freezer.state"},
}

// CgroupController is a controller ("memory", "pids", "cpu", "cpuset", "io",
// "freezer") whose limits this process may set on groups that it makes, on
// whichever version of cgroups carries that controller here.
func CgroupController(name string) Requirement {
	return Requirement{"cgroup-" + name, func() Finding {
		files, ok := controllerFiles[name]
		if !ok {
			return unknown("no probe for a controller named %q", name)
		}
		table, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return unknown("reading mountinfo: %v", err)
		}
		groups, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return unknown("reading the own cgroups: %v", err)
		}
		dirs, version := controllerDirs(string(table), string(groups), name)
		if len(dirs) == 0 {
			return missing("no cgroup hierarchy with the %s controller is mounted", name)
		}
		var last Finding
		for _, dir := range dirs {
			if last = tryChildGroup(dir, files[version]); last.State != Missing {
				return last
			}
		}
		return last
	}}
}

// controllerDirs returns where child groups may be made, best first, and the
// index of the controller's version in controllerFiles. On version 2 a group
// with processes in it passes no controllers on, so its parent comes next:
// that is where a delegated user keeps sibling groups.
func controllerDirs(mountinfo, groups, controller string) (dirs []string, version int) {
	v1Name := controller
	if controller == "io" {
		v1Name = "blkio"
	}
	for _, hierarchy := range cgroupHierarchies(mountinfo) {
		if !hierarchy.v2 && hierarchy.has(v1Name) {
			return []string{filepath.Join(hierarchy.mountPoint, ownGroup(groups, v1Name))}, 1
		}
	}
	for _, hierarchy := range cgroupHierarchies(mountinfo) {
		if hierarchy.v2 {
			own := filepath.Join(hierarchy.mountPoint, ownGroup(groups, ""))
			dirs = append(dirs, own)
			if own != hierarchy.mountPoint {
				dirs = append(dirs, filepath.Dir(own))
			}
		}
	}
	return dirs, 0
}

// ownGroup finds a hierarchy in /proc/self/cgroup: "id:controller,...:path",
// with no controllers for version 2.
func ownGroup(groups, controller string) string {
	for line := range strings.Lines(groups) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 {
			continue
		}
		for _, c := range strings.Split(fields[1], ",") {
			if c == controller {
				return fields[2]
			}
		}
	}
	return "/"
}

func tryChildGroup(parent, file string) Finding {
	dir := filepath.Join(parent, fmt.Sprintf("nucleus-probe-%d", os.Getpid()))
	err := os.Mkdir(dir, 0o755)
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno) && (refused(errno) || errno == unix.ENOENT):
		return missing("making a group in %s: %v", parent, errno)
	case err != nil:
		return unknown("making a group in %s: %v", parent, err)
	}
	_, statErr := os.Stat(filepath.Join(dir, file))
	if err := os.Remove(dir); err != nil {
		return unknown("removing the probe's group: %v", err)
	}
	switch {
	case errors.Is(statErr, os.ErrNotExist):
		return missing("groups below %s have no %s", parent, file)
	case statErr != nil:
		return unknown("looking for %s below %s: %v", file, parent, statErr)
	}
	return available()
}
