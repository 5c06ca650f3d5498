package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// lend clones the mount of a directory and passes the clone on. It is all that this
// process is for: there is no sandbox.
func (in *initProcess) lend(msg []byte, fds []int) error {
	var l initproto.Lend
	if err := initproto.Decode(msg, &l); err != nil {
		return err
	}
	if len(fds) != 1 {
		return fmt.Errorf("%w: %d descriptors", initproto.ErrMessage, len(fds))
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", os.NewSyscallError("mount", err))
	}
	o := &initproto.Op{Code: initproto.OpBind, Source: l.Source, Target: l.Source, Set: l.Set, Flags: initproto.FlagVerify}
	b := &builder{fds: fds}
	tree, err := b.source(o)
	if err != nil {
		return err
	}
	if err := setAttr(tree, o); err != nil {
		return err
	}
	return in.conn.Send(initproto.Encode(initproto.KindLent, nil), tree)
}
