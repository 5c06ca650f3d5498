package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/tree"
)

// fdReader reads a pipe without the Go runtime's poller, which init does not need.
type fdReader int

func (r fdReader) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(r), b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("read", err)
		}
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
}

// unpack writes a tree that the supervisor packs while we read.
func (b *builder) unpack(o *initproto.Op) error {
	if o.FD < 0 {
		return fmt.Errorf("%w: no descriptor", initproto.ErrMessage)
	}
	dir, err := b.beneath(o.Target, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	digest, err := tree.Unpack(dir, fdReader(b.fds[o.FD]), tree.UnpackOptions{UID: o.UID, GID: o.GID, Verify: o.Flags&initproto.FlagVerify != 0})
	if err != nil {
		return fmt.Errorf("unpacking %q: %w", o.Target, err)
	}
	b.digests = append(b.digests, digest)
	return nil
}
