package lifecycle

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
)

// mayOpenDevices refuses a program that needs a device which its user on the host may not
// open: what it says of that by itself has no remedy.
func mayOpenDevices(p *plan.Plan, privileged bool, devices []string) error {
	uid, uok := plan.HostID(p.IDs.UIDs, 0)
	gid, gok := plan.HostID(p.IDs.GIDs, 0)
	if !uok || !gok {
		return nil
	}
	groups := []int{int(gid)}
	if !privileged {
		own, err := os.Getgroups()
		if err != nil {
			return os.NewSyscallError("getgroups", err)
		}
		groups = append(groups, own...)
	}
	for _, d := range devices {
		if err := mayOpen(d, uid, groups); err != nil {
			return &PhaseError{
				Phase: "exec", Origin: "runtime", Hint: fmt.Sprintf("let it: setfacl -m u:%d:rw %s (until the next boot), or have the runtime do without it", uid, d),
				Err: fmt.Errorf("runtime %q needs %s: %w", p.Runtime.Plugin, d, err),
			}
		}
	}
	return nil
}

// mayOpen tells why a user may not read and write a device. Where it cannot be told, as
// with access control lists, the program finds out.
func mayOpen(device string, uid uint32, groups []int) error {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return err
	}
	if n, err := unix.Getxattr(device, "system.posix_acl_access", nil); err == nil && n > 0 {
		return nil
	} else if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
		return os.NewSyscallError("getxattr", err)
	}
	mode := st.Mode
	switch {
	case st.Uid == uid:
		mode >>= 6
	case slices.Contains(groups, int(st.Gid)):
		mode >>= 3
	}
	if mode&0o6 == 0o6 {
		return nil
	}
	return fmt.Errorf("user %d of the host, who is root in the sandbox, may not read and write it (mode %04o, user %d, group %d)", uid, st.Mode&0o7777, st.Uid, st.Gid)
}
