package core

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
)

// maxSmall bounds the host files that a plan reads.
const maxSmall = 1 << 20

// initFile is nucleus-init on disk.
type initFile struct {
	dir  string
	path string
	st   unix.Stat_t

	mu   sync.Mutex // of copy
	copy *os.File
}

// installed is where `make install` puts the programs that users don't call.
const installed = "/usr/local/libexec/nucleus"

func findInit(libexec string) (*initFile, error) {
	dirs := []string{libexec}
	if libexec == "" {
		dirs = nil
		if exe, err := os.Executable(); err == nil {
			bin := filepath.Dir(exe)
			dirs = append(dirs, bin, filepath.Join(filepath.Dir(bin), "libexec", "nucleus"))
		}
		dirs = append(dirs, installed)
	}
	for _, d := range dirs {
		f := &initFile{dir: d, path: filepath.Join(d, "nucleus-init")}
		err := unix.Stat(f.path, &f.st)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return nil, fmt.Errorf("nucleus-init: %s: %w", f.path, err)
		}
	}
	return nil, fmt.Errorf("nucleus-init not found in %s: make install puts it there; a program that embeds core may name another directory (Options.Libexec)", strings.Join(dirs, ", "))
}

// Program gives the path of a program that is installed beside nucleus-init.
func Program(name string) (string, error) {
	f, err := findInit("")
	if err != nil {
		return "", err
	}
	return filepath.Join(f.dir, name), nil
}

// programFor gives init's program: its path, and the file to execute instead of
// it, if any. If the sandbox's own ids could write to the file, init runs from a sealed copy in memory: whoever
// reached it through /proc/PID/exe would change the host's program
// (CVE-2019-5736). So it does if those ids could not execute it where it is: in
// root's home, say, which others cannot enter.
func (f *initFile) programFor(p *plan.Plan) (path string, program *os.File, err error) {
	if !f.writableBy(p) && f.executableByOthers() {
		return f.path, nil, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.copy == nil {
		c, err := sealedCopy(f.path)
		if err != nil {
			return "", nil, fmt.Errorf("nucleus-init: %w", err)
		}
		f.copy = c
	}
	return fmt.Sprintf("/proc/self/fd/%d", f.copy.Fd()), f.copy, nil
}

func (f *initFile) writableBy(p *plan.Plan) bool {
	if f.st.Mode&0o022 != 0 || p.IDs.Kind == "none" {
		return true
	}
	for _, m := range p.IDs.UIDs {
		if f.st.Uid >= m.HostID && f.st.Uid-m.HostID < m.Size {
			return true
		}
	}
	return false
}

func (f *initFile) executableByOthers() bool {
	if f.st.Mode&0o001 == 0 {
		return false
	}
	path, err := filepath.Abs(f.path)
	for err == nil && path != "/" {
		path = filepath.Dir(path)
		var st unix.Stat_t
		if err = unix.Stat(path, &st); err == nil && st.Mode&0o001 == 0 {
			return false
		}
	}
	return err == nil
}

func sealedCopy(path string) (*os.File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	fd, err := unix.MemfdCreate("nucleus-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "nucleus-init")
	if _, err := io.Copy(f, src); err != nil {
		_ = f.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		_ = f.Close()
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	return f, nil
}
