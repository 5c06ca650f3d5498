package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxNames bounds what one directory may make its reader hold in memory.
const maxNames = 1 << 20

// openAt opens one name in a directory. NO_XDEV makes a mount point an error
// instead of a silent change of file system; it sees bind mounts of the same
// file system too, which a comparison of device numbers does not.
func openAt(dir int, name string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS |
			unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(dir, name, &how)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// opening words the failure to open what the directory listed as path.
func opening(dir int, name, path string, err error) error {
	switch {
	case errors.Is(err, unix.EXDEV) && isMountPoint(dir, name):
		return &MountPointError{Path: path}
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ELOOP),
		errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENXIO):
		// The directory listed something else under this name.
		return &ChangedError{Path: path}
	}
	return fmt.Errorf("opening %q: %w", path, os.NewSyscallError("openat2", err))
}

// isMountPoint tells the two reasons for EXDEV apart: the other is that the file
// was moved out of the directory while it was opened (complete_walk() in the
// kernel's fs/namei.c). Only the wording of an error hangs on the answer.
func isMountPoint(dir int, name string) bool {
	var st unix.Statx_t
	err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// dirent is one name in a directory with its type as S_IF*, 0 if unknown.
type dirent struct {
	name string
	kind uint32
}

// readNames lists a directory in bytewise order.
func readNames(fd int, path string, buf []byte) ([]dirent, error) {
	var list []dirent
	for {
		n, err := unix.Getdents(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ENOENT) {
			return nil, &ChangedError{Path: path}
		}
		if err != nil {
			return nil, fmt.Errorf("listing %q: %w", path, os.NewSyscallError("getdents64", err))
		}
		if n <= 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			// struct linux_dirent64, getdents64(2).
			size := binary.NativeEndian.Uint16(b[16:])
			name, _, _ := strings.Cut(string(b[19:size]), "\x00")
			if name != "." && name != ".." {
				list = append(list, dirent{name, uint32(b[18]) << 12})
			}
			b = b[size:]
		}
		if len(list) > maxNames {
			return nil, &LimitError{What: "files", Limit: maxNames, Path: path}
		}
	}
	slices.SortFunc(list, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	return list, nil
}

func fstat(fd int, path string) (unix.Stat_t, error) {
	var st unix.Stat_t
	for {
		err := unix.Fstat(fd, &st)
		if err == nil {
			return st, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return st, fmt.Errorf("examining %q: %w", path, os.NewSyscallError("fstat", err))
		}
	}
}

// unchanged compares what fd is now with what it was.
func unchanged(fd int, path string, before *unix.Stat_t) error {
	after, err := fstat(fd, path)
	if err != nil {
		return err
	}
	if after.Size != before.Size || after.Mtim != before.Mtim || after.Ctim != before.Ctim {
		return &ChangedError{Path: path}
	}
	return nil
}

func readFD(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), os.NewSyscallError("read", err)
		}
	}
}
