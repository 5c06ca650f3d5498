package lifecycle

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// heldMounts is the sandbox's mount namespace, held over the end of its processes. The
// last of them would else wait in its end until all is unmounted, for a grace period of
// RCU and as long as its file systems take to go, and so would whoever waits for that
// end. Here it goes beside the rest of the teardown.
type heldMounts struct {
	fd   int
	held bool
	gone chan struct{}
}

// hold takes hold of a process's namespace. Where that is not possible, it goes with the
// process.
func (m *heldMounts) hold(pid int) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	m.fd, m.held = fd, err == nil
}

// letGo begins the end of the namespace, once no process is in it.
func (m *heldMounts) letGo() {
	if !m.held {
		return
	}
	m.held, m.gone = false, make(chan struct{})
	go func() {
		_ = unix.Close(m.fd)
		close(m.gone)
	}()
}

// wait returns when nothing of the sandbox is mounted any more.
func (m *heldMounts) wait() {
	if m.gone != nil {
		<-m.gone
	}
}
