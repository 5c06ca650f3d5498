// Command fake is a plugin that is made without the SDK, as one in another language is,
// and breaks the contract where FAKE_DEFECT says: each rule must notice the fake that
// breaks it, and nothing else must. Without a defect it passes all.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"

	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

const version = "1.0.0"

var defects = strings.Split(os.Getenv("FAKE_DEFECT"), ",")

// broken tells whether a defect is wanted.
func broken(defect string) bool { return slices.Contains(defects, defect) }

func main() {
	if os.Args[0] == asBox {
		os.Exit(box(os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[1] == "--linger" {
		if len(os.Args[2]) > 0 {
			time.Sleep(2 * time.Second)
		} else {
			time.Sleep(time.Minute)
		}
		return
	}
	if os.Getenv("NUCLEUS_PLUGIN_COOKIE") != "3c1d9f6e2b7a4850-nucleus-plugin" {
		os.Exit(byHand())
	}
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "fake:", err)
		os.Exit(1)
	}
}

func byHand() int {
	switch {
	case slices.Equal(os.Args[1:], []string{"--version"}):
		v := version
		if broken("other version") {
			v = "9"
		}
		fmt.Println("fake", v)
		return 0
	case slices.Equal(os.Args[1:], []string{"--schema"}):
		b, err := json.Marshal(schema())
		if err != nil {
			return 1
		}
		fmt.Println(string(b))
		return 0
	case broken("no help"):
		fmt.Fprintln(os.Stderr, "segmentation fault")
		return 1
	}
	fmt.Fprintln(os.Stderr, "this is a plugin; try: nucleus plugin check", os.Args[0])
	if broken("exit 0 by hand") {
		return 0
	}
	return 1
}

func serve() error {
	if os.Getenv("HOME") == "" && broken("wants HOME") {
		return errors.New("HOME is not set")
	}
	if !broken("dumpable") {
		if _, _, errno := syscall.Syscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0); errno != 0 {
			return errno
		}
	}
	l, err := listen()
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	remove := func() { _ = os.Remove(addr) }
	defer remove()
	if !broken("no lifeline") {
		fd, err := strconv.Atoi(os.Getenv("NUCLEUS_LIFELINE_FD"))
		if err != nil {
			return err
		}
		syscall.CloseOnExec(fd)
		go func() {
			said, _ := io.ReadAll(os.NewFile(uintptr(fd), "lifeline"))
			if outlives(string(said)) {
				return
			}
			if !broken("socket stays") {
				remove()
			}
			os.Exit(1)
		}()
	}
	g := grpc.NewServer(grpc.UnaryInterceptor(guard))
	f := &fake{end: func(code int) {
		// Calls at work may finish; a host's stream would never. In short steps, for a long one may be over on a
		// busy machine before the answer of Shutdown has been written.
		go func() {
			for range 10 {
				time.Sleep(5 * time.Millisecond)
			}
			for atWork.Load() > 0 {
				time.Sleep(time.Millisecond)
			}
			if !broken("socket stays") {
				remove()
			}
			os.Exit(code)
		}()
	}}
	sigterm := make(chan os.Signal, 1)
	signal.Notify(sigterm, syscall.SIGTERM)
	go func() {
		<-sigterm
		if !broken("ignores SIGTERM") {
			f.end(0)
		}
	}()
	pluginv1.RegisterBaseServer(g, &baseServer{fake: f})
	pluginv1.RegisterSecretsServer(g, &secretsServer{fake: f})
	pluginv1.RegisterRuntimeServer(g, &runtimeServer{fake: f})
	pluginv1.RegisterHooksServer(g, &hooksServer{fake: f})
	n, err := newNetworkServer(f)
	if err != nil {
		return err
	}
	pluginv1.RegisterNetworkServer(g, n)
	if broken("noise") {
		fmt.Println("loading modules")
	}
	fmt.Printf("1|1|%s|%s|grpc|\n", l.Addr().Network(), addr)
	return g.Serve(l)
}

var (
	atWork, connected atomic.Int64
	kept              atomic.Bool
)

// warm tells whether it is a plugin that may be kept.
func warm() bool { return broken("warm") || broken("warm but alone") }

// outlives waits for the end of a plugin that was told to stay, and returns then.
// Others it tells that they are none.
func outlives(said string) bool {
	ms, err := strconv.Atoi(strings.TrimSuffix(said, "\n"))
	if err != nil || broken("ends with its host") {
		return false
	}
	if broken("stays whatever it is") || warm() && broken("stays for ever") {
		return true
	}
	if !warm() {
		return false
	}
	kept.Store(true)
	if broken("ends when alone") {
		ms = 0
	}
	for since := time.Now(); connected.Load() > 0 || time.Since(since) < time.Duration(ms)*time.Millisecond; time.Sleep(time.Millisecond) {
		if connected.Load() > 0 {
			since = time.Now()
		}
	}
	return false
}

// counted is a connection that keeps a plugin.
type counted struct {
	net.Conn
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { connected.Add(-1) })
	return c.Conn.Close()
}

func listen() (net.Listener, error) {
	if broken("tcp") {
		return net.Listen("tcp", "127.0.0.1:0")
	}
	name := fmt.Sprintf("s%d", os.Getpid())
	if broken("long name") {
		name = strings.Repeat("x", 40) + name
	}
	dir := os.Getenv("PLUGIN_UNIX_SOCKET_DIR")
	if broken("socket elsewhere") {
		var err error
		if dir, err = os.MkdirTemp(dir, "d"); err != nil {
			return nil, err
		}
	}
	syscall.Umask(0o077)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return &peers{l, os.Getppid()}, nil
}

// peers accepts connections of the host only.
type peers struct {
	*net.UnixListener
	parent int
}

func (p *peers) Accept() (net.Conn, error) {
	for {
		c, err := p.AcceptUnix()
		if err != nil {
			return nil, err
		}
		raw, err := c.SyscallConn()
		if err != nil {
			return nil, err
		}
		var cred *syscall.Ucred
		if cerr := raw.Control(func(fd uintptr) {
			cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		}); cerr != nil || err != nil {
			return nil, errors.Join(cerr, err)
		}
		uids := []string{strconv.Itoa(os.Geteuid()), os.Getenv("NUCLEUS_PEER_UID")}
		user := broken("any user") || slices.Contains(uids, strconv.Itoa(int(cred.Uid)))
		process := broken("any process") || broken("warm") || int(cred.Pid) == p.parent
		if user && process && !(kept.Load() && broken("refuses later hosts")) {
			connected.Add(1)
			return &counted{Conn: c}, nil
		}
		_ = c.Close()
	}
}
