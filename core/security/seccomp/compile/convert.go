package compile

import (
	"errors"
	"runtime"

	libseccomp "github.com/seccomp/libseccomp-golang"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/bpf"
)

var compareOps = [...]libseccomp.ScmpCompareOp{
	seccomp.OpNotEqual:     libseccomp.CompareNotEqual,
	seccomp.OpLess:         libseccomp.CompareLess,
	seccomp.OpLessEqual:    libseccomp.CompareLessOrEqual,
	seccomp.OpEqual:        libseccomp.CompareEqual,
	seccomp.OpGreaterEqual: libseccomp.CompareGreaterEqual,
	seccomp.OpGreater:      libseccomp.CompareGreater,
	seccomp.OpMaskedEqual:  libseccomp.CompareMaskedEqual,
}

func action(a seccomp.Action) libseccomp.ScmpAction {
	switch a.Kind() {
	case seccomp.ActKillThread:
		return libseccomp.ActKillThread
	case seccomp.ActTrap:
		return libseccomp.ActTrap
	case seccomp.ActErrno:
		return libseccomp.ActErrno.SetReturnCode(int16(a.Data()))
	case seccomp.ActTrace:
		return libseccomp.ActTrace.SetReturnCode(int16(a.Data()))
	case seccomp.ActLog:
		return libseccomp.ActLog
	case seccomp.ActAllow:
		return libseccomp.ActAllow
	}
	return libseccomp.ActKillProcess
}

// defaultPlaceholder is the default action to compile with. libseccomp refuses a rule with the default action, which is
// needed where an argument is an exception from a rule for the whole call; so then an errno that no rule uses stands
// for the default until finish puts it in. So it is with notifications, which only later levels of its API have.
func defaultPlaceholder(p seccomp.Policy) seccomp.Action {
	clash, used := p.Default.Kind() == seccomp.ActNotify, map[seccomp.Action]bool{}
	for _, r := range p.Rules {
		used[r.Action] = true
		clash = clash || r.Action == p.Default
	}
	if !clash {
		return p.Default
	}
	placeholder := seccomp.Errno(4094)
	for used[placeholder] || placeholder == p.Default {
		placeholder--
	}
	return placeholder
}

// finish replaces the placeholder of the default action and, for a foreign target, the architecture, and makes ranges of
// numbers. libseccomp can aim
// at other architectures only by names it knows, while rules are numbers here so that newer calls can be in them; a
// filter for x86_64 with the numbers of the target differs from the target's only in the two checks at its head.
func finish(raw []byte, p seccomp.Policy, placeholder seccomp.Action) ([]byte, error) {
	program, err := bpf.Parse(raw)
	if err != nil {
		return nil, err
	}
	for i, in := range program {
		if in.Op == bpf.Return && placeholder != p.Default && seccomp.Action(in.K) == placeholder {
			program[i].K = uint32(p.Default)
		}
	}
	if p.Arch != runtime.GOARCH {
		if err := retarget(program); err != nil {
			return nil, err
		}
	}
	return program.Compact().Bytes(), nil
}

// retarget turns a filter for x86_64 into one for aarch64.
func retarget(program bpf.Program) error {
	const (
		x86_64  = 0xc000003e
		aarch64 = 0xc00000b7
		x32Bit  = 0x40000000
	)
	if len(program) < 4 || program[0].Op != bpf.LoadAbs || program[0].K != 4 || program[1].Op != bpf.JumpEqual || program[1].K != x86_64 {
		return errors.New("filter does not start with the check of the architecture")
	}
	program[1].K = aarch64
	if program[2].Op != bpf.LoadAbs || program[2].K != 0 || program[3].Op != bpf.JumpGreaterE || program[3].K != x32Bit {
		return errors.New("filter does not check for x32 where libseccomp puts it")
	}
	// No call of aarch64 has the x32 bit: leave only -1, which the next instruction of libseccomp lets pass.
	program[3].K = ^uint32(0)
	return nil
}
