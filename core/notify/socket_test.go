package notify

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// received makes a socket that is received from, and a sender to it.
func received(t *testing.T) (r *Receiver, to *net.UnixConn, got chan Message) {
	t.Helper()
	dir, err := os.MkdirTemp("", "") // short enough for an address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	got = make(chan Message, 10000)
	r = Receive(fd, func(m Message) { got <- m })
	t.Cleanup(r.Close)
	to, err = net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = to.Close() })
	return r, to, got
}

func next(t *testing.T, got <-chan Message) Message {
	t.Helper()
	select {
	case m := <-got:
		return m
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came")
		return Message{}
	}
}

func TestReceiveSkipsWhatDoesNotCount(t *testing.T) {
	_, to, got := received(t)
	for _, s := range []string{"", "MAINPID=1", "READY=1\nSTATUS=" + strings.Repeat("x", 2*MaxSize), "READY=1\x00\x01", "STATUS=last"} {
		if _, err := to.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if m := next(t, got); m != (Message{HasStatus: true, Status: "last"}) {
		t.Errorf("%+v", m)
	}
}

// Descriptors are closed as they come: nothing is kept, and whoever waits for that
// (sd_notify_barrier(3)) goes on.
func TestReceiveClosesDescriptors(t *testing.T) {
	_, to, got := received(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, text := range []string{"BARRIER=1", "READY=1\nFDSTORE=1"} {
		raw, err := to.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var serr error
		if err := raw.Control(func(fd uintptr) {
			serr = unix.Sendmsg(int(fd), []byte(text), unix.UnixRights(int(w.Fd())), nil, 0)
		}); err != nil || serr != nil {
			t.Fatal(err, serr)
		}
	}
	_ = w.Close()
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the pipe is open: %v", err)
	}
	if m := next(t, got); m != (Message{Ready: true}) {
		t.Errorf("%+v", m)
	}
}

// Who says too much waits, and is heard nevertheless.
func TestReceiveKeepsAPace(t *testing.T) {
	_, to, got := received(t)
	start := time.Now()
	for range 150 {
		if _, err := to.Write([]byte("WATCHDOG=1")); err != nil {
			t.Fatal(err)
		}
	}
	for range 150 {
		next(t, got)
	}
	if took := time.Since(start); took < 400*time.Millisecond {
		t.Errorf("150 messages took %s", took)
	}
}

// Close lets go of the socket, and of descriptors that wait in it, at once and once.
func TestCloseLetsGo(t *testing.T) {
	block := make(chan struct{})
	defer close(block)
	dir := t.TempDir()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	at := &unix.SockaddrUnix{Name: filepath.Join(dir, "s")}
	if err := unix.Bind(fd, at); err != nil {
		t.Fatal(err)
	}
	taken := make(chan struct{}, 1)
	r := Receive(fd, func(Message) { taken <- struct{}{}; <-block })
	to, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(to)
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	if err := unix.Sendto(to, []byte("READY=1"), 0, at); err != nil {
		t.Fatal(err)
	}
	<-taken // the reader is busy now
	if err := unix.Sendmsg(to, []byte("READY=1"), unix.UnixRights(int(pw.Fd())), at, 0); err != nil {
		t.Fatal(err)
	}
	_ = pw.Close()
	r.Close()
	r.Close()
	if err := pr.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := pr.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a descriptor in the queue is open: %v", err)
	}
	if err := unix.Sendto(to, []byte("READY=1"), 0, at); err == nil {
		t.Error("somebody listens still")
	}
}

func TestTell(t *testing.T) {
	for _, address := range []string{"@nucleus-test-" + filepath.Base(t.TempDir()) + t.Name(), filepath.Join(t.TempDir(), "n")} {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		m := FromEnv(func(k string) string { return map[string]string{"NOTIFY_SOCKET": address}[k] }, 1)
		if err := m.Tell(Message{}); err != nil {
			t.Fatal(err)
		}
		if err := m.Tell(Message{Ready: true, Reloading: true, HasStatus: true, Status: "x", Errno: 5}); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 200)
		n, err := conn.Read(buf)
		if got := string(buf[:n]); err != nil || !strings.HasPrefix(got, "READY=1\nSTATUS=x\nERRNO=5\nRELOADING=1\nMONOTONIC_USEC=") {
			t.Errorf("%q, %v", got, err)
		}
	}
	m := FromEnv(func(string) string { return "/nowhere/at/all" }, 1)
	if err := m.Tell(Message{Ready: true}); err == nil || !strings.Contains(err.Error(), "/nowhere/at/all") {
		t.Errorf("nobody listens: %v", err)
	}
}

// lingering makes a TCP socket whose last close waits for an hour, which is SO_LINGER's to say,
// and the end that what it has written waits for.
func lingering(t *testing.T) (slow int, peer net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	slow, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(slow, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: l.Addr().(*net.TCPAddr).Port}); err != nil {
		t.Fatal(err)
	}
	if peer, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		err = unix.Sendto(slow, make([]byte, 1<<16), unix.MSG_DONTWAIT, nil)
	}
	if err := unix.SetsockoptLinger(slow, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3600}); err != nil {
		t.Fatal(err)
	}
	return slow, peer
}

// A sandbox can see to it that the last close of a descriptor is the reader's, or that of who lets
// go of the queue.
func TestCloseDoesNotWaitForADescriptor(t *testing.T) {
	for what, read := range map[string]bool{"that is being closed": true, "in the queue": false} {
		t.Run(what, func(t *testing.T) {
			slow, peer := lingering(t)
			defer peer.Close() // ends the waiting, by a reset
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			at := &unix.SockaddrUnix{Name: filepath.Join(t.TempDir(), "s")}
			if err := unix.Bind(fd, at); err != nil {
				t.Fatal(err)
			}
			taken, going := make(chan struct{}, 10), make(chan struct{})
			r := Receive(fd, func(Message) { taken <- struct{}{}; <-going })
			to, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(to)
			if err := unix.Sendto(to, []byte("READY=1"), 0, at); err != nil {
				t.Fatal(err)
			}
			<-taken // busy until the descriptor is nobody else's
			if err := unix.Sendmsg(to, []byte("READY=1"), unix.UnixRights(slow), at, 0); err != nil {
				t.Fatal(err)
			}
			_ = unix.Close(slow)
			if read {
				close(going)
				select {
				case <-taken:
					t.Fatal("the reader did not wait: this test shows nothing")
				case <-time.After(100 * time.Millisecond):
				}
			} else {
				defer close(going)
			}
			closed := make(chan struct{})
			go func() { r.Close(); close(closed) }()
			select {
			case <-closed:
			case <-time.After(20 * time.Second):
				t.Fatal("Close waits for a descriptor of the sandbox's")
			}
			if err := unix.Sendto(to, []byte("READY=1"), 0, at); err == nil {
				t.Error("somebody listens still")
			}
			if read {
				letGo(t, r)
			}
		})
	}
}

// letGo waits until the reader is back, and keeps no thread.
func letGo(t *testing.T, r *Receiver) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		over := r.over
		r.mu.Unlock()
		if over {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the reader waits for a descriptor of the sandbox's")
		}
	}
}
