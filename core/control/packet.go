package control

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// packet is what one receive gave.
type packet struct {
	data  []byte
	files []*os.File
	size  int
	flags int
	// err is io.EOF at the end of the connection.
	err error
}

// receivePacket looks how much there is before it allocates: most connections
// wait most of the time, and a large buffer for each would be a supervisor's
// largest piece of memory.
func receivePacket(fd int) packet {
	var p packet
	p.err = afresh(func() (err error) {
		p.size, _, err = unix.Recvfrom(fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC)
		return err
	})
	switch {
	case p.err != nil:
		p.err = os.NewSyscallError("recvfrom", p.err)
		return p
	case p.size == 0 && hungUp(fd, unix.POLLRDHUP):
		p.err = io.EOF
		return p
	case p.size > MaxMessage:
		// Left where it is, with its descriptors: it goes with the connection.
		return p
	}
	p.data = make([]byte, max(p.size, 1))
	oob := make([]byte, unix.CmsgSpace(MaxFDs*4))
	var n, on int
	p.err = afresh(func() (err error) {
		n, on, p.flags, _, err = unix.Recvmsg(fd, p.data, oob, unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if p.err != nil {
		p.err = os.NewSyscallError("recvmsg", p.err)
		return p
	}
	p.data = p.data[:n]
	p.files, p.err = filesIn(oob[:on])
	return p
}

// afresh makes a receive that a signal or a reset has interrupted once more. A
// peer that closes with a message of ours unread resets the connection, and the
// kernel says so once, before what the peer had sent.
func afresh(receive func() error) error {
	err := again(receive)
	if errors.Is(err, unix.ECONNRESET) {
		err = again(receive)
	}
	if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ENOTCONN) {
		return io.EOF
	}
	return err
}

func hungUp(fd int, event int16) bool {
	look := []unix.PollFd{{Fd: int32(fd), Events: event}}
	err := again(func() error {
		_, err := unix.Poll(look, 0)
		return err
	})
	// Without an answer the peer counts as gone: a connection that cannot be
	// looked at is worth no more.
	return err != nil || look[0].Revents&(event|unix.POLLHUP|unix.POLLNVAL) != 0
}

// filesIn takes every descriptor into a file before it judges anything: from
// here on, none can leak.
func filesIn(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, os.NewSyscallError("parse control message", err)
	}
	var files []*os.File
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			CloseAll(files)
			return nil, os.NewSyscallError("parse rights", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func (p *packet) message() (Message, error) {
	switch {
	case p.err != nil:
		return Message{}, p.err
	case p.size > MaxMessage:
		return Message{}, refuse(CodeBadRequest, "the message has %d bytes, and at most %d are taken", p.size, MaxMessage)
	case p.flags&unix.MSG_TRUNC != 0:
		return Message{}, refuse(CodeBadRequest, "the message is truncated")
	case p.flags&unix.MSG_CTRUNC != 0 && len(p.files) >= MaxFDs:
		return Message{}, refuse(CodeBadRequest, "the message has more than %d descriptors", MaxFDs)
	case p.flags&unix.MSG_CTRUNC != 0:
		return Message{}, refuse(CodeFailed, "not all descriptors of the message could be taken: too many files are open here")
	case len(p.data) == 0:
		return Message{}, refuse(CodeBadRequest, "the message is empty")
	}
	return parse(p.data)
}
