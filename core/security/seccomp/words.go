package seccomp

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
)

// The words of OCI profiles, and what they stand for.

func (p *Profile) defaultAction() (Action, error) {
	return actionOf(p.DefaultAction, p.DefaultErrnoRet, p.DefaultErrno)
}

func (g *SyscallGroup) action() (Action, error) { return actionOf(g.Action, g.ErrnoRet, g.Errno) }

func actionOf(word string, ret *uint, errno string) (Action, error) {
	var action Action
	switch word {
	case "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD":
		action = ActKillThread
	case "SCMP_ACT_KILL_PROCESS":
		action = ActKillProcess
	case "SCMP_ACT_TRAP":
		action = ActTrap
	case "SCMP_ACT_LOG":
		action = ActLog
	case "SCMP_ACT_ALLOW":
		action = ActAllow
	case "SCMP_ACT_ERRNO":
		data, err := errnoOf(ret, errno, maxErrno)
		return ActErrno | Action(data), err
	case "SCMP_ACT_TRACE":
		data, err := errnoOf(ret, errno, uint(dataMask))
		return ActTrace | Action(data), err
	case "SCMP_ACT_NOTIFY":
		return 0, errors.New("SCMP_ACT_NOTIFY is not supported: no agent outside of a sandbox answers its system calls")
	default:
		return 0, fmt.Errorf("%q is none of SCMP_ACT_{ALLOW,ERRNO,KILL,KILL_PROCESS,KILL_THREAD,LOG,TRACE,TRAP}", word)
	}
	// Docker writes errno names beside every action; a number is a statement that must not be lost.
	if ret != nil && *ret != 0 {
		return 0, fmt.Errorf("%s takes no errno", word)
	}
	return action, nil
}

// errnoOf prefers the name, as containers-common does, and insists that both agree. Without either it is EPERM.
func errnoOf(ret *uint, name string, limit uint) (uint16, error) {
	n := uint(syscall.EPERM)
	if ret != nil {
		n = *ret
	}
	if n > limit {
		return 0, fmt.Errorf("errno %d is above %d", n, limit)
	}
	if name == "" {
		return uint16(n), nil
	}
	named, ok := errnoNumber(name)
	if !ok {
		return 0, fmt.Errorf("unknown errno %q", name)
	}
	if ret != nil && uint16(n) != named {
		return 0, fmt.Errorf("errno %s is %d, and errnoRet says %d", name, named, n)
	}
	return named, nil
}

func (g *SyscallGroup) conds() ([]Cond, error) {
	var conds []Cond
	for _, a := range g.Args {
		op, err := opOf(a.Op)
		if err != nil {
			return nil, err
		}
		c := Cond{Arg: uint8(min(a.Index, 255)), Op: op, Value: a.Value}
		if op == OpMaskedEqual {
			c.Value2 = a.ValueTwo
		}
		if c.Arg > 5 {
			return nil, fmt.Errorf("argument index %d is above 5", a.Index)
		}
		if slices.ContainsFunc(conds, func(o Cond) bool { return o.Arg == c.Arg }) {
			// Other runtimes take such a rule for several, that is for "or": wider than it reads.
			return nil, fmt.Errorf("two conditions on argument %d; write them as two rules, of which either may match", a.Index)
		}
		conds = append(conds, c)
	}
	return conds, nil
}

func opOf(word string) (Op, error) {
	switch word {
	case "SCMP_CMP_NE":
		return OpNotEqual, nil
	case "SCMP_CMP_LT":
		return OpLess, nil
	case "SCMP_CMP_LE":
		return OpLessEqual, nil
	case "SCMP_CMP_EQ":
		return OpEqual, nil
	case "SCMP_CMP_GE":
		return OpGreaterEqual, nil
	case "SCMP_CMP_GT":
		return OpGreater, nil
	case "SCMP_CMP_MASKED_EQ":
		return OpMaskedEqual, nil
	}
	return 0, fmt.Errorf("%q is none of SCMP_CMP_{NE,LT,LE,EQ,GE,GT,MASKED_EQ}", word)
}

// Flags of seccomp(2) that a profile may set.
const (
	flagTSync     = 1 << 0
	flagLog       = 1 << 1
	flagSpecAllow = 1 << 2
)

func (p *Profile) loadFlags() (uint32, error) {
	var flags uint32
	for _, word := range p.Flags {
		switch word {
		case "SECCOMP_FILTER_FLAG_TSYNC":
			flags |= flagTSync
		case "SECCOMP_FILTER_FLAG_LOG":
			flags |= flagLog
		case "SECCOMP_FILTER_FLAG_SPEC_ALLOW":
			flags |= flagSpecAllow
		case "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV":
			return 0, fmt.Errorf("flag %s needs a listener, and listeners are not supported", word)
		default:
			return 0, fmt.Errorf("unknown flag %q", word)
		}
	}
	return flags, nil
}

// ociArch is the name that profiles use for a GOARCH.
func ociArch(goarch string) string {
	if goarch == "arm64" {
		return "SCMP_ARCH_AARCH64"
	}
	return "SCMP_ARCH_X86_64"
}
