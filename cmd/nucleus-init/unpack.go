package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

func (b *builder) unpack(o *initproto.Op) error {
	return fmt.Errorf("unpack: %w", unix.ENOSYS)
}
