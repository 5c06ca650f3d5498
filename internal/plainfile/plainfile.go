// Package plainfile opens and reads files that nobody ever waits for: those of a disk, and of
// /proc and /sys. os.Open asks for each whether epoll can wait for it, which is five system
// calls more than the open, and on the path of a start there are some twenty of them.
package plainfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Open is os.OpenFile.
func Open(path string, flag int, perm uint32) (*os.File, error) {
	for {
		fd, err := unix.Open(path, flag|unix.O_CLOEXEC, perm)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// Read is os.ReadFile.
func Read(path string) ([]byte, error) {
	var fd int
	for {
		var err error
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		break
	}
	defer unix.Close(fd)
	var few [2048]byte // a page for each of them would be as many page faults
	b := few[:0]
	for {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			if len(b) <= len(few) {
				b = append(make([]byte, 0, len(b)), b...)
			}
			return b, nil
		}
		if b = b[:len(b)+n]; len(b) == cap(b) {
			b = append(make([]byte, 0, 4*len(b)), b...)
		}
	}
}
