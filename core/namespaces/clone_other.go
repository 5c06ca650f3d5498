//go:build !amd64

package namespaces

import (
	"fmt"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// spawn makes init by the syscall package's fork. Package birth says why that
// is not good enough where there is something better.
func spawn(b born) (pid, pidfd int, err error) {
	pidfd = -1
	sys := &syscall.SysProcAttr{
		Cloneflags: b.flags, Pdeathsig: unix.SIGKILL, PidFD: &pidfd, Setsid: true, AmbientCaps: b.ambient,
	}
	if b.cgroup >= 0 {
		sys.UseCgroupFD, sys.CgroupFD = true, b.cgroup
	}
	if b.waitForMaps {
		sys.UidMappings, sys.GidMappings = sysMap(b.uids), sysMap(b.gids)
		sys.GidMappingsEnableSetgroups = b.setGroups
	}
	if b.root {
		sys.Credential = &syscall.Credential{NoSetGroups: !b.setGroups}
	}
	path := b.path
	if b.program >= 0 {
		path = fmt.Sprintf("/proc/self/fd/%d", b.program)
	}
	pid, err = syscall.ForkExec(path, b.argv, &syscall.ProcAttr{
		Env: b.env, Files: []uintptr{uintptr(b.fds[0]), uintptr(b.fds[1]), uintptr(b.fds[2]), uintptr(b.fds[3])}, Sys: sys,
	})
	if err == nil && b.waitForMaps {
		b.mapped(pid)
	}
	return pid, pidfd, err
}

func sysMap(ms []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, 0, len(ms))
	for _, m := range ms {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return out
}
