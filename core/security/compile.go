// Package security owns the restrictions of the workload: it turns the plan's
// words into the kernel's numbers before the start, and reads the posture of
// the real process back from the host before the workload runs. It never puts
// a restriction on the calling process.
package security

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// rlimits by the names of OCI (setrlimit(2)).
var rlimits = map[string]uint32{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE,
	"RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// LastCap is the running kernel's last capability.
func LastCap() uint64 {
	last, err := capability.LastCap()
	if err != nil {
		return uint64(capability.CAP_CHECKPOINT_RESTORE)
	}
	return uint64(last)
}

// capBits gives the bits of named capabilities. One that the kernel does not
// know cannot be kept.
func capBits(names []string) (uint64, error) {
	var set uint64
	for _, n := range names {
		found := false
		for _, c := range capability.ListKnown() {
			if "CAP_"+strings.ToUpper(c.String()) == n {
				if uint64(c) > LastCap() {
					return 0, fmt.Errorf("capability %s: this kernel does not have it", n)
				}
				set |= 1 << uint(c)
				found = true
			}
		}
		if !found {
			return 0, fmt.Errorf("capability %q: unknown", n)
		}
	}
	return set, nil
}

// spawnCaps are what init needs to make further processes of the sandbox: to
// change ids, groups and capability sets, and to signal what it made.
const spawnCaps = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETPCAP | 1<<unix.CAP_KILL

// Process compiles what stage 2 puts on itself. The gate and the filter are
// the caller's to fill in.
func Process(p *plan.Plan) (initproto.Process, error) {
	if p.Runtime != nil {
		return runtimeProcess(p)
	}
	c := p.Process.Capabilities
	out := initproto.Process{
		Paths: p.ExecPaths, Args: p.Process.Args, Env: p.Process.Env, Cwd: p.Process.Cwd, UID: p.Process.User.UID, GID: p.Process.User.GID,
		Groups: p.Process.User.AdditionalGids, SetGroups: p.IDs.SetGroups, Umask: *p.Process.User.Umask, TTY: p.Process.Terminal, NewKeyring: true,
	}
	var err error
	for _, s := range []struct {
		to   *uint64
		from []string
	}{
		{&out.Caps.Bounding, c.Bounding},
		{&out.Caps.Effective, c.Effective},
		{&out.Caps.Permitted, c.Permitted},
		{&out.Caps.Inheritable, c.Inheritable},
		{&out.Caps.Ambient, c.Ambient},
	} {
		if *s.to, err = capBits(s.from); err != nil {
			return out, err
		}
	}
	out.Rlimits, err = limits(p.Process.Rlimits)
	return out, err
}

// runtimeProcess compiles the process of a runtime plugin's program: the root of the
// sandbox's user namespace, in the root that is the program's. Its command is the
// caller's to fill in as well.
func runtimeProcess(p *plan.Plan) (initproto.Process, error) {
	out := initproto.Process{Cwd: "/", SetGroups: p.IDs.SetGroups, Umask: 0o022, TTY: p.Process.Terminal, NewKeyring: true}
	caps, err := capBits(p.Runtime.Capabilities)
	if err != nil {
		return out, err
	}
	out.Caps = initproto.Caps{Bounding: caps, Effective: caps, Permitted: caps}
	out.Rlimits, err = limits(p.Runtime.Rlimits)
	return out, err
}

func limits(rs []specs.POSIXRlimit) ([]initproto.Rlimit, error) {
	var out []initproto.Rlimit
	for _, r := range rs {
		n, ok := rlimits[r.Type]
		if !ok {
			return out, fmt.Errorf("resource limit %q: unknown", r.Type)
		}
		if n == unix.RLIMIT_CORE && r.Hard <= plan.NoCore { // none, as 0 says it, too; unless this process may have no more itself
			own, err := inherited(n)
			if err != nil {
				return out, err
			}
			r.Soft, r.Hard = own.Max, own.Max
		}
		out = append(out, initproto.Rlimit{Resource: n, Soft: r.Soft, Hard: r.Hard})
	}
	for _, n := range lowered {
		if slices.ContainsFunc(out, func(r initproto.Rlimit) bool { return r.Resource == n }) {
			continue
		}
		own, err := inherited(n)
		if err != nil {
			return out, err
		}
		out = append(out, initproto.Rlimit{Resource: n, Soft: own.Cur, Hard: own.Max})
	}
	return out, nil
}

// lowered are the limits of which a sandbox has less than its caller, unless its job says. What
// they limit the kernel counts for whoever made the user namespace as well, in all
// sandboxes and outside together (inc_rlimit_ucounts() in its kernel/ucount.c): with as
// much a workload could take all.
var lowered = []uint32{unix.RLIMIT_NOFILE, unix.RLIMIT_SIGPENDING, unix.RLIMIT_MSGQUEUE}

// reservedFiles is how much less a workload has of RLIMIT_NOFILE than its init and whoever
// started it. The kernel refuses to pass descriptors to a process whose user has more of
// them on the way than the process may have open (unix(7), ETOOMANYREFS): with a limit
// as high as init's, a workload that leaves its own unread could keep each of these from
// passing one. A single message has 253 at most (SCM_MAX_FD).
const reservedFiles = 4096

// Signals and timers that are pending. Without room for one, timer_create(2) and
// sigqueue(3) fail, root's too.
const (
	fewestSignals = 128
	mostSignals   = 1024
)

// lower gives what a workload has of a limit.
func lower(resource uint32, own unix.Rlimit) unix.Rlimit {
	switch resource {
	case unix.RLIMIT_CORE:
		own.Max = min(own.Max, plan.NoCore)
	case unix.RLIMIT_NOFILE:
		if own.Max != unix.RLIM_INFINITY {
			own.Max -= min(reservedFiles, own.Max/4)
		}
	case unix.RLIMIT_SIGPENDING:
		own.Max = min(own.Max, max(fewestSignals, min(mostSignals, own.Max/64)))
	case unix.RLIMIT_MSGQUEUE:
		if own.Max != unix.RLIM_INFINITY {
			own.Max /= 4
		}
	}
	own.Cur = min(own.Cur, own.Max)
	return own
}

// inherited gives what a sandbox has of a limit if nobody says anything of it.
func inherited(resource uint32) (unix.Rlimit, error) {
	var own unix.Rlimit
	if err := unix.Getrlimit(int(resource), &own); err != nil {
		return own, os.NewSyscallError("getrlimit", err)
	}
	return lower(resource, own), nil
}

// Inherited gives the limits of a resource that a sandbox has whose plan says nothing of it;
// false for a name that there is not.
func Inherited(name string) (soft, hard uint64, ok bool) {
	n, ok := rlimits[name]
	if !ok {
		return 0, 0, false
	}
	r, err := inherited(n)
	if err != nil {
		return 0, 0, false
	}
	return r.Cur, r.Max, true
}

// InitCaps are what init keeps once the file system stands.
func InitCaps(p initproto.Process) uint64 { return spawnCaps | p.Caps.Bounding | p.Caps.Permitted }

// Landlock compiles the ruleset. entries are the top-level entries of a rootfs.
func Landlock(p *plan.Plan, entries []string) initproto.Landlock {
	l := p.Landlock
	out := initproto.Landlock{ABI: int32(l.ABI), HandledFS: l.HandledFS, HandledNet: l.HandledNet, Scoped: l.Scoped}
	for _, r := range l.Rules {
		if !r.Entries {
			out.Rules = append(out.Rules, initproto.PathRule{Path: r.Path, Access: r.Rights, Optional: r.Optional})
			continue
		}
		for _, e := range entries {
			out.Rules = append(out.Rules, initproto.PathRule{Path: e, Access: r.Rights, Optional: true})
		}
	}
	for _, n := range l.Ports {
		out.Ports = append(out.Ports, initproto.PortRule{Port: uint64(n.Port), Access: n.Rights})
	}
	return out
}
