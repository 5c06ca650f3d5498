package testutil

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func available() Finding { return Finding{State: Available} }

func missing(format string, args ...any) Finding {
	return Finding{Missing, fmt.Sprintf(format, args...)}
}

func unknown(format string, args ...any) Finding {
	return Finding{Unknown, fmt.Sprintf(format, args...)}
}

// Root is full privilege over the host: effective uid 0 and a mount that works.
var Root = Requirement{"root", func() Finding {
	if os.Geteuid() != 0 {
		return missing("running as uid %d", os.Geteuid())
	}
	return tryChild(&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS})
}}

// Unprivileged is an ordinary user: what a test of rootless paths runs as.
var Unprivileged = Requirement{"unprivileged", func() Finding {
	if os.Geteuid() == 0 {
		return missing("running as root")
	}
	return available()
}}

// UserNS is a user namespace made by this process with its own id mapped to 0.
var UserNS = Requirement{"userns", func() Finding {
	return tryChild(&syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	})
}}

// tryChild starts and ends a process with attr, which does what a sandbox does first.
func tryChild(attr *syscall.SysProcAttr) Finding {
	attr.Pdeathsig = syscall.SIGKILL
	runtime.LockOSThread() // Pdeathsig follows the thread (golang/go#27505).
	defer runtime.UnlockOSThread()
	cmd := exec.Command("true")
	cmd.SysProcAttr = attr
	err := cmd.Run()
	var errno syscall.Errno
	switch {
	case err == nil:
		return available()
	case errors.As(err, &errno) && refused(errno):
		return missing("starting a process in new namespaces: %v", errno)
	default:
		return unknown("starting a process in new namespaces: %v", err)
	}
}

// refused tells the errors by which a kernel says "not here" or "not you" from
// those that say nothing about the feature, such as a full process table.
func refused(errno syscall.Errno) bool {
	switch errno {
	case unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EINVAL, unix.EOPNOTSUPP, unix.ENOSPC, unix.EROFS, unix.EUSERS:
		return true
	}
	return false
}

// Landlock is a kernel with at least this Landlock ABI, switched on.
func Landlock(abi int) Requirement {
	return Requirement{fmt.Sprintf("landlock-%d", abi), func() Finding {
		have, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
		switch {
		case errno == unix.ENOSYS || errno == unix.EOPNOTSUPP:
			return missing("the kernel has no Landlock: %v", errno)
		case errno != 0:
			return unknown("asking for the Landlock ABI: %v", errno)
		case int(have) < abi:
			return missing("the kernel has Landlock ABI %d", have)
		}
		return available()
	}}
}

// Kernel is a Linux of at least this version: only for what no probe can do.
func Kernel(major, minor int) Requirement {
	return Requirement{fmt.Sprintf("kernel-%d.%d", major, minor), func() Finding {
		var uts unix.Utsname
		if err := unix.Uname(&uts); err != nil {
			return unknown("uname: %v", err)
		}
		release := unix.ByteSliceToString(uts.Release[:])
		var haveMajor, haveMinor int
		if _, err := fmt.Sscanf(release, "%d.%d", &haveMajor, &haveMinor); err != nil {
			return unknown("reading the kernel release %q: %v", release, err)
		}
		if haveMajor < major || haveMajor == major && haveMinor < minor {
			return missing("the kernel is %s", release)
		}
		return available()
	}}
}

// Program is a command in PATH.
func Program(name string) Requirement {
	return Requirement{"program-" + name, func() Finding {
		_, err := exec.LookPath(name)
		switch {
		case err == nil:
			return available()
		case errors.Is(err, exec.ErrNotFound):
			return missing("no %s in PATH", name)
		default:
			return unknown("looking for %s in PATH: %v", name, err)
		}
	}}
}

// VM is the throw-away machine of test/vm, where a test may do what it would
// not do to a developer's host.
var VM = Requirement{"vm", func() Finding {
	if os.Getenv("NUCLEUS_VM") != "1" {
		return missing("not inside the test VM (make test-vm)")
	}
	return available()
}}

// SubID is a range of subordinate ids for this process: anything for root,
// /etc/subuid and /etc/subgid with a working newuidmap and newgidmap for others.
var SubID = Requirement{"subid", func() Finding {
	if os.Geteuid() == 0 {
		return tryChild(&syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}},
			Credential:  &syscall.Credential{},
		})
	}
	return trySubordinateMap()
}}

// trySubordinateMap maps a range into a child's user namespace as a sandbox would.
func trySubordinateMap() Finding {
	self, err := current()
	if err != nil {
		return unknown("looking up the current user: %v", err)
	}
	for _, kind := range []struct{ file, tool string }{{"/etc/subuid", "newuidmap"}, {"/etc/subgid", "newgidmap"}} {
		first, count, err := subordinateRange(kind.file, self.Name, self.UID)
		if err != nil {
			return unknown("reading %s: %v", kind.file, err)
		}
		if count == 0 {
			return missing("%s has no range for %s", kind.file, self.Name)
		}
		if found := tryMapTool(kind.tool, first); found.State != Available {
			return found
		}
	}
	return available()
}

func tryMapTool(tool string, hostID int) Finding {
	if _, err := exec.LookPath(tool); errors.Is(err, exec.ErrNotFound) {
		return missing("no %s in PATH", tool)
	}
	child := exec.Command("cat") // lives until its standard input is closed
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	stdin, err := child.StdinPipe()
	if err != nil {
		return unknown("making a pipe: %v", err)
	}
	if err := child.Start(); err != nil {
		var errno syscall.Errno
		if errors.As(err, &errno) && refused(errno) {
			return missing("making a user namespace: %v", errno)
		}
		return unknown("making a user namespace: %v", err)
	}
	out, mapErr := exec.Command(tool, fmt.Sprint(child.Process.Pid), "0", fmt.Sprint(hostID), "1").CombinedOutput()
	stdin.Close()
	waitErr := child.Wait()
	var exit *exec.ExitError
	switch {
	case errors.As(mapErr, &exit):
		return missing("%s: %s", tool, strings.TrimSpace(string(out)))
	case mapErr != nil:
		return unknown("running %s: %v", tool, mapErr)
	case waitErr != nil:
		return unknown("the process in the user namespace: %v", waitErr)
	}
	return available()
}
