package pluginhost

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/birth"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// apart tells whether a plugin gets a user namespace of its own, beside those of the
// sandboxes.
//
// Who has the user that owns a user namespace, and is in its parent, has every
// capability in it, with whatever sets of its own (user_namespaces(7), cap_capable() in
// the kernel). A backend of networks that runs as the caller would have them over the
// networks of the caller's sandboxes, of which it holds sockets. From beside it has none,
// nor may it look into processes there (cap_ptrace_access_check()). One that has a user of
// its own owns nothing, and one that was given capabilities is to change the host.
//
// The others hold nothing of a sandbox, and have to tell whose a file is: a namespace
// that an ordinary user makes has no root, and shows root's files as anybody's.
func apart(as manifest.Service, switchTo bool, caps []string) bool {
	return as == manifest.Network && !switchTo && os.Geteuid() != 0 && len(caps) == 0
}

// rootIsNobody is that no user id gives capabilities, nor a change of it, for good
// (capabilities(7)).
const rootIsNobody = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<5 | 1<<6 | 1<<7 // NOROOT, NO_SETUID_FIXUP, KEEP_CAPS_LOCKED, NO_CAP_AMBIENT_RAISE

// maps adds the steps that map the process's own ids to themselves. All others are
// nobody's inside.
func (l *launch) maps(p *birth.Program) error {
	for _, m := range []struct{ name, content string }{
		{"uid_map", fmt.Sprintf("%d %d 1", l.uid, l.uid)},
		// Without CAP_SETGID outside this has to be given up first.
		{"setgroups", "deny"},
		{"gid_map", fmt.Sprintf("%d %d 1", l.gid, l.gid)},
	} {
		path, err := p.String("/proc/self/" + m.name)
		if err != nil {
			return err
		}
		content, err := p.String(m.content)
		if err != nil {
			return err
		}
		// What is opened next is the lowest number; what belongs there comes later. An
		// absolute path looks at no directory.
		p.Call(birth.Ignore, "close", unix.SYS_CLOSE, 0)
		p.Call(birth.Must, "open "+m.name, unix.SYS_OPENAT, 0, path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		p.Call(birth.Must, "write "+m.name, unix.SYS_WRITE, 0, content, uintptr(len(m.content)))
	}
	return nil
}

// apartError is that of a host that gives a process no user namespace of its own.
type apartError struct {
	err    error
	remedy string
}

func (e *apartError) Error() string { return e.err.Error() }
func (e *apartError) Unwrap() error { return e.err }

// refused adds what can be done about a user namespace that could not be made.
func (l *launch) refused(err error) error {
	var call *os.SyscallError
	if !l.apart || !errors.As(err, &call) {
		return err
	}
	made := call.Syscall == "clone3"
	switch {
	case made && errors.Is(err, unix.ENOSPC):
		return &apartError{
			fmt.Errorf("making its user namespace: the limit of their number, or of their depth, is reached: %w", err),
			"raise the limit in /proc/sys/user/max_user_namespaces",
		}
	case errors.Is(err, unix.EPERM) && (made || strings.HasPrefix(call.Syscall, "write ") || strings.HasPrefix(call.Syscall, "prctl ")):
		return &apartError{fmt.Errorf("making its user namespace: %w", err), "this host does not let you make user namespaces: see nucleus doctor"}
	}
	return err
}
