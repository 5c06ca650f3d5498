package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// closeInherited closes every descriptor that came through exec, but the
// standard streams and the control socket. Whoever started the supervisor may
// have left files of the host open in it (a shell's `9<file`, a service
// manager's sockets), and the supervisor's own are close-on-exec; so is what
// this process's Go runtime has opened, which must stay.
func closeInherited() error {
	// The host's /proc, in which self is this process although its pid differs.
	dir, err := unix.Open("/proc/self/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("inherited descriptors: %w", os.NewSyscallError("open /proc/self/fd", err))
	}
	defer unix.Close(dir)
	var names []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil {
			return fmt.Errorf("inherited descriptors: %w", os.NewSyscallError("getdents64", err))
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil || fd <= controlFD {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd) // it is gone whatever close says
		}
	}
	return nil
}
