package inside

import (
	"os"

	"golang.org/x/sys/unix"
)

// Leave closes a tap device, and leaves the interface to the end of its namespace.
// Closing would remove it, for which the kernel waits for all its processors
// (unregister_netdevice): some 20 ms, and whoever ends the plugin with it. What is sent
// to an interface that was left is lost, its carrier is off.
func Leave(tap *os.File) {
	if raw, err := tap.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) // then it takes longer
		})
	}
	tap.Close()
}

// Gone tells whether a tap device has been removed from outside of the plugin.
func Gone(tap *os.File) bool {
	raw, err := tap.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		r, rerr := unix.NewIfreq("")
		gone = rerr == nil && unix.IoctlIfreq(int(fd), unix.TUNGETIFF, r) != nil // EBADFD
	})
	return gone || err != nil
}
