// Package channel owns the control socket between a supervisor and its init: a
// SEQPACKET pair that carries one message and its descriptors at a time. It
// knows nothing of what the messages mean.
package channel

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

const (
	// inline is the largest message that travels in the socket itself; the
	// default socket buffer (net.core.wmem_default) is 212,992 bytes. A larger
	// one goes into a sealed memfd.
	inline = 64 << 10
	// maxMessage bounds what a peer can make us read.
	maxMessage = 16 << 20
	// maxFDs is the kernel's limit of one SCM_RIGHTS message (SCM_MAX_FD).
	maxFDs = 253
)

// Conn is one end of the socket. Sends are atomic and may come from several
// goroutines; receives belong to one.
type Conn struct {
	fd  int
	buf []byte
	oob []byte
}

// Pair makes both ends, close-on-exec.
func Pair() (a, b *Conn, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return New(p[0]), New(p[1]), nil
}

// New takes over descriptor fd.
func New(fd int) *Conn { return &Conn{fd: fd} }

// FD gives the descriptor, which stays owned by the Conn.
func (c *Conn) FD() int { return c.fd }

// Close closes the descriptor; further calls do nothing.
func (c *Conn) Close() error {
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return os.NewSyscallError("close", unix.Close(fd))
}

// Shutdown wakes a receiver on either end with io.EOF.
func (c *Conn) Shutdown() {
	_ = unix.Shutdown(c.fd, unix.SHUT_RDWR) // ENOTCONN: the peer is gone, which is what we want
}

// Send sends one message with its descriptors, which stay the caller's.
func (c *Conn) Send(msg []byte, fds ...int) error {
	if len(fds) > maxFDs-1 {
		return fmt.Errorf("sending %d descriptors: at most %d fit a message", len(fds), maxFDs-1)
	}
	if len(msg) > inline {
		bulk, err := sealed(msg)
		if err != nil {
			return err
		}
		defer unix.Close(bulk)
		fds = append([]int{bulk}, fds...)
		msg = []byte{initproto.Version, bulkKind}
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(c.fd, msg, oob, nil, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// bulkKind marks a message whose bytes are in the first descriptor.
const bulkKind = 255

// Recv receives one message and its descriptors, close-on-exec, now the
// caller's. The bytes are valid until the next call. At the end of the stream
// the error is io.EOF.
func (c *Conn) Recv() ([]byte, []int, error) {
	if c.buf == nil {
		c.buf, c.oob = make([]byte, inline+1), make([]byte, unix.CmsgSpace(maxFDs*4))
	}
	var n, on, flags int
	var err error
	for reset := false; ; {
		n, on, flags, _, err = unix.Recvmsg(c.fd, c.buf, c.oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.ECONNRESET) && !reset {
			// The peer went with a message of ours unread. The kernel says so once, and
			// before what the peer had sent.
			reset = true
			continue
		}
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.ECONNRESET) {
		return nil, nil, io.EOF
	}
	if err != nil {
		return nil, nil, os.NewSyscallError("recvmsg", err)
	}
	fds, err := rights(c.oob[:on])
	if err != nil {
		return nil, nil, err
	}
	if n == 0 {
		CloseAll(fds)
		return nil, nil, io.EOF
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		CloseAll(fds)
		return nil, nil, fmt.Errorf("%w: truncated", initproto.ErrMessage)
	}
	msg := c.buf[:n]
	if n == 2 && msg[1] == bulkKind {
		if len(fds) == 0 {
			return nil, nil, fmt.Errorf("%w: no bulk descriptor", initproto.ErrMessage)
		}
		msg, err = readAll(fds[0])
		_ = unix.Close(fds[0])
		fds = fds[1:]
		if err != nil {
			CloseAll(fds)
			return nil, nil, err
		}
	}
	return msg, fds, nil
}

// CloseAll closes descriptors that are not wanted after all.
func CloseAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // nothing was written through them
	}
}

func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, os.NewSyscallError("parse control message", err)
	}
	var fds []int
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		f, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			CloseAll(fds)
			return nil, os.NewSyscallError("parse rights", err)
		}
		fds = append(fds, f...)
	}
	return fds, nil
}

// sealed gives a memfd that holds b and can no longer be changed by anybody.
func sealed(b []byte) (int, error) {
	fd, err := unix.MemfdCreate("nucleus", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	for off := 0; off < len(b); {
		n, err := unix.Pwrite(fd, b[off:], int64(off))
		if err != nil && !errors.Is(err, unix.EINTR) {
			_ = unix.Close(fd)
			return -1, os.NewSyscallError("pwrite", err)
		}
		off += max(n, 0)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return fd, nil
}

func readAll(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Size < 2 || st.Size > maxMessage {
		return nil, fmt.Errorf("%w: %d bytes", initproto.ErrMessage, st.Size)
	}
	b := make([]byte, st.Size)
	for off := 0; off < len(b); {
		n, err := unix.Pread(fd, b[off:], int64(off))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("pread", err)
		}
		if n == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		off += n
	}
	return b, nil
}
