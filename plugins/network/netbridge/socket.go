package netbridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// socket is a netlink socket for batches: one of ours, or one that was opened inside a
// sandbox. Messages are sent to the kernel by address. Then it looks at the
// capabilities of whoever sends, and not of whoever has opened the socket
// (NETLINK_SKB_DST in __netlink_ns_capable).
type socket struct{ fd int }

func open(proto int) (socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return socket{-1}, os.NewSyscallError("socket", err)
	}
	return socket{fd}, nil
}

func (s socket) close() { _ = unix.Close(s.fd) }

// request makes a message.
func request(kind, flags int, parts ...nl.NetlinkRequestData) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags)
	for _, p := range parts {
		r.AddData(p)
	}
	return r
}

// refused is the kernel's answer to one message of a batch.
type refused struct {
	at  int
	err error
}

func (e *refused) Error() string { return e.err.Error() }
func (e *refused) Unwrap() error { return e.err }

// answerLimit is long for a kernel; the route lock may be held by a namespace that goes.
const answerLimit = 10 * time.Second

// send sends the messages as one and waits for the acknowledgement of each that asks
// for one. The first that was refused is the error. data gets what else came.
func (s socket) send(ctx context.Context, data func(m []byte), rs ...*nl.NetlinkRequest) error {
	var out []byte
	waiting := make(map[uint32]int)
	for i, r := range rs {
		out = append(out, r.Serialize()...)
		if r.Flags&unix.NLM_F_ACK != 0 || r.Flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP {
			waiting[r.Seq] = i
		}
	}
	if err := unix.Sendto(s.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	deadline := time.Now().Add(answerLimit)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	var first *refused
	buf := make([]byte, 64<<10)
	for len(waiting) > 0 {
		n, err := s.receive(buf, deadline)
		if err != nil {
			return err
		}
		for m := buf[:n]; len(m) >= unix.SizeofNlMsghdr; {
			size := binary.NativeEndian.Uint32(m)
			if size < unix.SizeofNlMsghdr || int(size) > len(m) {
				return errors.New("the kernel's answer is cut off")
			}
			kind, seq := binary.NativeEndian.Uint16(m[4:]), binary.NativeEndian.Uint32(m[8:])
			body := m[unix.SizeofNlMsghdr:size]
			at, ours := waiting[seq]
			switch {
			case !ours:
			case kind == unix.NLMSG_ERROR && len(body) >= 4:
				delete(waiting, seq)
				if errno := -int32(binary.NativeEndian.Uint32(body)); errno != 0 && (first == nil || at < first.at) {
					first = &refused{at, unix.Errno(errno)}
				}
			case kind == unix.NLMSG_DONE:
				delete(waiting, seq)
			case data != nil:
				data(m[:size])
			}
			m = m[min(len(m), int(size+3)&^3):]
		}
	}
	if first != nil {
		return first
	}
	return nil
}

func (s socket) receive(buf []byte, deadline time.Time) (int, error) {
	for {
		// Init may have made the socket non-blocking, or not: the flag is of both ends.
		wait := time.Until(deadline)
		if wait <= 0 {
			return 0, fmt.Errorf("no answer from the kernel: %w", context.DeadlineExceeded)
		}
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, int(wait/time.Millisecond)+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, os.NewSyscallError("poll", err)
		}
		n, from, err := unix.Recvfrom(s.fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, os.NewSyscallError("recvfrom", err)
		}
		// Whoever else has the socket's address can send to it, but not as the kernel.
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue
		}
		return n, nil
	}
}

func attr(kind int, data []byte) *nl.RtAttr { return nl.NewRtAttr(kind, data) }

func number32(kind int, n uint32) *nl.RtAttr { return attr(kind, nl.Uint32Attr(n)) }

func nested(kind int, parts ...*nl.RtAttr) *nl.RtAttr {
	a := attr(kind|unix.NLA_F_NESTED, nil)
	for _, p := range parts {
		a.AddChild(p)
	}
	return a
}

// attributeOf finds an attribute among those of a message, nil if it is not there.
func attributeOf(m []byte, kind uint16) []byte {
	for len(m) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(m))
		if size < unix.SizeofNlAttr || size > len(m) {
			return nil
		}
		if binary.NativeEndian.Uint16(m[2:])&^unix.NLA_F_NESTED == kind {
			return m[unix.SizeofNlAttr:size]
		}
		m = m[min(len(m), (size+3)&^3):]
	}
	return nil
}
