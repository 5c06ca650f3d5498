package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// StackLock is the lock of a stack. It is held for as long as its file is open anywhere:
// who inherits the file holds it too.
type StackLock struct {
	file      *os.File
	dir, path string
}

// File is what a child inherits, which is to hold the lock even if this process dies.
func (l *StackLock) File() *os.File { return l.file }

// Release lets others start and stop jobs of the stack, whoever has inherited the file.
func (l *StackLock) Release() {
	// Who has opened the file by now sees that it is not there any more.
	_ = os.Remove(l.path)
	_ = l.file.Close()
	_ = os.Remove(l.dir) // unless another stack is being worked on
}

// LockStack holds the lock of a stack, for who starts or stops its jobs. waiting is
// called once if somebody else holds it: it is waited for until the context ends.
func (r *Root) LockStack(ctx context.Context, name string, waiting func()) (*StackLock, error) {
	if !validName(name) {
		return nil, &NameError{name}
	}
	dir := filepath.Join(r.path, "stacks")
	path := filepath.Join(dir, name)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, full(err)
		}
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if errors.Is(err, unix.ENOENT) {
			continue // who was last has just removed the directory
		}
		if err != nil {
			return nil, full(fmt.Errorf("lock of stack %q: %w", name, os.NewSyscallError("open", err)))
		}
		err = flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isAt(fd, path) {
			return &StackLock{file: os.NewFile(uintptr(fd), path), dir: dir, path: path}, nil
		}
		_ = unix.Close(fd)
		if err == nil {
			continue // it was removed before we had it
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock of stack %q: %w", name, err)
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// isAt tells whether the open file is the one that the path names.
func isAt(fd int, path string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Lstat(path, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}
