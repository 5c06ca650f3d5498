package stack

import (
	"testing"
	"unsafe"
)

//go:noinline
func use(depth int) byte {
	var b [1 << 10]byte
	b[depth] = byte(depth)
	if depth > 0 {
		return use(depth-1) + b[depth]
	}
	return b[0]
}

// moved tells whether a fresh goroutine's stack moves while it calls that many kibibytes deep.
func moved(depth int, before func()) bool {
	out := make(chan bool)
	go func() {
		before()
		var here byte
		at := func() uintptr { return uintptr(unsafe.Pointer(&here)) }
		old := at()
		use(depth)
		out <- at() != old
	}()
	return <-out
}

func TestStackStays(t *testing.T) {
	if !moved(6, func() {}) {
		t.Fatal("a stack that has not been made ready holds 6 KiB: the test tells nothing")
	}
	if moved(6, Middling) {
		t.Error("it moves after Middling")
	}
	if !moved(20, Middling) {
		t.Fatal("20 KiB fit after Middling: the test tells nothing")
	}
	if moved(20, Deep) {
		t.Error("it moves after Deep")
	}
}
