package exec

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// sendConsole hands the master of a terminal to whoever listens on a socket, in the way
// of OCI's runtimes (runc, docs/terminals.md): one message, whose data is a name. It does
// not wait for a listener that is slow.
func sendConsole(path string, master *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return fmt.Errorf("console socket %q: %w", path, os.NewSyscallError("connect", err))
	}
	if err := unix.Sendmsg(fd, []byte("/dev/ptmx"), unix.UnixRights(int(master.Fd())), nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("console socket %q: %w", path, os.NewSyscallError("sendmsg", err))
	}
	return nil
}
