package channel

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	same := testutil.Descriptors(t)
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			t.Error(err)
		}
		same()
	})
	return a, b
}

func message(n int) []byte {
	return append([]byte{initproto.Version, 9}, bytes.Repeat([]byte("abc"), n)[:n]...)
}

func TestMessagesOfEverySize(t *testing.T) {
	a, b := pair(t)
	for _, n := range []int{0, 1, 1000, inline - 3, inline - 2, inline - 1, inline, 300_000, 5 << 20} {
		sent := make(chan error, 1)
		msg := message(n)
		go func() { sent <- a.Send(msg) }()
		got, fds, err := b.Recv()
		if err != nil || len(fds) != 0 || !bytes.Equal(got, msg) {
			t.Fatalf("%d bytes: got %d, %d descriptors, %v", len(msg), len(got), len(fds), err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
}

func TestDescriptorsArriveInOrderAndCloseOnExec(t *testing.T) {
	for _, size := range []int{1, inline + 1} { // in the socket, and beside a bulk descriptor
		a, b := pair(t)
		var send []int
		var inodes []uint64
		for range 5 {
			fd, err := unix.MemfdCreate("x", 0)
			if err != nil {
				t.Fatal(err)
			}
			send, inodes = append(send, fd), append(inodes, inode(t, fd))
		}
		if err := a.Send(message(size), send...); err != nil {
			t.Fatal(err)
		}
		for _, fd := range send {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
				t.Errorf("Send took a descriptor that is the caller's: %v", err)
			}
		}
		CloseAll(send)
		_, got, err := b.Recv()
		if err != nil || len(got) != len(inodes) {
			t.Fatalf("%d descriptors, %v, want %d", len(got), err, len(inodes))
		}
		for i, fd := range got {
			if inode(t, fd) != inodes[i] {
				t.Errorf("descriptor %d is another", i)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor %d would survive exec (%v)", i, err)
			}
		}
		CloseAll(got)
	}
}

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestAsManyDescriptorsAsTheKernelTakes(t *testing.T) {
	a, b := pair(t)
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	most := bytes.Repeat([]byte{0}, maxFDs-1)
	fds := make([]int, len(most))
	for i := range fds {
		fds[i] = null
	}
	for _, size := range []int{1, inline + 1} {
		if err := a.Send(message(size), fds...); err != nil {
			t.Fatal(err)
		}
		_, got, err := b.Recv()
		if err != nil || len(got) != len(fds) {
			t.Errorf("%d descriptors, %v, want %d", len(got), err, len(fds))
		}
		CloseAll(got)
	}
	if err := a.Send(message(1), append(fds, null)...); err == nil || !strings.Contains(err.Error(), "at most 252") {
		t.Errorf("one more: %v, want an error that tells how many", err)
	}
}

// The other side may be a workload that has taken over its init.
func TestHostileMessages(t *testing.T) {
	memfd := func(size int64) int {
		fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(fd, size); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	bulk := []byte{initproto.Version, bulkKind}
	for _, test := range []struct {
		what string
		msg  []byte
		fd   func() int // -1 for none
	}{
		{"longer than what goes inline", make([]byte, inline+100), func() int { return -1 }},
		{"longer, with a descriptor", make([]byte, inline+100), func() int { return memfd(10) }},
		{"bulk without descriptor", bulk, func() int { return -1 }},
		{"bulk of 17 MiB", bulk, func() int { return memfd(maxMessage + 1) }},
		{"bulk of one byte", bulk, func() int { return memfd(1) }},
		{"bulk of nothing", bulk, func() int { return memfd(0) }},
		{"bulk that is a pipe", bulk, func() int {
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			_ = unix.Close(p[1])
			return p[0]
		}},
		{"bulk that is a directory", bulk, func() int {
			fd, err := unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			return fd
		}},
		{"bulk that cannot be read", bulk, func() int {
			fd, err := unix.Open("/usr", unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			return fd
		}},
	} {
		t.Run(test.what, func(t *testing.T) {
			a, b := pair(t)
			var oob []byte
			if fd := test.fd(); fd >= 0 {
				oob = unix.UnixRights(fd)
				defer unix.Close(fd)
			}
			if err := unix.Sendmsg(a.FD(), test.msg, oob, nil, 0); err != nil {
				t.Fatal(err)
			}
			got, fds, err := b.Recv()
			if err == nil || errors.Is(err, io.EOF) || len(fds) != 0 {
				t.Errorf("got %d bytes, %d descriptors, %v, want an error", len(got), len(fds), err)
			}
			// The next message is not touched by it.
			if err := a.Send(message(3)); err != nil {
				t.Fatal(err)
			}
			if got, _, err := b.Recv(); err != nil || !bytes.Equal(got, message(3)) {
				t.Errorf("the message after: %q, %v", got, err)
			}
		})
	}
}

// Nobody may change a message while it is read.
func TestBulkIsSealed(t *testing.T) {
	fd, err := sealed(message(100_000))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Pwrite(fd, []byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("writing: %v, want EPERM", err)
	}
	for _, size := range []int64{0, 1 << 20} {
		if err := unix.Ftruncate(fd, size); !errors.Is(err, unix.EPERM) {
			t.Errorf("truncating to %d: %v, want EPERM", size, err)
		}
	}
}

func TestEndOfStream(t *testing.T) {
	for _, test := range []struct {
		what string
		end  func(a *Conn)
	}{
		{"closed", func(a *Conn) { _ = a.Close() }},
		{"shut down", func(a *Conn) { a.Shutdown() }},
	} {
		t.Run(test.what, func(t *testing.T) {
			a, b := pair(t)
			if err := a.Send(message(1)); err != nil {
				t.Fatal(err)
			}
			test.end(a)
			if got, _, err := b.Recv(); err != nil || !bytes.Equal(got, message(1)) {
				t.Errorf("the last message: %q, %v", got, err)
			}
			if _, _, err := b.Recv(); !errors.Is(err, io.EOF) {
				t.Errorf("after it: %v, want io.EOF", err)
			}
			if err := b.Send(message(1)); !errors.Is(err, unix.EPIPE) {
				t.Errorf("sending: %v, want EPIPE, and no SIGPIPE", err)
			}
		})
	}
}

func TestShutdownWakesAReceiver(t *testing.T) {
	a, b := pair(t)
	woken := make(chan error, 1)
	go func() {
		_, _, err := b.Recv()
		woken <- err
	}()
	time.Sleep(20 * time.Millisecond)
	a.Shutdown()
	select {
	case err := <-woken:
		if !errors.Is(err, io.EOF) {
			t.Errorf("woken by %v, want io.EOF", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("still waiting")
	}
}

func TestSendersDoNotMix(t *testing.T) {
	a, b := pair(t)
	const senders, each = 8, 50
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for range each {
				if err := a.Send(append([]byte{initproto.Version, 9}, bytes.Repeat([]byte{byte(i)}, 1000*i)...)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	counts := map[byte]int{}
	for range senders * each {
		got, _, err := b.Recv()
		if err != nil {
			t.Fatal(err)
		}
		body := got[2:]
		id := byte(len(body) / 1000)
		if !bytes.Equal(body, bytes.Repeat([]byte{id}, 1000*int(id))) {
			t.Fatalf("a mixed message of %d bytes", len(body))
		}
		counts[id]++
	}
	wg.Wait()
	for i := range senders {
		if counts[byte(i)] != each {
			t.Errorf("sender %d: %d messages, want %d", i, counts[byte(i)], each)
		}
	}
}

// What a peer said last arrives, although it went with a message of ours unread.
func TestLastWordOfAPeerThatDidNotListen(t *testing.T) {
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Send([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	if err := b.Send([]byte("last word")); err != nil {
		t.Fatal(err)
	}
	_ = b.Close()
	if msg, _, err := a.Recv(); err != nil || string(msg) != "last word" {
		t.Errorf("%q, %v, want the last word", msg, err)
	}
	if _, _, err := a.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("error %v, want the end", err)
	}
}
