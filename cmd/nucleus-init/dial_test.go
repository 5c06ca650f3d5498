package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// server serves one connection, and gives its address.
func server(t *testing.T, at string, serve func(net.Conn)) initproto.Addr {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			serve(c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return addrOf(t, l.Addr().String())
}

func addrOf(t *testing.T, s string) initproto.Addr {
	t.Helper()
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		t.Fatal(err)
	}
	return initproto.Addr{IP: a.Addr().AsSlice(), Port: uint32(a.Port())}
}

// closed gives an address that nobody listens on.
func closed(t *testing.T, at string) initproto.Addr {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return addrOf(t, l.Addr().String())
}

// dialVariable has a copy of this test dial, for its calls hold the runtime up: the
// servers are in another process.
const dialVariable = "NUCLEUS_TEST_DIAL"

func TestMain(m *testing.M) {
	if os.Getenv(dialVariable) == "" {
		os.Exit(m.Run())
	}
	var s initproto.Spawn
	msg, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = initproto.Decode(msg, &s)
	}
	p := &prepared{note: &progress{}}
	if err == nil {
		p.dial, err = dialOf(s.Dial)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if os.Getenv(dialVariable) == onePort {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40001 40001"), 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	dial(p)
	st := stage2{note: p.note}
	_, _ = os.Stdout.Write(initproto.Encode(initproto.KindEnded, &initproto.Ended{Exited: st.exited(0), Answer: p.note.heard()}))
	os.Exit(0)
}

// onePort is for a network namespace where 40001 is all that connect(2) may choose.
const onePort = "one port"

func dialled(t *testing.T, d initproto.Dial, mode string) (e initproto.Ended) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), dialVariable+"="+mode)
	if mode == onePort {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
	}
	cmd.Stdin, cmd.Stderr = bytes.NewReader(initproto.Encode(initproto.KindSpawn, &initproto.Spawn{Dial: d})), os.Stderr
	out, err := cmd.Output()
	if err == nil {
		err = initproto.Decode(out, &e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestDial(t *testing.T) {
	const v4, v6 = "127.0.0.1:0", "[::1]:0"
	request := strings.Repeat("ask\n", 2000)
	heard := make(chan string, 1)
	answer := func(parts ...string) func(net.Conn) {
		return func(c net.Conn) {
			b := make([]byte, len(request))
			_, _ = io.ReadFull(c, b) // a short one is seen below
			heard <- string(b)
			for _, p := range parts {
				time.Sleep(time.Millisecond)
				_, _ = io.WriteString(c, p) // the other end may have gone, as it should
			}
		}
	}
	for name, c := range map[string]struct {
		addrs  []initproto.Addr
		asks   bool
		step   initproto.Step
		errno  syscall.Errno
		index  uint32
		answer string
	}{
		"a port that listens":             {[]initproto.Addr{server(t, v4, func(net.Conn) {})}, false, initproto.StepAnswered, 0, 0, ""},
		"the second of two, on IPv6":      {[]initproto.Addr{closed(t, v4), server(t, v6, func(net.Conn) {})}, false, initproto.StepAnswered, 0, 1, ""},
		"none of two tells of the first":  {[]initproto.Addr{closed(t, v4), closed(t, v6)}, true, initproto.StepConnect, unix.ECONNREFUSED, 0, ""},
		"an answer":                       {[]initproto.Addr{server(t, v4, answer("0123456789abcdef"))}, true, initproto.StepAnswered, 0, 0, "0123456789abc"},
		"one in pieces":                   {[]initproto.Addr{server(t, v6, answer("0", "12345", "6789abcdef", "g", "h"))}, true, initproto.StepAnswered, 0, 0, "0123456789abc"},
		"one that is too short":           {[]initproto.Addr{server(t, v4, answer("012"))}, true, initproto.StepAnswered, 0, 0, "012"},
		"none":                            {[]initproto.Addr{server(t, v4, answer())}, true, initproto.StepAnswered, 0, 0, ""},
		"more than anybody wants to read": {[]initproto.Addr{server(t, v4, answer(strings.Repeat("x", 1<<20), strings.Repeat("y", 1<<20)))}, true, initproto.StepAnswered, 0, 0, "xxxxxxxxxxxxx"},
	} {
		d := initproto.Dial{Addrs: c.addrs}
		if c.asks {
			d.Request, d.Answer = []byte(request), 13
		}
		want := initproto.Ended{Exited: initproto.Exited{Step: c.step, Errno: uint32(c.errno), ExecIndex: c.index}, Answer: []byte(c.answer)}
		if diff := cmp.Diff(want, dialled(t, d, "as it is"), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if c.asks && c.errno == 0 {
			if got := <-heard; got != request {
				t.Errorf("%s: %d bytes came of %d", name, len(got), len(request))
			}
		}
	}
}

// That a probe reaches itself does not say that the workload listens.
func TestDialIsNotItsOwnPeer(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	for _, at := range []string{"127.0.0.1:40001", "[::1]:40001"} {
		e := dialled(t, initproto.Dial{Addrs: []initproto.Addr{addrOf(t, at)}}, onePort)
		if e.Exited.Step != initproto.StepConnect || syscall.Errno(e.Exited.Errno) != unix.ECONNREFUSED {
			t.Errorf("%s: %+v", at, e)
		}
	}
}

// How much it has read, a process says itself.
func TestHeardIsBounded(t *testing.T) {
	n := &progress{answered: ^uint32(0)}
	if got := n.heard(); len(got) != initproto.MaxAnswer {
		t.Errorf("%d bytes", len(got))
	}
}

func TestDialsThatAreNone(t *testing.T) {
	for name, d := range map[string]initproto.Dial{
		"an address of neither family": {Addrs: []initproto.Addr{{IP: make([]byte, 5), Port: 1}}},
		"no address":                   {Addrs: []initproto.Addr{{}}},
		"a long answer":                {Addrs: []initproto.Addr{{IP: make([]byte, 4), Port: 1}}, Answer: initproto.MaxAnswer + 1},
	} {
		if _, err := dialOf(d); !errors.Is(err, initproto.ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// loopbackUp does what the birth of a real init does.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
