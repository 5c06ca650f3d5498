package listen

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAdmit(t *testing.T) {
	open := func(family, kind, protocol int) int {
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	bound := func(fd int, at unix.Sockaddr) int {
		if err := unix.Bind(fd, at); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	listening := func(fd int, at unix.Sockaddr) int {
		if err := unix.Listen(bound(fd, at), 1); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	dir := t.TempDir()
	path := func(name string) *unix.SockaddrUnix { return &unix.SockaddrUnix{Name: filepath.Join(dir, name)} }
	loopback := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	connected := bound(open(unix.AF_INET, unix.SOCK_DGRAM, 0), loopback)
	if err := unix.Connect(connected, &unix.SockaddrInet4{Addr: loopback.Addr, Port: 9}); err != nil {
		t.Fatal(err)
	}
	for what, test := range map[string]struct {
		fd   int
		ip   bool
		want string
	}{
		"unix, listening":           {listening(open(unix.AF_UNIX, unix.SOCK_STREAM, 0), path("a")), false, ""},
		"unix, packets, listening":  {listening(open(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0), path("b")), false, ""},
		"unix, datagrams":           {bound(open(unix.AF_UNIX, unix.SOCK_DGRAM, 0), path("c")), false, ""},
		"tcp, listening":            {listening(open(unix.AF_INET, unix.SOCK_STREAM, 0), loopback), true, ""},
		"udp":                       {bound(open(unix.AF_INET, unix.SOCK_DGRAM, 0), loopback), true, ""},
		"tcp that does not listen":  {bound(open(unix.AF_INET, unix.SOCK_STREAM, 0), loopback), false, "does not listen"},
		"unix that does not listen": {open(unix.AF_UNIX, unix.SOCK_STREAM, 0), false, "does not listen"},
		"a connected pair":          {pair[0], false, "connected"},
		"connected udp":             {connected, false, "connected"},
		"netlink":                   {open(unix.AF_NETLINK, unix.SOCK_DGRAM, unix.NETLINK_ROUTE), false, "address family 16"},
		"a directory":               {int(file.Fd()), false, "not a socket"},
		"nothing":                   {1 << 20, false, "bad file descriptor"},
	} {
		ip, err := admit(test.fd)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) || ip != test.ip && err == nil {
			t.Errorf("%s: %v, %v, want %q", what, ip, err, test.want)
		}
	}
}

func TestFromEnvWithout(t *testing.T) {
	for what, env := range map[string]map[string]string{
		"nothing":         {},
		"another process": {"LISTEN_PID": "43", "LISTEN_FDS": "1"},
		"no process":      {"LISTEN_FDS": "1"},
		"no sockets":      {"LISTEN_PID": "42", "LISTEN_FDS": "0"},
		"nonsense":        {"LISTEN_PID": "42", "LISTEN_FDS": "x"},
		"less than none":  {"LISTEN_PID": "42", "LISTEN_FDS": "-1"},
	} {
		if got, err := FromEnv(func(k string) string { return env[k] }, 42); !errors.Is(err, ErrNone) {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	env := map[string]string{"LISTEN_PID": "42", "LISTEN_FDS": "65"}
	if _, err := FromEnv(func(k string) string { return env[k] }, 42); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("too many: %v", err)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{"web": true, "": false, "a b": true, "a\nb": false, "ä": false, strings.Repeat("x", 256): false} {
		if validName(name) != want {
			t.Errorf("%q is valid: %v", name, !want)
		}
	}
}
