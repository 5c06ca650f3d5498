package host

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// restrictTo puts this thread into a Landlock domain that allows nothing of
// what attr handles.
func restrictTo(attr *unix.LandlockRulesetAttr, size uintptr) error {
	if _, err := probeNoNewPrivs(""); err != nil {
		return setup("setting no_new_privs", err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("creating a ruleset: %w", errno)
	}
	defer unix.Close(int(fd))
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("restricting ourselves: %w", errno)
	}
	return nil
}

// Sizes of struct landlock_ruleset_attr as it grew: a kernel refuses bytes
// that it does not know unless they are zero, and shorter ones always work.
const (
	rulesetFS    = 8
	rulesetNet   = 16
	rulesetScope = 24
)

func abiDetail() string {
	abi, _ := landlockABI()
	return fmt.Sprintf("ABI %d", abi)
}

func probeLandlock(string) (string, error) {
	detail := abiDetail()
	attr := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_READ_DIR}
	if err := restrictTo(&attr, rulesetFS); err != nil {
		return "", err
	}
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		return "", &refusal{why: "a Landlock domain was entered and did not act"}
	}
	if !errors.Is(err, unix.EACCES) {
		return "", setup("opening / in a Landlock domain", err)
	}
	return detail, nil
}

func probeLandlockTCP(string) (string, error) {
	attr := unix.LandlockRulesetAttr{Handled_access_net: unix.LANDLOCK_ACCESS_NET_BIND_TCP}
	if err := restrictTo(&attr, rulesetNet); err != nil {
		return "", err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", setup("opening a socket", err)
	}
	defer unix.Close(fd)
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err == nil {
		return "", &refusal{why: "a Landlock domain let a TCP port be bound"}
	}
	if !errors.Is(err, unix.EACCES) {
		return "", setup("binding in a Landlock domain", err)
	}
	return abiDetail(), nil
}

// probeLandlockScope connects to an abstract socket that another, free thread
// has bound.
func probeLandlockScope(string) (string, error) {
	addr := &unix.SockaddrUnix{Name: fmt.Sprintf("@nucleus-probe-%d", os.Getpid())}
	bound := make(chan error, 1)
	release := make(chan struct{})
	defer close(release)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			err = unix.Bind(fd, addr)
		}
		bound <- err
		<-release
	}()
	if err := <-bound; err != nil {
		return "", setup("binding an abstract socket", err)
	}
	attr := unix.LandlockRulesetAttr{Scoped: unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL}
	if err := restrictTo(&attr, rulesetScope); err != nil {
		return "", err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", setup("opening a socket", err)
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, addr)
	if err == nil {
		return "", &refusal{why: "a Landlock domain let an abstract socket outside of it be reached"}
	}
	if !errors.Is(err, unix.EPERM) {
		return "", setup("connecting in a Landlock domain", err)
	}
	return abiDetail(), nil
}
