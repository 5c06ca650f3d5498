package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// bindSocket makes the socket that the sandbox tells of itself by. Its descriptor goes
// to the supervisor with KindFSDone.
func (b *builder) bindSocket(o *initproto.Op) error {
	if len(b.sockets) > 0 {
		return fmt.Errorf("%w: a second socket", initproto.ErrMessage)
	}
	d, name, err := b.place(o.Target)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	b.sockets = append(b.sockets, fd)
	// There is no bindat(2); the link in /proc leads to the directory that was opened.
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: procFD(d.fd) + "/" + name}); err != nil {
		return fmt.Errorf("binding %q: %w", o.Target, os.NewSyscallError("bind", err))
	}
	node, err := unix.Openat(d.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %q: %w", o.Target, os.NewSyscallError("openat", err))
	}
	defer unix.Close(node)
	return setOwner(node, o)
}
