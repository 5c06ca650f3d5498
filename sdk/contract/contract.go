// Package contract is what the services of a plugin have in common: who calls,
// what a plugin wants to be told again, and how a namespace is named. It is plain
// Go.
package contract

import (
	"fmt"
	"os"
	"syscall"
)

// Call identifies a request: the same RequestID wants the same answer, and no
// second effect.
type Call struct {
	RequestID   string
	SandboxID   string
	InstanceID  string // which configuration it is about
	Attempt     uint32
	BootID      string // of the host; what was made before another one is gone
	TraceParent string // W3C Trace Context
}

// MaxHandle bounds what is in a Handle, in bytes.
const MaxHandle = 64 << 10

// Handle is what a plugin wants to be told again, by the core, which stores it and
// does not look into it. The next call may reach another process, of a later
// version of the plugin. No secret belongs in it.
type Handle struct {
	Version uint32 // one of the plugin's HandleVersions; from 1
	Opaque  []byte
	Info    map[string]string // for people
}

// IsZero tells whether it is none: nothing was made, or it is not known what.
func (h Handle) IsZero() bool { return h.Version == 0 && len(h.Opaque) == 0 && len(h.Info) == 0 }

// Check tells what is wrong with a handle, whoever made it.
func (h Handle) Check() error {
	if h.Version == 0 && !h.IsZero() {
		return fmt.Errorf("a handle has content and no version")
	}
	size := len(h.Opaque)
	for k, v := range h.Info {
		size += len(k) + len(v)
	}
	if size > MaxHandle {
		return fmt.Errorf("a handle has %d bytes, and %d are allowed", size, MaxHandle)
	}
	return nil
}

// Namespace is a namespace of the kernel. Its file may be replaced; device and
// inode are what it was when the caller looked.
type Namespace struct {
	Path string
	Dev  uint64
	Ino  uint64
}

// Open opens it, unless another is there by now.
func (n Namespace) Open() (*os.File, error) {
	f, err := os.OpenFile(n.Path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if s, ok := st.Sys().(*syscall.Stat_t); !ok || s.Dev != n.Dev || s.Ino != n.Ino {
		f.Close()
		return nil, fmt.Errorf("%s is another namespace than the one that was meant", n.Path)
	}
	return f, nil
}

// IDMap maps a range of ids of a user namespace.
type IDMap struct{ Inside, Outside, Count uint32 }
