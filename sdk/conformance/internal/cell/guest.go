package cell

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// The init of a cell is the same program: before its main, whatever that is.
func init() {
	if len(os.Args) == 1 && os.Args[0] == guest && os.Getpid() == 1 {
		(&initProcess{}).serve()
		os.Exit(0) //nolint:forbidigo // its host is gone, and the kernel ends the rest
	}
}

// control is the descriptor of the socket to the host.
const control = 3

type initProcess struct{ saying sync.Mutex }

func (i *initProcess) say(r report) {
	b, err := json.Marshal(r)
	if err != nil {
		return
	}
	i.saying.Lock()
	defer i.saying.Unlock()
	_ = unix.Sendmsg(control, b, nil, nil, unix.MSG_NOSIGNAL) // a host that is gone is seen where it is read
}

func (i *initProcess) serve() {
	unix.CloseOnExec(control)
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go i.reap(children)
	b, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*8))
	for {
		n, rights, _, _, err := unix.Recvmsg(control, b, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		files, err := received(oob[:rights])
		var o order
		if err == nil {
			err = json.Unmarshal(b[:n], &o)
		}
		var r report
		if err == nil {
			r, err = i.obey(o, files)
		}
		for _, fd := range files {
			_ = unix.Close(int(fd))
		}
		if err != nil {
			r.Error = err.Error()
		}
		i.say(r)
	}
}

func received(oob []byte) ([]uintptr, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var out []uintptr
	for _, m := range ms {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return out, err
		}
		for _, fd := range fds {
			out = append(out, uintptr(fd))
		}
	}
	return out, nil
}

func (i *initProcess) obey(o order, files []uintptr) (r report, err error) {
	switch {
	case o.Layout != nil:
		return r, o.Layout.make()
	case o.Signal != 0:
		return r, os.NewSyscallError("kill", unix.Kill(o.PID, syscall.Signal(o.Signal)))
	case o.Read != "":
		r.Text, err = os.ReadFile(o.Read)
		return r, err
	case o.Count:
		r.Text = []byte(others())
		return r, nil
	}
	r.PID, err = syscall.ForkExec(runtime.ProgramPath, o.Args, &syscall.ProcAttr{ //nolint:forbidigo // it is what this process is for
		Dir: "/", Env: append([]string{}, o.Env...), Files: files, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: o.Terminal},
	})
	return r, err
}

// reap tells of every child that ends, of its own and of those whose parents have ended.
func (i *initProcess) reap(children <-chan os.Signal) {
	for range children {
		for {
			var s unix.WaitStatus
			pid, err := unix.Wait4(-1, &s, unix.WNOHANG, nil)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			status := s.ExitStatus()
			if s.Signaled() {
				status = 128 + int(s.Signal())
			}
			i.say(report{PID: pid, Ended: true, Status: status})
		}
	}
}

// others are the processes that run, beside this one.
func others() string {
	var out []string
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is a good one
	for _, d := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(d)); err != nil || pid == 1 {
			continue
		}
		b, err := os.ReadFile(filepath.Join(d, "stat"))
		if err != nil {
			continue // it has ended
		}
		name, rest, _ := strings.Cut(string(b), ") ")
		if !strings.HasPrefix(rest, "Z") {
			_, name, _ = strings.Cut(name, "(")
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// toolchain is what a dynamically linked program finds of the host.
var toolchain = []string{"/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache"}

// make makes the root, and moves into it.
func (l *Layout) make() error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount /", err)
	}
	m := &maker{root: l.Dir}
	m.mount("tmpfs", "/", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755")
	m.mount("proc", "/proc", quiet, "")
	// For programs that look at what is mounted there, and do without.
	m.do(func() error { return os.MkdirAll(filepath.Join(l.Dir, "/sys/fs/cgroup"), 0o755) })
	m.mount("tmpfs", "/tmp", quiet, "mode=0711")
	m.mount("tmpfs", runtime.StatePath, quiet, "mode=0711")
	m.mount("tmpfs", runtime.BundlePath, quiet, "mode=0700")
	m.do(func() error {
		return os.WriteFile(filepath.Join(l.Dir, runtime.BundlePath, "config.json"), l.Config, 0o400)
	})
	m.readOnly(runtime.BundlePath)
	m.bind(l.Program, runtime.ProgramPath, true)
	m.bind(l.Rootfs, runtime.RootPath, false)
	m.mount("tmpfs", "/dev", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755")
	for _, d := range append([]string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}, l.Devices...) {
		m.bind(d, d, false)
	}
	m.mount("devpts", "/dev/pts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
	m.link("pts/ptmx", "/dev/ptmx")
	m.link("/proc/self/fd", "/dev/fd")
	m.readOnly("/dev")
	for _, t := range toolchain {
		if !l.Libraries {
			break
		}
		if to, err := os.Readlink(t); err == nil {
			m.link(to, t)
		} else if _, err := os.Stat(t); err == nil {
			m.bind(t, t, true)
		}
	}
	m.do(func() error { return os.NewSyscallError("chdir", unix.Chdir(l.Dir)) }) //nolint:forbidigo // this process is init alone
	m.do(func() error { return os.NewSyscallError("pivot_root", unix.PivotRoot(".", ".")) })
	m.do(func() error { return os.NewSyscallError("umount2", unix.Unmount(".", unix.MNT_DETACH)) })
	m.do(func() error { return os.NewSyscallError("chdir", unix.Chdir("/")) }) //nolint:forbidigo // as before
	m.root = ""
	m.readOnly("/")
	return m.err
}

// maker does one step after the other, until one fails.
type maker struct {
	root string
	err  error
}

func (m *maker) do(step func() error) {
	if m.err == nil {
		m.err = step()
	}
}

func (m *maker) mount(fstype, at string, flags uintptr, data string) {
	m.do(func() error {
		target := filepath.Join(m.root, at)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(fstype, target, fstype, flags, data); err != nil {
			return fmt.Errorf("mounting %s at %s: %w", fstype, at, err)
		}
		return nil
	})
}

func (m *maker) bind(from, at string, readOnly bool) {
	m.do(func() error {
		st, err := os.Stat(from)
		if err != nil {
			return err
		}
		target := filepath.Join(m.root, at)
		if st.IsDir() {
			err = os.MkdirAll(target, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
			err = os.WriteFile(target, nil, 0o600)
		}
		if err != nil {
			return err
		}
		if err := unix.Mount(from, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mounting %s at %s: %w", from, at, err)
		}
		return nil
	})
	if readOnly {
		m.readOnly(at)
	}
}

func (m *maker) readOnly(at string) {
	m.do(func() error {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, filepath.Join("/", m.root, at), 0, attr); err != nil {
			return fmt.Errorf("making %s read-only: %w", at, err)
		}
		return nil
	})
}

func (m *maker) link(to, at string) {
	m.do(func() error { return os.Symlink(to, filepath.Join(m.root, at)) })
}
