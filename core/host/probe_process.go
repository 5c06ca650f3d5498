package host

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func probePidfd(string) (string, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return "", fmt.Errorf("opening our own pidfd: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); err != nil {
		return "", fmt.Errorf("signalling through a pidfd: %w", err)
	}
	return "", nil
}

// probeOpenat2 checks that the refusal works, not only that the call exists.
func probeOpenat2(string) (string, error) {
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", setup("opening /", err)
	}
	defer unix.Close(dir)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(dir, ".", &how)
	if err != nil {
		return "", fmt.Errorf("opening beneath a directory: %w", err)
	}
	unix.Close(fd)
	fd, err = unix.Openat2(dir, "..", &how)
	if err == nil {
		unix.Close(fd)
		return "", &refusal{why: "openat2 let a path leave the directory that it is to stay beneath"}
	}
	if !errors.Is(err, unix.EXDEV) {
		return "", fmt.Errorf("leaving a directory: %w", err)
	}
	return "", nil
}

func probeCloseRange(string) (string, error) {
	fd, err := unix.FcntlInt(reportFD, unix.F_DUPFD, 100)
	if err != nil {
		return "", setup("duplicating a descriptor", err)
	}
	defer unix.Close(fd)
	if err := unix.CloseRange(uint(fd), uint(fd), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return "", fmt.Errorf("marking a range of descriptors: %w", err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		return "", setup("reading a descriptor's flags", err)
	}
	if flags&unix.FD_CLOEXEC == 0 {
		return "", &refusal{why: "close_range left a descriptor unmarked"}
	}
	return "", nil
}

func probeMemfd(string) (string, error) {
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return "", fmt.Errorf("creating a memfd: %w", err)
	}
	defer unix.Close(fd)
	seals := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return "", fmt.Errorf("sealing a memfd: %w", err)
	}
	if _, err := unix.Write(fd, []byte("x")); !errors.Is(err, unix.EPERM) {
		return "", &refusal{why: "a sealed memfd could still be written"}
	}
	return "", nil
}

// probeKeyring gives this child a session keyring of its own; it goes with us.
func probeKeyring(string) (string, error) {
	before, _ := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	// x/sys has no way to say NULL, which asks for an anonymous keyring.
	after, _, errno := unix.Syscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
	if errno != 0 {
		return "", fmt.Errorf("joining a new session keyring: %w", errno)
	}
	if int(after) == before {
		return "", &refusal{why: "the session keyring is still the caller's"}
	}
	return "", nil
}

func probeNoNewPrivs(string) (string, error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return "", fmt.Errorf("setting no_new_privs: %w", err)
	}
	if v, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || v != 1 {
		return "", &refusal{why: "no_new_privs did not stick"}
	}
	return "", nil
}
