package lifecycle

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// A process that was given up before init told of it leaves no descriptor, or a probe
// that is always cut off would use all of them up.
func TestAnswersThatNobodyWaitsFor(t *testing.T) {
	var all spawns
	p := &Process{made: make(chan made, 1), ended: make(chan struct{})}
	if err := all.add(p); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := all.hear(initproto.KindSpawned, initproto.Encode(initproto.KindSpawned, &initproto.Spawned{ID: p.id}), []int{fd}); err != nil {
		t.Fatal(err)
	}
	if err := all.hear(initproto.KindEnded, initproto.Encode(initproto.KindEnded, &initproto.Ended{ID: p.id, Answer: []byte("x")}), nil); err != nil {
		t.Fatal(err)
	}
	<-p.ended
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("its descriptor: %v, want it closed", err)
	}
	if string(p.end.Answer) != "x" {
		t.Errorf("the answer is %q", p.end.Answer)
	}
}
