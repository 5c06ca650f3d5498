// Package compile owns the translation of policies into BPF by libseccomp. It is the only package that needs cgo; the
// helper nucleus-seccomp and the generator of the embedded filters are its only importers.
package compile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
)

// binaryTree makes libseccomp sort the calls into a tree (SCMP_FLTATR_CTL_OPTIMIZE): log2(n) comparisons for each call
// instead of n, and a faster load.
const binaryTree = 2

// apiLevel has KILL_PROCESS and LOG. It is stated, not probed, since the kernel that compiles a filter says nothing of
// the one that loads it.
const apiLevel = 3

// Policy compiles p for this machine's architecture or, from amd64, for arm64.
func Policy(p seccomp.Policy) ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	if err := crossable(p.Arch); err != nil {
		return nil, err
	}
	if err := libseccomp.SetAPI(apiLevel); err != nil {
		return nil, fmt.Errorf("setting libseccomp API level %d: %w", apiLevel, err)
	}
	placeholder := defaultPlaceholder(p)
	filter, err := build(p, placeholder)
	if err != nil {
		return nil, err
	}
	defer filter.Release()
	raw, err := export(filter)
	if err != nil {
		return nil, err
	}
	raw, err = finish(raw, p, placeholder)
	if err != nil {
		return nil, err
	}
	if err := seccomp.Verify(p, raw); err != nil {
		return nil, fmt.Errorf("libseccomp %s compiled another policy: %w", Version(), err)
	}
	return raw, nil
}

// Version is the version of the libseccomp in use.
func Version() string {
	major, minor, micro := libseccomp.GetLibraryVersion()
	return fmt.Sprintf("%d.%d.%d", major, minor, micro)
}

func crossable(goarch string) error {
	if goarch == runtime.GOARCH || runtime.GOARCH == "amd64" {
		return nil
	}
	return fmt.Errorf("cannot compile for %s on %s", goarch, runtime.GOARCH)
}

func build(p seccomp.Policy, defaultAction seccomp.Action) (*libseccomp.ScmpFilter, error) {
	filter, err := libseccomp.NewFilter(action(defaultAction))
	if err != nil {
		return nil, fmt.Errorf("creating filter: %w", err)
	}
	err = errors.Join(
		filter.SetBadArchAction(libseccomp.ActKillProcess),
		filter.SetOptimize(binaryTree),
	)
	for lo := 0; err == nil && lo < len(p.Rules); {
		hi := lo
		for hi < len(p.Rules) && p.Rules[hi].Number == p.Rules[lo].Number {
			hi++
		}
		err = addRules(filter, p.Rules[lo:hi])
		lo = hi
	}
	if err != nil {
		filter.Release()
		return nil, err
	}
	return filter, nil
}

// addRules adds the rules of one call. An unconditional rule makes libseccomp forget the conditional ones, so where
// there are both it is given as a condition that always holds, which libseccomp sorts behind the others: levels of its
// decision chain are ordered by falling argument index, and equality before order.
func addRules(filter *libseccomp.ScmpFilter, rules []seccomp.Rule) error {
	for _, r := range rules {
		conds := r.Conds
		if len(conds) == 0 && len(rules) > 1 {
			conds = []seccomp.Cond{{Arg: lowestArg(rules), Op: seccomp.OpGreaterEqual, Value: 0}}
		}
		converted := make([]libseccomp.ScmpCondition, len(conds))
		for i, c := range conds {
			converted[i] = libseccomp.ScmpCondition{
				Argument: uint(c.Arg),
				Op:       compareOps[c.Op],
				Operand1: c.Value,
				Operand2: c.Value2,
			}
		}
		if err := filter.AddRuleConditionalExact(libseccomp.ScmpSyscall(r.Number), action(r.Action), converted); err != nil {
			return fmt.Errorf("adding rule for system call %d: %w", r.Number, err)
		}
	}
	return nil
}

func lowestArg(rules []seccomp.Rule) uint8 {
	lowest := uint8(5)
	for _, r := range rules {
		for _, c := range r.Conds {
			lowest = min(lowest, c.Arg)
		}
	}
	return lowest
}

// export goes through a memory file: exporting to memory came only with libseccomp 2.6.
func export(filter *libseccomp.ScmpFilter) ([]byte, error) {
	fd, err := unix.MemfdCreate("bpf", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "bpf")
	defer file.Close()
	if err := filter.ExportBPF(file); err != nil {
		return nil, fmt.Errorf("exporting filter: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return io.ReadAll(file)
}
