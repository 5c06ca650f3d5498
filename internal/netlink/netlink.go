// Package netlink owns the talk with the kernel over netlink(7): it sends batches of
// messages that others have made, and takes the answers.
package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// answerTime is how long the kernel may take for one batch, in seconds.
const answerTime = 5

// ErrMalformed is of a batch that is none.
var ErrMalformed = errors.New("malformed netlink batch")

// Refused is the kernel's answer to one message.
type Refused struct {
	Seq   uint32
	Errno unix.Errno
}

func (e *Refused) Error() string { return fmt.Sprintf("netlink message %d: %v", e.Seq, e.Errno) }
func (e *Refused) Unwrap() error { return e.Errno }

// Socket opens a socket, with further flags of socket(2).
func Socket(protocol, flags int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, protocol)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

// Transact sends a batch of messages, and waits for what the kernel says to each that
// asks for an answer. It ends at the first that is refused: a netfilter batch is one
// transaction anyway, and of others the next is sent only then.
func Transact(protocol int, batch []byte) error {
	var parts [][]byte
	err := messages(batch, func(whole []byte, _ header, _ []byte) error {
		parts = append(parts, whole)
		return nil
	})
	if err != nil {
		return err
	}
	if protocol == unix.NETLINK_NETFILTER || len(parts) == 0 { // which asks for nothing
		parts = [][]byte{batch}
	}
	fd, err := Socket(protocol, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: answerTime}); err != nil {
		return os.NewSyscallError("setsockopt SO_RCVTIMEO", err)
	}
	// Best effort: a batch that does not fit the default buffer is rare.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4*len(batch)+64<<10)
	for _, p := range parts {
		if err := transact(fd, p); err != nil {
			return err
		}
	}
	return nil
}

func transact(fd int, batch []byte) error {
	due := map[uint32]bool{}
	_ = messages(batch, func(_ []byte, h header, _ []byte) error { // it was gone through before
		if h.flags&unix.NLM_F_ACK != 0 {
			due[h.seq] = true
		}
		return nil
	})
	if len(due) == 0 {
		return fmt.Errorf("%w: it asks for no answer", ErrMalformed)
	}
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 64<<10)
	for len(due) > 0 {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("netlink: %d messages have no answer: %w", len(due), os.NewSyscallError("recvfrom", err))
		}
		if k, ok := from.(*unix.SockaddrNetlink); !ok || k.Pid != 0 {
			continue // not the kernel's
		}
		if err := acked(buf[:n], due); err != nil {
			return err
		}
	}
	return nil
}

type header struct {
	kind, flags uint16
	seq         uint32
}

// messages goes through netlink messages.
func messages(b []byte, f func(whole []byte, h header, payload []byte) error) error {
	for len(b) > 0 {
		if len(b) < unix.NLMSG_HDRLEN {
			return ErrMalformed
		}
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return fmt.Errorf("%w: a message of %d bytes", ErrMalformed, n)
		}
		h := header{kind: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]), seq: binary.NativeEndian.Uint32(b[8:])}
		next := min((n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b))
		if err := f(b[:next], h, b[unix.NLMSG_HDRLEN:n]); err != nil {
			return err
		}
		b = b[next:]
	}
	return nil
}

// acked takes the messages that the kernel has answered from those that are due.
func acked(b []byte, due map[uint32]bool) error {
	return messages(b, func(_ []byte, h header, payload []byte) error {
		if h.kind != unix.NLMSG_ERROR || len(payload) < 4 {
			return nil
		}
		if code := int32(binary.NativeEndian.Uint32(payload)); code != 0 {
			return &Refused{h.seq, unix.Errno(-code)}
		}
		delete(due, h.seq)
		return nil
	})
}
