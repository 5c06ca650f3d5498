package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// Lend clones the mount of a directory of ours for a program that runs in a sandbox
// already, which writes to it through the descriptor alone. From a mount that is in no
// namespace no ".." leads anywhere else; a directory's own descriptor would lead to all of the
// host's.
func Lend(ctx context.Context, pl *plan.Plan, dir *os.File, o Options) (*os.File, error) {
	set := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return nil, err
	}
	if !o.Privileged {
		return lentByInit(ctx, dir, real, set, o.Helper)
	}
	idmap, err := programMapping(pl, dir, o)
	if err != nil {
		return nil, err
	}
	return detach(dir, real, set, idmap)
}

// programMapping makes the owner of a directory and the root of a sandbox stand for each
// other: a runtime's program is that root.
func programMapping(pl *plan.Plan, dir *os.File, o Options) (*idMapping, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Uid == 0 && st.Gid == 0 {
		return &idMapping{open: o.UserNS}, nil
	}
	swap := func(maps []specs.LinuxIDMapping, id uint32) []syscall.SysProcIDMap { return swapped(maps, id, 0) }
	return &idMapping{uids: swap(pl.IDs.UIDs, st.Uid), gids: swap(pl.IDs.GIDs, st.Gid), helper: o.Helper, owner: fmt.Sprintf("%d:%d", st.Uid, st.Gid)}, nil
}

// lentByInit has an init make the clone, in namespaces of its own: it takes rights in a
// mount namespace that we have none in.
func lentByInit(ctx context.Context, dir *os.File, real string, set uint64, init string) (*os.File, error) {
	ours, its, err := channel.Pair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	control := os.NewFile(uintptr(its.FD()), "control")
	defer control.Close()
	// The parent-death signal follows the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, init)
	cmd.Args, cmd.Env, cmd.ExtraFiles = []string{"nucleus-init"}, []string{"GOMAXPROCS=1"}, []*os.File{control}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() { _ = cmd.Wait() }() // what it had to say it has said
	defer func() { _ = cmd.Process.Kill() }()
	_ = control.Close() // it has its own
	if err := ours.Send(initproto.Encode(initproto.KindLend, &initproto.Lend{Source: real, Set: set}), int(dir.Fd())); err != nil {
		return nil, err
	}
	msg, fds, err := ours.Recv()
	if err != nil {
		return nil, fmt.Errorf("cloning the mount of %q: init ended without a word: %w", real, err)
	}
	k, err := initproto.KindOf(msg)
	if err == nil && k == initproto.KindLent && len(fds) == 1 {
		return os.NewFile(uintptr(fds[0]), real), nil
	}
	channel.CloseAll(fds)
	var f initproto.Failed
	if err == nil && k == initproto.KindFailed && initproto.Decode(msg, &f) == nil {
		return nil, errors.New(f.What)
	}
	return nil, errors.Join(err, fmt.Errorf("%w: kind %d from init", initproto.ErrMessage, k))
}
