package attacker

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pinned keeps what system calls are given by address on the heap, which does
// not move, unlike a goroutine's stack.
var pinned []any

func ptrTo[T any](v *T) uintptr {
	pinned = append(pinned, v)
	return uintptr(unsafe.Pointer(v))
}

// changeMounts tries to mount, remount, unmount and to change the root. Each
// success changes this mount namespace, so each is tried.
func changeMounts(args []string) {
	dir, err := os.MkdirTemp("", "mnt")
	if err != nil {
		dir = "/"
	}
	for _, fs := range []string{"tmpfs", "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "overlay", "bpf", "debugfs", "binfmt_misc"} {
		if unix.Mount(fs, dir, fs, 0, "") == nil {
			won("mounts", "mount %s", fs)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
		if fd, err := unix.Fsopen(fs, 0); err == nil {
			won("mounts", "fsopen %s", fs)
			_ = unix.Close(fd)
		}
	}
	if unix.Mount("", dir, "cgroup", 0, "devices") == nil {
		won("mounts", "mount cgroup devices") // the first step of CVE-2022-0492
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	if unix.Mount("/", dir, "", unix.MS_BIND|unix.MS_REC, "") == nil {
		won("mounts", "bind /")
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
	for _, path := range append([]string{"/", "/usr", "/proc", "/proc/sys", "/sys", "/dev", "/tmp"}, args...) {
		for _, flags := range []uintptr{unix.MS_REMOUNT, unix.MS_REMOUNT | unix.MS_BIND, unix.MS_SHARED | unix.MS_REC} {
			if flags == unix.MS_REMOUNT && !inSandbox() {
				continue // it would change the file system, which is the host's
			}
			wonIf(unix.Mount("", path, "", flags, ""), "mounts", "remount %s %#x", path, flags)
		}
		a := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
		wonIf(unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &a), "mounts", "mount_setattr %s", path)
		if fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE); err == nil {
			won("mounts", "open_tree %s", path)
			wonIf(unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH), "mounts", "move_mount %s", path)
			_ = unix.Close(fd)
		}
	}
	for _, path := range []string{"/proc/kcore", "/proc/kallsyms", "/proc/sys", "/sys/firmware", "/proc", "/dev/null", "/"} {
		wonIf(unix.Unmount(path, unix.MNT_DETACH), "mounts", "umount %s", path)
	}
	for _, path := range args { // a file that only a remount could make
		name := fmt.Sprintf("%s/written-%d", path, os.Getpid())
		if os.WriteFile(name, []byte(mark), 0o644) == nil {
			won("mounts", "wrote below %s", path)
		}
	}
	wonIf(unix.PivotRoot(dir, dir), "mounts", "pivot_root")
	wonIf(unix.Chroot(dir), "mounts", "chroot")
}

var namespaceFlags = []struct {
	name string
	flag uintptr
}{
	{"user", unix.CLONE_NEWUSER},
	{"mnt", unix.CLONE_NEWNS},
	{"pid", unix.CLONE_NEWPID},
	{"net", unix.CLONE_NEWNET},
	{"ipc", unix.CLONE_NEWIPC},
	{"uts", unix.CLONE_NEWUTS},
	{"cgroup", unix.CLONE_NEWCGROUP},
	{"time", unix.CLONE_NEWTIME},
}

// x32 numbers have this bit.
const x32 = 0x40000000

// makeNamespaces tries every door to new namespaces and to existing ones.
func makeNamespaces([]string) {
	try := func(name string, c call) {
		if inChild(c).succeeded() {
			won("namespaces", "%s", name)
		}
	}
	withUser := func(flag uintptr) []uintptr {
		if flag == unix.CLONE_NEWUSER {
			return []uintptr{flag}
		}
		return []uintptr{flag, flag | unix.CLONE_NEWUSER}
	}
	for _, ns := range namespaceFlags {
		for _, flags := range withUser(ns.flag) {
			how := fmt.Sprintf("%s %#x", ns.name, flags)
			for _, high := range []uintptr{0, 1 << 32, 0xffffffff << 32} {
				try(fmt.Sprintf("unshare %s high %#x", how, high), call{nr: unix.SYS_UNSHARE, args: [6]uintptr{flags | high}})
				if ns.flag != unix.CLONE_NEWTIME { // clone takes its signal for that bit
					try(fmt.Sprintf("clone %s high %#x", how, high), call{nr: unix.SYS_CLONE, args: [6]uintptr{flags | high | uintptr(unix.SIGCHLD)}})
				}
			}
			var args struct {
				flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
			}
			args.flags, args.exitSignal = uint64(flags), uint64(unix.SIGCHLD)
			for _, size := range []uintptr{64, 80, 88} {
				try("clone3 "+how, call{nr: unix.SYS_CLONE3, args: [6]uintptr{ptrTo(&args), size}})
			}
			if haveInt80 {
				try("int80 unshare "+how, call{nr: 310, args: [6]uintptr{flags}, door: doorInt80})
				try("x32 unshare "+how, call{nr: x32 | unix.SYS_UNSHARE, args: [6]uintptr{flags}})
			}
		}
		for _, pid := range []string{"self", "1"} {
			if fd, err := unix.Open("/proc/"+pid+"/ns/"+ns.name, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
				try("setns "+pid+" "+ns.name, call{nr: unix.SYS_SETNS, args: [6]uintptr{uintptr(fd), 0}})
				_ = unix.Close(fd)
			}
		}
	}
	if fd, err := unix.PidfdOpen(1, 0); err == nil {
		try("setns pidfd", call{nr: unix.SYS_SETNS, args: [6]uintptr{uintptr(fd), unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}})
		_ = unix.Close(fd)
	}
}
