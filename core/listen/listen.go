// Package listen takes the sockets that a service manager passes to this process
// (sd_listen_fds(3)), and tells which of them a sandbox may have.
package listen

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// First is the descriptor of the first socket, here and in a sandbox.
const First = 3

// Max is how many a sandbox can have: with its secrets' and its own descriptors they
// go to init in one message, of which the kernel takes 253 (SCM_MAX_FD).
const Max = 64

// unnamed is what systemd calls a socket without a name.
const unnamed = "unknown"

// Socket is one of them.
type Socket struct {
	FD   int
	Name string
	// IP: it belongs to the network that this process is in, and what holds it can
	// speak to that network, whatever the sandbox's own is.
	IP bool
}

// ErrNone says that none were passed to this process.
var ErrNone = errors.New("no sockets were passed to this process (LISTEN_PID and LISTEN_FDS, sd_listen_fds(3))")

// FromEnv gives the sockets that the environment says are open in this process.
func FromEnv(getenv func(string) string, pid int) ([]Socket, error) {
	if getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return nil, ErrNone
	}
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || n < 1 {
		return nil, ErrNone
	}
	if n > Max {
		return nil, fmt.Errorf("LISTEN_FDS=%d: a sandbox takes at most %d sockets", n, Max)
	}
	names := strings.Split(getenv("LISTEN_FDNAMES"), ":")
	out := make([]Socket, n)
	for i := range out {
		name := unnamed
		if len(names) == n && validName(names[i]) {
			name = names[i]
		}
		if out[i], err = take(First+i, name); err != nil {
			return nil, fmt.Errorf("descriptor %d (%s): %w", First+i, name, err)
		}
	}
	return out, nil
}

// validName is systemd's rule (fdname_is_valid).
func validName(s string) bool {
	return s != "" && len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f || r == ':' })
}

// take looks at a descriptor before it is taken over.
func take(fd int, name string) (Socket, error) {
	ip, err := admit(fd)
	if err != nil {
		return Socket{}, err
	}
	unix.CloseOnExec(fd)
	// No os.File: it would change whether the socket blocks, which whoever passed it
	// sees as well.
	return Socket{FD: fd, Name: name, IP: ip}, nil
}

// admit tells whether a descriptor is a socket that waits for others to speak, and
// refuses everything else: a file or a directory of the host is a way out, a connected
// socket somebody else's conversation, a netlink or raw socket the host's network.
func admit(fd int) (ip bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return false, errors.New("not a socket")
	}
	var v [4]int
	for i, opt := range []int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL, unix.SO_ACCEPTCONN} {
		if v[i], err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt); err != nil {
			return false, os.NewSyscallError("getsockopt", err)
		}
	}
	family, kind, protocol, listens := v[0], v[1], v[2], v[3] == 1
	switch family {
	case unix.AF_UNIX:
	case unix.AF_INET, unix.AF_INET6:
		ip = true
		if kind == unix.SOCK_STREAM && protocol != unix.IPPROTO_TCP || kind == unix.SOCK_DGRAM && protocol != unix.IPPROTO_UDP {
			return false, fmt.Errorf("a socket of protocol %d: TCP and UDP are passed on", protocol)
		}
	default:
		return false, fmt.Errorf("a socket of address family %d: AF_UNIX, AF_INET and AF_INET6 are passed on", family)
	}
	switch kind {
	case unix.SOCK_STREAM, unix.SOCK_SEQPACKET:
		if !listens {
			return false, errors.New("a socket that does not listen")
		}
	case unix.SOCK_DGRAM:
		if _, err := unix.Getpeername(fd); err == nil {
			return false, errors.New("a connected socket")
		}
	default:
		return false, fmt.Errorf("a socket of type %d: listening and datagram sockets are passed on", kind)
	}
	return ip, nil
}
