package attacker

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// setBits is a way to give a file of the directory dir set-ID bits. at is the
// path of a file that exists already, with mode 0755.
type setBits struct {
	name string
	try  func(dir int, at string, mode uintptr)
}

// everySetBits are all calls that take a mode, with and without what would fool
// a filter: bits above the argument's type, and flags that others imply.
func everySetBits() []setBits {
	const high = 1 << 40
	path := func(s string) uintptr { return ptrTo(bytePtr(s)) }
	raw := func(nr uintptr, a ...uintptr) int {
		var all [6]uintptr
		copy(all[:], a)
		fd, _, errno := unix.Syscall6(nr, all[0], all[1], all[2], all[3], all[4], all[5])
		if errno != 0 {
			return -1
		}
		return int(fd)
	}
	ways := []setBits{
		{"fchmod", func(dir int, at string, mode uintptr) {
			fd, err := unix.Openat(dir, at, unix.O_RDONLY, 0)
			if err == nil {
				raw(unix.SYS_FCHMOD, uintptr(fd), mode)
			}
		}},
		{"fchmodat", func(dir int, at string, mode uintptr) { raw(unix.SYS_FCHMODAT, uintptr(dir), path(at), mode) }},
		{"fchmodat high", func(dir int, at string, mode uintptr) { raw(unix.SYS_FCHMODAT, uintptr(dir), path(at), mode|high) }},
		{"fchmodat2", func(dir int, at string, mode uintptr) {
			raw(unix.SYS_FCHMODAT2, uintptr(dir), path(at), mode, unix.AT_SYMLINK_NOFOLLOW)
		}},
		{"mknodat", func(dir int, at string, mode uintptr) {
			raw(unix.SYS_MKNODAT, uintptr(dir), path(at+"-new"), unix.S_IFREG|mode, 0)
		}},
		{"openat creat", func(dir int, at string, mode uintptr) {
			raw(unix.SYS_OPENAT, uintptr(dir), path(at+"-new"), unix.O_CREAT|unix.O_RDWR, mode)
		}},
		{"openat creat high", func(dir int, at string, mode uintptr) {
			raw(unix.SYS_OPENAT, uintptr(dir), path(at+"-new"), unix.O_CREAT|unix.O_RDWR|high, mode|high)
		}},
		{"openat creat excl", func(dir int, at string, mode uintptr) {
			raw(unix.SYS_OPENAT, uintptr(dir), path(at+"-new"), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_TRUNC, mode)
		}},
		{"openat tmpfile", func(dir int, at string, mode uintptr) {
			if fd := raw(unix.SYS_OPENAT, uintptr(dir), path("."), unix.O_TMPFILE|unix.O_RDWR, mode); fd >= 0 {
				_ = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), dir, at+"-new", unix.AT_SYMLINK_FOLLOW)
			}
		}},
		{"openat2", func(dir int, at string, mode uintptr) {
			_, _ = unix.Openat2(dir, at+"-new", &unix.OpenHow{Flags: unix.O_CREAT | unix.O_RDWR, Mode: uint64(mode)})
		}},
	}
	for name, nr := range legacyModeCalls {
		ways = append(ways, setBits{name, func(dir int, at string, mode uintptr) {
			if unix.Fchdir(dir) != nil {
				return
			}
			switch name {
			case "chmod":
				raw(nr, path(at), mode)
			case "open":
				raw(nr, path(at+"-new"), unix.O_CREAT|unix.O_RDWR, mode)
			case "mknod":
				raw(nr, path(at+"-new"), unix.S_IFREG|mode, 0)
			default:
				raw(nr, path(at+"-new"), mode)
			}
		}})
	}
	return ways
}

// makeSetIDFiles leaves files with set-ID bits in a directory, by every way.
func makeSetIDFiles(args []string) {
	unix.Umask(0)
	dir, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		won("setidfiles", "nothing, and that is no test: %v", err)
		return
	}
	for i, way := range everySetBits() {
		for _, mode := range []uintptr{0o4755, 0o2755, 0o6755, 0o4000} {
			at := fmt.Sprintf("f%d-%o", i, mode)
			if fd, err := unix.Openat(dir, at, unix.O_CREAT|unix.O_WRONLY, 0o755); err == nil {
				_ = unix.Close(fd)
			}
			way.try(dir, at, mode)
			for _, name := range []string{at, at + "-new"} {
				var st unix.Stat_t
				if unix.Stat(filepath.Join(args[0], name), &st) == nil && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
					won("setidfiles", "%s %o", way.name, mode)
				}
			}
		}
	}
	// What a workspace is for still works.
	if os.WriteFile(filepath.Join(args[0], "plain"), []byte("x"), 0o640) != nil || os.Chmod(filepath.Join(args[0], "plain"), 0o1755&0o777) != nil {
		won("setidfiles", "nothing, for plain files cannot be written either")
	}
}

func bytePtr(s string) *byte {
	b, err := unix.BytePtrFromString(s)
	if err != nil {
		panic(err)
	}
	return b
}
