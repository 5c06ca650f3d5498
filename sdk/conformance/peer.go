package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// What a connection gives.
const (
	served  = "served"
	refused = "refused"
)

func otherUser(ctx context.Context, k *Checker) error {
	if os.Geteuid() != 0 {
		return skip("only root can connect as another user")
	}
	p, err := k.start(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	// The modes would refuse it, too, and are not what is looked at.
	for _, c := range []struct {
		path string
		mode os.FileMode
	}{{k.dir, 0o711}, {p.dir, 0o711}, {p.socket, 0o666}} {
		if err := os.Chmod(c.path, c.mode); err != nil {
			return err
		}
	}
	defer os.Chmod(k.dir, 0o700) //nolint:errcheck // nobody is in it any more
	const nobody = 65534
	got := make(chan string)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and its user with it.
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			got <- errno.Error()
			return
		}
		got <- dial(p.socket)
	}()
	if g := <-got; g != refused {
		return broken("user %d is %s", nobody, g)
	}
	if g := dial(p.socket); g != served {
		return broken("its own user, afterwards, is %s", g)
	}
	return nil
}

// otherProcess has the plugin started by a shell: to the plugin this process is
// another one of the same user.
func otherProcess(ctx context.Context, k *Checker) error {
	if _, err := os.Stat("/bin/sh"); err != nil {
		return skip("there is no /bin/sh to start it from")
	}
	p, err := k.spawn(launch{orphan: true})
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.greet(ctx); err != nil {
		return err
	}
	want := refused
	if k.known.info.GetLifetime() == pluginv1.Lifetime_LIFETIME_WARM_OK {
		want = served
	}
	if got := dial(p.socket); got != want {
		remedy := ""
		if want == served {
			remedy = "accept every process of your user and of " + handshake.EnvPeerUID + ": later hosts are other processes"
		}
		return &fault{fmt.Sprintf("with lifetime %s another process is %s", k.known.info.GetLifetime(), got), remedy}
	}
	return nil
}

// dial connects and says whether the server speaks, on this thread, whose user it may
// be about.
func dial(path string) string {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err.Error()
	}
	defer syscall.Close(fd)
	limit := syscall.NsecToTimeval(int64(callLimit / time.Nanosecond))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &limit); err != nil {
		return err.Error()
	}
	// Go's runtime interrupts system calls to take threads from goroutines.
	again := func(do func() error) (err error) {
		for {
			if err = do(); !errors.Is(err, syscall.EINTR) {
				return err
			}
		}
	}
	if err := again(func() error { return syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}) }); err != nil {
		return fmt.Sprintf("kept from connecting to %s: %v", filepath.Base(path), err)
	}
	// The client's preface and empty settings (RFC 9113, 3.4): some servers wait for them.
	hello := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	if _, err := syscall.SendmsgN(fd, []byte(hello), nil, nil, syscall.MSG_NOSIGNAL); err != nil {
		return refused
	}
	n := 0
	err = again(func() (err error) { n, err = syscall.Read(fd, make([]byte, 1)); return err })
	switch {
	case n > 0:
		return served
	case n == 0 || errors.Is(err, syscall.ECONNRESET):
		return refused
	default:
		return fmt.Sprintf("left without an answer: %v", err)
	}
}
