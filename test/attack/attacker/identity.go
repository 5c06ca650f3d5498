package attacker

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gainIdentity tries to become somebody, to get groups and capabilities.
func gainIdentity([]string) {
	for _, id := range []int{0, 1, 1000, 65534} {
		if id != os.Getuid() && inChild(call{nr: unix.SYS_SETRESUID, args: [6]uintptr{uintptr(id), uintptr(id), uintptr(id)}}).succeeded() {
			won("identity", "uid %d", id)
		}
		if id != os.Getgid() && inChild(call{nr: unix.SYS_SETRESGID, args: [6]uintptr{uintptr(id), uintptr(id), uintptr(id)}}).succeeded() {
			won("identity", "gid %d", id)
		}
	}
	group := uint32(os.Getgid())
	if inChild(call{nr: unix.SYS_SETGROUPS, args: [6]uintptr{1, ptrTo(&group)}}).succeeded() {
		won("identity", "setgroups")
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_SYS_ADMIN, Permitted: 1 << unix.CAP_SYS_ADMIN, Inheritable: 1 << unix.CAP_SYS_ADMIN}}
	if inChild(call{nr: unix.SYS_CAPSET, args: [6]uintptr{ptrTo(&hdr), ptrTo(&data)}}).succeeded() {
		won("identity", "CAP_SYS_ADMIN")
	}
	if inChild(call{nr: unix.SYS_PRCTL, args: [6]uintptr{unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_ADMIN}}).succeeded() {
		won("identity", "ambient CAP_NET_ADMIN")
	}
	for _, f := range []struct {
		name, text string
	}{{"/proc/self/uid_map", "0 0 1"}, {"/proc/self/gid_map", "0 0 1"}, {"/proc/self/setgroups", "allow"}} {
		if w, err := os.OpenFile(f.name, os.O_WRONLY, 0); err == nil {
			_, err = w.WriteString(f.text)
			wonIf(err, "identity", "wrote %s", f.name)
			_ = w.Close()
		}
	}
	big := unix.Rlimit{Cur: 1 << 30, Max: 1 << 30}
	if inChild(call{nr: unix.SYS_PRLIMIT64, args: [6]uintptr{0, unix.RLIMIT_NOFILE, ptrTo(&big)}}).succeeded() {
		won("identity", "raised RLIMIT_NOFILE")
	}
}

// reportIdentity is run from a set-user-ID or capability-bearing copy of this
// program: the argument is the uid that started it.
func reportIdentity(args []string) {
	if fmt.Sprint(os.Geteuid()) != args[0] {
		won("setuid", "euid %d", os.Geteuid())
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) == nil && data[0].Permitted != 0 {
		won("setuid", "capabilities %#x", data[0].Permitted)
	}
}

// signalOthers signals the pids that it is given, also as owners of the pipe that
// it writes to, and, inside a sandbox, everybody.
func signalOthers(args []string) {
	signal.Ignore(unix.SIGUSR1)
	for _, pid := range args {
		var n int
		_, _ = fmt.Sscan(pid, &n)
		if fd, err := unix.PidfdOpen(n, 0); err == nil {
			wonIf(unix.PidfdSendSignal(fd, 0, nil, 0), "signals", "pidfd %d", n)
			_ = unix.PidfdSendSignal(fd, unix.SIGUSR1, nil, 0)
			_ = unix.Close(fd)
		}
		wonIf(unix.Kill(n, 0), "signals", "%d", n) // one that is dying still counts
		_ = unix.Kill(n, unix.SIGUSR1)
		_, _ = unix.FcntlInt(1, unix.F_SETOWN, n)
	}
	if inSandbox() {
		_ = unix.Kill(0, unix.SIGUSR1)
		_ = unix.Kill(-1, unix.SIGUSR1)
		if os.Getppid() != 0 {
			_ = unix.Kill(os.Getppid(), unix.SIGUSR1)
		}
	}
	time.Sleep(100 * time.Millisecond)
}

