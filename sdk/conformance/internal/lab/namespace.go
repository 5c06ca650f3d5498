// Package lab is a laboratory of network namespaces for the rules about networks: a
// host, what is behind its one link, and sandboxes, for which it does the part of
// init. It touches no link, table or sysctl of the machine, and speaks to the kernel
// in netlink's own words, since what is looked at must not depend on who looks.
package lab

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace. It is there as long as it is open, or something
// is in it.
type Namespace struct{ file *os.File }

// newNamespace makes one whose loopback is up.
func newNamespace() (*Namespace, error) {
	n := &Namespace{}
	err := stray(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		n.file = file
		return errors.Join(pristine(), Up("lo"))
	})
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// stray calls f on a thread that leaves the process's namespace.
func stray(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	// Back, since the first thread of a process does not end with its goroutine. One
	// that can't come back stays locked.
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

// Do calls f on a thread in the namespace. Goroutines that f starts are not in it.
// Sockets that f opens, and processes that it starts, are.
func (n *Namespace) Do(f func() error) error {
	return stray(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}

// Close lets it go.
func (n *Namespace) Close() {
	if n.file != nil {
		n.file.Close()
	}
}

// pristine undoes what a namespace inherits of the machine (ip-sysctl(7),
// devconf_inherit_init_net), and has addresses of IPv6 ready at once: a census would
// see them come.
func pristine() error {
	for name, value := range map[string]string{
		"ipv4/ip_forward":                "0",
		"ipv4/conf/all/rp_filter":        "0",
		"ipv4/conf/default/rp_filter":    "0",
		"ipv6/conf/all/forwarding":       "0",
		"ipv6/conf/all/accept_dad":       "0",
		"ipv6/conf/default/accept_dad":   "0",
		"ipv6/conf/default/accept_ra":    "0",
		"ipv6/conf/default/disable_ipv6": "0",
		"ipv4/ping_group_range":          "0 2147483647",
	} {
		if err := SetSysctl(name, value); err != nil {
			return err
		}
	}
	return nil
}

// SetSysctl sets a value below /proc/sys/net, in the calling thread's namespace.
func SetSysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0)
}
