// Go's runtime would open the host's cgroup files, to follow the CPU limit, and
// keep them.

//go:debug containermaxprocs=0

// Command nucleus-init is PID 1 of every sandbox. A supervisor starts it in
// fresh namespaces with a control socket as descriptor 3. It builds the file
// system, makes the process that becomes the workload, reaps, forwards signals
// and ends with its supervisor. It parses no policy: everything that it does
// was compiled outside and comes as an initproto.Setup.
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
)

const controlFD = 3

func init() {
	// Everything that is bound to a thread (no_new_privs, Landlock, capabilities,
	// the parent of stage 2) happens on the first one, for good.
	runtime.LockOSThread()
	// Other threads may be late (birth.Slack); this one is what the workload is made of.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)
}

func main() {
	if os.Getpid() != 1 {
		if len(os.Args) > 1 && os.Args[1] == initproto.ChangesWord {
			if err := tellChanges(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(125)
			}
			return
		}
		fmt.Fprintln(os.Stderr, "nucleus-init: error: this is the init of a Nucleus sandbox; it is started by nucleus, not by hand")
		os.Exit(125)
	}
	in := &initProcess{conn: channel.New(controlFD)}
	unix.CloseOnExec(controlFD)
	if err := in.run(); err != nil {
		in.fail(err)
		os.Exit(125)
	}
}

// initProcess is the state of PID 1.
type initProcess struct {
	conn *channel.Conn
	work *stage2
	// setup is what it was told.
	setup   *initproto.Setup
	hooks   hookWait
	spawned spawned
}

// run is the start sequence as PID 1 sees it (DESIGN: steps 7 to 10).
func (in *initProcess) run() error {
	// First of all, so that no set-user-ID file on any mount can ever matter.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	// Executed through a descriptor, it would be called by that one's number in ps.
	name := []byte("nucleus-init\x00")
	if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NAME", err)
	}
	// The caller's umask would close the directories that lead to mount points.
	unix.Umask(0)
	setup, fds, err := in.receiveSetup()
	if err != nil || setup == nil {
		return err
	}
	in.setup = setup
	files := unix.Rlimit{Cur: setup.Files.Soft, Max: setup.Files.Hard}
	if err := unix.Prlimit(0, int(setup.Files.Resource), &files, nil); err != nil {
		return os.NewSyscallError("prlimit RLIMIT_NOFILE", err)
	}
	limitPending(setup.Process.Rlimits)
	if setup.SetIDs {
		if err := becomeRoot(); err != nil {
			return err
		}
	}
	if setup.UserNS {
		limitWatches()
	}
	digests, pass, err := in.buildRoot(setup, fds)
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(setup.Hostname)); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	if err := in.conn.Send(initproto.Encode(initproto.KindFSDone, &initproto.FSDone{Digests: digests}), pass...); err != nil {
		return err
	}
	channel.CloseAll(pass)
	if err := in.expect(initproto.KindAttached); err != nil {
		return err
	}
	if setup.CgroupNS {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return os.NewSyscallError("unshare CLONE_NEWCGROUP", err)
		}
	}
	if err := in.awaitGo(); err != nil {
		return err
	}
	// Not dumpable: /proc/1 of the sandbox is closed to the workload, and so is
	// stage 2 until it has become the workload.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_DUMPABLE", err)
	}
	// Opened before the job's Landlock rules, which may not grant it; so is the
	// terminal.
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return os.NewSyscallError("open /dev/null", err)
	}
	tty, err := openTerminal(setup)
	if err != nil {
		return err
	}
	// While no thread has more capabilities than another, which is then another's to rule no more.
	if err := in.spread(); err != nil {
		return err
	}
	drop := dropCaps
	if !setup.Direct && signalsSiblings(setup.Landlock) {
		drop = dropOwnCaps // those of the other threads in harden
	}
	if err := drop(setup.InitCaps); err != nil {
		return err
	}
	if err := restrictLandlock(setup.Landlock); err != nil {
		return err
	}
	if err := in.startWorkload(setup, fds, tty); err != nil {
		return err
	}
	channel.CloseAll(fds)
	if err := harden(setup, null); err != nil {
		return err
	}
	return in.serve()
}