// evadeLandlock reaches for a directory that the rules allow to read only, by
// every other name that it has. The canary file is in it; scratch is writable.
func evadeLandlock(args []string) {
	dir, scratch := args[0], args[1]
	file := dir + "/canary"
	write := func(how, path string) {
		for _, flags := range []int{os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND} {
			if w, err := os.OpenFile(path, flags, 0); err == nil {
				_, _ = w.WriteString(mark)
				won("landlock", "wrote by %s", how)
				_ = w.Close()
			}
		}
	}
	write("its path", file)
	write("/proc/self/root", "/proc/self/root"+file)
	write("/proc/thread-self/root", "/proc/thread-self/root"+file)
	if os.Chdir(dir) == nil {
		write("the working directory", "canary")
		write("/proc/self/cwd", "/proc/self/cwd/canary")
	}
	for _, flags := range []int{unix.O_PATH, unix.O_RDONLY, unix.O_RDWR} {
		if fd, err := unix.Open(file, flags, 0); err == nil {
			write("/proc/self/fd", fmt.Sprintf("/proc/self/fd/%d", fd))
			write("/dev/fd", fmt.Sprintf("/dev/fd/%d", fd))
			if b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
				b[0] = '!'
				won("landlock", "wrote by a mapping")
			}
			wonIf(unix.Ftruncate(fd, 0), "landlock", "ftruncate")
			wonIf(unix.Linkat(fd, "", unix.AT_FDCWD, scratch+"/by-fd", unix.AT_EMPTY_PATH), "landlock", "link by descriptor")
		}
	}
	wonIf(unix.Truncate(file, 0), "landlock", "truncate")
	_ = os.Symlink(file, scratch+"/symbolic")
	write("a symbolic link", scratch+"/symbolic")
	if os.Link(file, scratch+"/hard") == nil {
		won("landlock", "hard link out")
		write("a hard link", scratch+"/hard")
	}
	wonIf(os.Rename(file, scratch+"/moved"), "landlock", "rename out")
	if os.WriteFile(scratch+"/new", []byte(mark), 0o644) == nil {
		wonIf(os.Rename(scratch+"/new", file), "landlock", "rename over")
		wonIf(unix.Renameat2(unix.AT_FDCWD, scratch+"/new", unix.AT_FDCWD, file, unix.RENAME_EXCHANGE), "landlock", "exchange")
		wonIf(os.Link(scratch+"/new", dir+"/linked"), "landlock", "link in")
	}
	wonIf(os.WriteFile(dir+"/created", []byte(mark), 0o644), "landlock", "created")
	wonIf(os.Mkdir(dir+"/directory", 0o755), "landlock", "mkdir")
	wonIf(os.Symlink("/etc", dir+"/link"), "landlock", "symlink")
	wonIf(unix.Mkfifo(dir+"/fifo", 0o644), "landlock", "mkfifo")
	wonIf(os.Remove(file), "landlock", "removed")
	if fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); err == nil {
		wonIf(unix.Bind(fd, &unix.SockaddrUnix{Name: dir + "/sock"}), "landlock", "bound a socket")
	}
}

// dumpCore dies with a core dump, if it may.
func dumpCore([]string) {
	_ = os.Chdir(os.Getenv("HOME"))
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: syscall.RLIM_INFINITY & 0x7fffffffffffffff, Max: syscall.RLIM_INFINITY & 0x7fffffffffffffff})
	// In a child, whose wait status tells whether the kernel dumped it.
	self, err := os.StartProcess("/proc/self/exe", []string{"attacker", "sleep"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil}, Env: []string{"GOTRACEBACK=crash"}})
	if err != nil {
		return
	}
	time.Sleep(100 * time.Millisecond)
	_ = self.Signal(syscall.SIGXFSZ)
	time.Sleep(100 * time.Millisecond)
	_ = self.Signal(syscall.SIGABRT)
	st, err := self.Wait()
	if err == nil {
		if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.CoreDump() {
			won("core", "dumped")
		}
	}
}
