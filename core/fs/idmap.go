package fs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
)

// idMapping is how the ids on a source's disk appear through an idmapped mount.
type idMapping struct {
	uids, gids []syscall.SysProcIDMap
	helper     string
	owner      string
	// open opens a user namespace that has these maps already, nil for none.
	open func() (*os.File, error)
}

// shifted maps the ids on disk as the sandbox's own maps do: what belongs to
// uid 0 on disk belongs to uid 0 inside.
func (p *Prepared) shifted() *idMapping {
	return &idMapping{open: p.opts.UserNS}
}

// lentAs is how the ids of a mount's source appear, nil for as they are on disk.
func (p *Prepared) lentAs(m plan.Mount, f *os.File) (*idMapping, error) {
	if !m.Idmap || !p.opts.Privileged || p.plan.IDs.Kind == "none" {
		return nil, nil
	}
	return p.ownerMapping(f)
}

// ownerMapping makes the source's owner and the workload's user stand for each
// other, so that the workload can write to the directory, what it writes belongs to the
// owner, and it can read what the owner can, also where it may not write. All other ids
// are shifted as the sandbox's maps say.
func (p *Prepared) ownerMapping(f *os.File) (*idMapping, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	u := p.plan.Process.User
	if st.Uid == u.UID && st.Gid == u.GID {
		return p.shifted(), nil
	}
	return &idMapping{
		uids: swapped(p.plan.IDs.UIDs, st.Uid, u.UID), gids: swapped(p.plan.IDs.GIDs, st.Gid, u.GID),
		helper: p.opts.Helper, owner: fmt.Sprintf("%d:%d", st.Uid, st.Gid),
	}, nil
}

// swapped gives the map from ids on disk to ids of the kernel: as maps says, but
// with disk and inside exchanged.
func swapped(maps []specs.LinuxIDMapping, disk, inside uint32) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	add := func(from, to, size uint32) {
		if size > 0 {
			out = append(out, syscall.SysProcIDMap{ContainerID: int(from), HostID: int(to), Size: int(size)})
		}
	}
	host, _ := plan.HostID(maps, inside)
	add(disk, host, 1)
	if other, ok := plan.HostID(maps, disk); ok && disk != inside {
		add(inside, other, 1)
	}
	cuts := []uint32{disk, inside}
	slices.Sort(cuts)
	for _, m := range maps {
		// The rest of this line, cut at the two exchanged ids.
		at, end := m.ContainerID, m.ContainerID+m.Size
		for _, c := range cuts {
			if c >= at && c < end {
				add(at, m.HostID+(at-m.ContainerID), c-at)
				at = c + 1
			}
		}
		if at < end {
			add(at, m.HostID+(at-m.ContainerID), end-at)
		}
	}
	return out
}

// apply puts the mapping on a detached mount (mount_setattr(2), Linux 5.12).
func (m *idMapping) apply(tree int) error {
	ns, err := m.namespace()
	if err != nil {
		return fmt.Errorf("user namespace of an idmapped mount: %w", err)
	}
	defer ns.Close()
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	// EPERM: it has a mapping already (mount_setattr(2)).
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		return &Error{
			unmappable: true,
			Err:        fmt.Errorf("the file system of the source (owner %s) has no idmapped mounts, or this mount is one already, so the sandbox's user could not write to it: %w", m.owner, err),
			Hint:       "mount it read-only, or start as the user who owns it",
		}
	}
	return os.NewSyscallError("mount_setattr MOUNT_ATTR_IDMAP", err)
}

func (m *idMapping) namespace() (*os.File, error) {
	if m.open != nil {
		return m.open()
	}
	return userNamespace(m.helper, m.uids, m.gids)
}

// userNamespace gives a descriptor of a new user namespace with these maps. A
// child holds it for as long as it takes to open it: it is traced and so stops
// before its first instruction.
func userNamespace(helper string, uids, gids []syscall.SysProcIDMap) (*os.File, error) {
	// The tracer is a thread, and only that thread may let the child go.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(helper)
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: uids, GidMappings: gids, Ptrace: true, Pdeathsig: unix.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = cmd.Process.Kill() // it never runs: there is nothing to lose
		_ = cmd.Wait()
	}()
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
}