// receive waits for one message of the start. Its descriptors are the caller's.
func (in *initProcess) receive(want initproto.Kind) ([]byte, []int, error) {
	msg, fds, err := in.conn.Recv()
	if err != nil {
		return nil, nil, err
	}
	k, err := initproto.KindOf(msg)
	if err == nil && k != want {
		err = fmt.Errorf("%w: kind %d, want %d", initproto.ErrMessage, k, want)
	}
	if err != nil {
		channel.CloseAll(fds)
		return nil, nil, err
	}
	return msg, fds, nil
}

// receiveSetup waits for what the process is for, and gives nil if that is done.
func (in *initProcess) receiveSetup() (*initproto.Setup, []int, error) {
	msg, fds, err := in.conn.Recv()
	if err != nil {
		return nil, nil, err
	}
	switch k, err := initproto.KindOf(msg); {
	case err != nil:
		return nil, nil, err
	case k == initproto.KindLend:
		return nil, nil, in.lend(msg, fds)
	case k != initproto.KindSetup:
		return nil, nil, fmt.Errorf("%w: kind %d, want %d", initproto.ErrMessage, k, initproto.KindSetup)
	}
	var s initproto.Setup
	if err := initproto.Decode(msg, &s); err != nil {
		return nil, nil, err
	}
	for range s.Late {
		fds = append(fds, -1)
	}
	return &s, fds, nil
}

// receiveLate waits for the descriptors that the setup has left places for, at the end
// of fds, unless they have come.
func (in *initProcess) receiveLate(fds []int) error {
	n := int(in.setup.Late)
	if n == 0 {
		return nil
	}
	_, late, err := in.receive(initproto.KindSecrets)
	if err != nil {
		return err
	}
	if len(late) != n {
		channel.CloseAll(late)
		return fmt.Errorf("%w: %d descriptors of secrets, want %d", initproto.ErrMessage, len(late), n)
	}
	in.setup.Late = 0
	copy(fds[len(fds)-n:], late)
	return nil
}

// expect waits for one gate message.
func (in *initProcess) expect(want initproto.Kind) error {
	_, fds, err := in.receive(want)
	channel.CloseAll(fds)
	return err
}

// awaitGo waits for the last gate of init's own. What hooks plugins have changed
// comes before it.
func (in *initProcess) awaitGo() error {
	msg, fds, err := in.conn.Recv()
	channel.CloseAll(fds)
	if err != nil {
		return err
	}
	k, err := initproto.KindOf(msg)
	if err != nil || k == initproto.KindGo {
		return err
	}
	var n initproto.Narrow
	if k != initproto.KindNarrow {
		return fmt.Errorf("%w: kind %d, want %d", initproto.ErrMessage, k, initproto.KindGo)
	}
	if err := initproto.Decode(msg, &n); err != nil {
		return err
	}
	p := &in.setup.Process
	p.Env, p.Caps, p.Rlimits, in.setup.InitCaps = n.Env, n.Caps, n.Rlimits, n.InitCaps
	return in.expect(initproto.KindGo)
}

// becomeRoot completes a start whose id maps were written from outside: until
// now this process had capabilities, but an unmapped id.
func becomeRoot() error {
	if err := unix.Setresgid(0, 0, 0); err != nil {
		return os.NewSyscallError("setresgid", err)
	}
	if err := unix.Setresuid(0, 0, 0); err != nil {
		return os.NewSyscallError("setresuid", err)
	}
	// commit_creds() in the kernel clears the parent-death signal on a change of
	// ids. Should the supervisor have died just before this call, the end of the
	// control socket tells us.
	return os.NewSyscallError("prctl PR_SET_PDEATHSIG", unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0))
}

// fail tells the supervisor what went wrong. If even that fails the supervisor
// sees the end of the socket and the exit status.
func (in *initProcess) fail(err error) {
	f := initproto.Failed{Op: -1, Rule: -1, Hook: -1, What: err.Error()}
	var oe *opError
	if errors.As(err, &oe) {
		f.Op = int32(oe.index)
	}
	var re *ruleError
	if errors.As(err, &re) {
		f.Rule = int32(re.index)
	}
	var he *hookError
	if errors.As(err, &he) {
		f.Hook = int32(he.index)
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		f.Errno = uint32(errno)
	}
	_ = in.conn.Send(initproto.Encode(initproto.KindFailed, &f))
}
