package birth

import (
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// A thread that Go's monitor has made has late timers. What it makes has not.
func TestChildIsAsPunctualAsItsMakerWas(t *testing.T) {
	before := testutil.LateThread(t)
	p, r := shell(t, "read n </proc/self/timerslack_ns; echo $n", func(*Program) {})
	b, err := p.Clone(0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Await(nil); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(b.PidFD)
	if got := said(t, p, r); got != strconv.Itoa(before) {
		t.Errorf("timers of the child may be late by %s ns, want %d", got, before)
	}
	if _, err := syscall.Wait4(b.Pid, nil, 0, nil); err != nil {
		t.Error(err)
	}
}
