package secret

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Value is a value in sealed memory (memfd_create(2)): nobody who is handed its
// descriptor can change it, and no path leads to it.
type Value struct {
	f    *os.File
	size int
}

// ErrTooLarge is returned for a value of more than MaxValue bytes.
var ErrTooLarge = fmt.Errorf("the value is larger than %d bytes", MaxValue)

// seals is what makes memory a value.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// New moves a value into sealed memory. b is overwritten, on an error too; other
// copies of the caller's are the caller's to overwrite.
func New(b []byte) (*Value, error) {
	defer wipe(b)
	if len(b) > MaxValue {
		return nil, ErrTooLarge
	}
	f, err := memory()
	if err != nil {
		return nil, err
	}
	v := &Value{f: f, size: len(b)}
	if err := v.fill(b); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// Sealed takes over a memfd that is sealed against every change already: a value
// that never was in this process's memory.
func Sealed(f *os.File) (*Value, error) {
	var st unix.Stat_t
	got, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &st)
	}
	switch {
	case err != nil:
		err = fmt.Errorf("not a sealed memfd: %w", err)
	case got&seals != seals:
		err = fmt.Errorf("the memfd can still be changed: its seals are %#x, want %#x", got, seals)
	case st.Size > MaxValue:
		err = ErrTooLarge
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	unix.CloseOnExec(int(f.Fd())) // it may have come from another process
	return &Value{f: f, size: int(st.Size)}, nil
}

// memory makes a memfd. vm.memfd_noexec may refuse one that could be executed
// (Linux 6.3), and older kernels don't know the flag that says it cannot.
func memory() (*os.File, error) {
	fd, err := unix.MemfdCreate("nucleus-secret", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("nucleus-secret", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), "nucleus-secret"), nil
}

func (v *Value) fill(b []byte) error {
	if _, err := v.f.WriteAt(b, 0); err != nil {
		return err
	}
	_, err := unix.FcntlInt(v.f.Fd(), unix.F_ADD_SEALS, seals)
	return os.NewSyscallError("fcntl F_ADD_SEALS", err)
}

// Size is the length of the value in bytes.
func (v *Value) Size() int { return v.size }

// FD is the descriptor of the memory, which stays the Value's.
func (v *Value) FD() int { return int(v.f.Fd()) }

// File is the memory, which stays the Value's.
func (v *Value) File() *os.File { return v.f }

// Close gives the memory up.
func (v *Value) Close() { _ = v.f.Close() }

// HasNUL tells whether there is a NUL byte in the value.
func (v *Value) HasNUL() (has bool, err error) {
	err = v.Read(func(b []byte) error {
		has = bytes.IndexByte(b, 0) >= 0
		return nil
	})
	return has, err
}

// Read shows the value to f where it is, so that there is no copy to overwrite. The
// bytes are there only until f returns.
func (v *Value) Read(f func([]byte) error) error {
	if v.size == 0 {
		return f(nil)
	}
	// Private, for kernels before 6.7 refuse a shared mapping of memory that is sealed
	// against writing, even to read.
	b, err := unix.Mmap(v.FD(), 0, v.size, unix.PROT_READ, unix.MAP_PRIVATE)
	runtime.KeepAlive(v)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	err = f(b)
	return errors.Join(err, os.NewSyscallError("munmap", unix.Munmap(b)))
}

func wipe(b []byte) {
	clear(b)
	runtime.KeepAlive(b)
}
