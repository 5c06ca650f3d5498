//go:build !amd64

package main

import "syscall"

// forkShared needs assembly where there is some.
func forkShared(p *prepared) (pid int, pidfd int, errno syscall.Errno) { return forkCopy(p) }
