package netlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace of the laboratory.
type Namespace struct {
	Name string

	t   testing.TB
	net *os.File
	// mnt is the mount namespace in which commands find the lab's resolv.conf; nil
	// for the machine's own.
	mnt *os.File
}

// newNamespace makes one in which loopback is up.
func newNamespace(t testing.TB, name string) *Namespace {
	t.Helper()
	n := &Namespace{Name: name, t: t}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := pristine(); err != nil {
			return err
		}
		n.net, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatalf("making the namespace %q: %v", name, err)
	}
	t.Cleanup(func() { _ = n.net.Close() })
	return n
}

// Of gives the network namespace of a process.
func Of(t testing.TB, pid int) *Namespace {
	t.Helper()
	n := &Namespace{Name: fmt.Sprintf("process %d", pid), t: t}
	var err error
	if n.net, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.net.Close() })
	return n
}

// onThread calls f on a thread that ends with it, so that nothing that f does to its
// thread's namespaces has to be undone.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// Do calls f on a thread in the namespace. Goroutines that f starts are not in it, and
// so is not what the net package does in goroutines: look nothing up by name in f.
// Sockets that f opens stay in the namespace.
func (n *Namespace) Do(f func()) {
	n.t.Helper()
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		n.t.Fatalf("entering %q: %v", n.Name, err)
	}
	defer home.Close()
	if err := setns(n.net, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		n.t.Fatalf("entering %q: %v", n.Name, err)
	}
	// Deferred, since f may end in t.Fatal.
	defer func() {
		if err := setns(home, unix.CLONE_NEWNET); err != nil {
			// The thread stays locked, and ends with this goroutine.
			n.t.Errorf("leaving %q: %v", n.Name, err)
			return
		}
		runtime.UnlockOSThread()
	}()
	f()
}

func setns(ns *os.File, kind int) error {
	return os.NewSyscallError("setns", unix.Setns(int(ns.Fd()), kind))
}

// Command prepares a program to run in the namespace, in the directory /. Its process
// is nsenter's, which the program takes over.
func (n *Namespace) Command(name string, args ...string) *exec.Cmd {
	return n.CommandContext(context.Background(), name, args...)
}

// CommandContext is Command bound to a context.
func (n *Namespace) CommandContext(ctx context.Context, name string, args ...string) *exec.Cmd {
	return n.command(ctx, nil, name, args)
}

// CommandAs is CommandContext for another user, without any supplementary group.
func (n *Namespace) CommandAs(ctx context.Context, uid, gid int, name string, args ...string) *exec.Cmd {
	return n.command(ctx, []string{"--setuid=" + strconv.Itoa(uid), "--setgid=" + strconv.Itoa(gid)}, name, args)
}

func (n *Namespace) command(ctx context.Context, options []string, name string, args []string) *exec.Cmd {
	all := append([]string{"--net=" + n.Path()}, options...)
	if n.mnt != nil {
		// A directory of the other mount namespace would be out of its reach.
		all = append(all, "--mount="+procPath(n.mnt), "--wdns=/")
	}
	all = append(all, "--", name)
	return exec.CommandContext(ctx, "nsenter", append(all, args...)...) //nolint:forbidigo // tests start what they test
}

// Path names the namespace as long as the test process lives.
func (n *Namespace) Path() string { return procPath(n.net) }

func procPath(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

// Dial connects from the namespace to a literal address.
func (n *Namespace) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	n.Do(func() {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
	})
	return conn, err
}

// Listen opens a socket in the namespace and closes it with the test.
func (n *Namespace) Listen(network, address string) (net.Listener, error) {
	var l net.Listener
	var err error
	n.Do(func() {
		var c net.ListenConfig
		l, err = c.Listen(context.Background(), network, address)
	})
	if err == nil {
		n.t.Cleanup(func() { _ = l.Close() })
	}
	return l, err
}

// ListenPacket is Listen for datagrams.
func (n *Namespace) ListenPacket(network, address string) (net.PacketConn, error) {
	var p net.PacketConn
	var err error
	n.Do(func() {
		var c net.ListenConfig
		p, err = c.ListenPacket(context.Background(), network, address)
	})
	if err == nil {
		n.t.Cleanup(func() { _ = p.Close() })
	}
	return p, err
}

// furnish gives the namespace's commands an /etc/resolv.conf of their own, and the
// device that a user of an ordinary host finds.
func (n *Namespace) furnish(content string) error {
	file, err := os.CreateTemp(n.t.TempDir(), "resolv.conf")
	if err != nil {
		return err
	}
	if _, err := file.WriteString(content); err != nil {
		return err
	}
	if err := file.Chmod(0o644); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	err = onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		// Slave and not private: what the machine mounts later is seen here, too.
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
		target, err := realResolvConf()
		if err != nil {
			return err
		}
		if err := unix.Mount(file.Name(), target, "", unix.MS_BIND, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
		if err := usualTun(); err != nil {
			return err
		}
		n.mnt, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	})
	if err == nil {
		n.t.Cleanup(func() { _ = n.mnt.Close() })
	}
	return err
}

// usualTun has /dev/net/tun as udev makes it, for everybody: some containers give it to
// root alone. What may be done with it is a question of the network namespace.
func usualTun() error {
	if _, err := os.Stat("/dev/net/tun"); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := unix.Mount("tmpfs", "/dev/net", "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755"); err != nil {
		return os.NewSyscallError("mount", err)
	}
	if err := unix.Mknod("/dev/net/tun", unix.S_IFCHR, int(unix.Mkdev(10, 200))); err != nil {
		return os.NewSyscallError("mknod", err)
	}
	return os.Chmod("/dev/net/tun", 0o666)
}
