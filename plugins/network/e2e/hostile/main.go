// Command hostile is netuserspace as it is when somebody has taken it over: with a socket
// of another job's sandbox, which a rule with jobs gives it, it tries to change that
// sandbox and to get into its processes. Its answer to Attach is an error that tells what
// came of it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/member"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

func main() {
	n := &hostile{netuserspace.New().Own()}
	plugin.Serve(plugin.Plugin{
		Name: "hostile", Version: "1", Network: n, Config: config.To(n.Network), HandleVersions: netuserspace.HandleVersions,
		Needs: plugin.Needs{HostNetwork: true}, Lifetime: plugin.Resident,
	})
}

// hostile is honest until it has a way to another job, and serves its sandbox.
type hostile struct{ *netuserspace.Network }

func (h *hostile) Attach(ctx context.Context, r *network.AttachRequest) (*network.AttachResponse, error) {
	var members *os.File
	own := *r
	own.Files = slices.DeleteFunc(slices.Clone(r.Files), func(f *os.File) bool {
		is := f.Name() == network.MembersFile
		if is {
			members, own.Egress = f, network.Egress{}
		}
		return is
	})
	answer, err := h.Network.Attach(ctx, &own)
	if members == nil || err != nil {
		return answer, err
	}
	return nil, attack(ctx, members)
}

// attempt gives nil if it succeeded.
type attempt struct {
	name string
	do   func() error
}

func attack(ctx context.Context, members *os.File) error {
	d, err := member.New(members)
	if err != nil {
		return err
	}
	defer d.Close()
	s, err := d.Dial(ctx, member.TCP, member.V4, "db", 5432)
	if err != nil {
		return fmt.Errorf("no socket of the other sandbox: %w", err)
	}
	defer s.Close()
	all := append(withSocket(int(s.Fd())), onItsOwn()...)
	victims := processes("/probe/db.json")
	for i, pid := range victims {
		all = append(all, withProcess(fmt.Sprint(i, " "), pid)...)
	}
	var came []string
	for _, a := range all {
		switch err := a.do(); {
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOSYS):
		case err == nil:
			came = append(came, a.name+": done")
		default:
			came = append(came, a.name+": "+err.Error())
		}
	}
	return fmt.Errorf("%d processes, %d attempts, not refused: %q", len(victims), len(all), came)
}

// withSocket is what one who rules the socket's network namespace can do.
func withSocket(fd int) []attempt {
	set := func(level, option int) func() error {
		return func() error { return unix.SetsockoptInt(fd, level, option, 1) }
	}
	ioctl := func(request uintptr, arg unsafe.Pointer) error {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); e != 0 {
			return e
		}
		return nil
	}
	lo := func(change func(*unix.Ifreq) error, request uint) func() error {
		return func() error {
			r, err := unix.NewIfreq("lo")
			if err == nil {
				err = change(r)
			}
			if err != nil {
				return err
			}
			return unix.IoctlIfreq(fd, request, r)
		}
	}
	return []attempt{
		{"SO_RCVBUFFORCE", set(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE)},
		{"SO_MARK", set(unix.SOL_SOCKET, unix.SO_MARK)},
		{"IP_TRANSPARENT", set(unix.SOL_IP, unix.IP_TRANSPARENT)},
		{"SIOCSIFADDR", lo(func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{127, 0, 0, 9}) }, unix.SIOCSIFADDR)},
		{"SIOCSIFFLAGS", lo(func(r *unix.Ifreq) error { r.SetUint16(0); return nil }, unix.SIOCSIFFLAGS)},
		{"SIOCADDRT", func() error {
			var route [128]byte // struct rtentry
			return ioctl(unix.SIOCADDRT, unsafe.Pointer(&route))
		}},
		{"IPT_SO_SET_REPLACE", func() error {
			const replace = 64
			err := unix.SetsockoptString(fd, unix.SOL_IP, replace, strings.Repeat("\x00", 128))
			if errors.Is(err, unix.ENOPROTOOPT) {
				return unix.ENOSYS // a kernel without iptables
			}
			return err
		}},
		{"SIOCGSKNS", func() error {
			const socketNamespace = 0x894c
			ns, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), socketNamespace, 0)
			if e != 0 {
				return e
			}
			if err := unix.Setns(int(ns), unix.CLONE_NEWNET); err != nil {
				return errors.New("it came, and setns: " + err.Error()) // not a refusal
			}
			return nil
		}},
	}
}

// onItsOwn is the beginning of a connection to whatever the plugin's user may ask: the
// supervisors of other jobs, by which commands run there, are among it.
func onItsOwn() []attempt {
	return []attempt{
		{"a Unix socket", func() error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{"a pair of Unix sockets", func() error {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				unix.Close(fds[0])
				unix.Close(fds[1])
			}
			return err
		}},
	}
}

// withProcess is what one who may trace a process can do.
func withProcess(who string, pid int) []attempt {
	open := func(name string, flag int) func() error {
		return func() error {
			fd, err := unix.Open(fmt.Sprintf("/proc/%d/%s", pid, name), flag|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}
	}
	enter := func(name string, kind int) func() error {
		return func() error {
			fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, kind); err != nil {
				return errors.New("it was opened, and setns: " + err.Error()) // not a refusal
			}
			return nil
		}
	}
	return []attempt{
		{who + "ns/user", enter("user", unix.CLONE_NEWUSER)},
		{who + "ns/net", enter("net", unix.CLONE_NEWNET)},
		{who + "mem", open("mem", unix.O_RDWR)},
		{who + "root", open("root/", unix.O_RDONLY|unix.O_DIRECTORY)},
		{who + "fd", open("fd/0", unix.O_PATH)},
		{who + "environ", open("environ", unix.O_RDONLY)},
		{who + "ptrace", func() error {
			err := unix.PtraceAttach(pid)
			if err == nil {
				time.Sleep(10 * time.Millisecond) // until it has stopped
				err = unix.PtraceDetach(pid)
			}
			return err
		}},
		{who + "pidfd_getfd", func() error {
			p, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				return err
			}
			defer unix.Close(p)
			fd, err := unix.PidfdGetfd(p, 0, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
	}
}

// processes are the one with that argument, the init that it has, and its supervisor.
func processes(arg string) (all []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !strings.Contains(string(line), arg) {
			continue
		}
		for ; pid > 1 && len(all) < 3; pid = parent(pid) {
			all = append(all, pid)
		}
		return all
	}
	return nil
}

func parent(pid int) int {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "PPid:"); ok {
			up, _ := strconv.Atoi(strings.TrimSpace(value))
			return up
		}
	}
	return 0
}
