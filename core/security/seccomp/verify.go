package seccomp

import (
	"fmt"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/bpf"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/sysno"
)

// The architecture values of the ABIs in use and of their 32-bit neighbours (linux/audit.h).
const (
	auditX86_64  = 0xc000003e
	auditAArch64 = 0xc00000b7
	auditI386    = 0x40000003
	auditARM     = 0x40000028
)

func auditArch(goarch string) uint32 {
	if goarch == "arm64" {
		return auditAArch64
	}
	return auditX86_64
}

// Verify runs a compiled filter on every system call, on both sides of every condition and on foreign ABIs, and reports
// the first difference from the policy. How libseccomp combines several rules for one call is documented nowhere, and
// it drops some silently; a filter that means something else must never be loaded.
func Verify(p Policy, raw []byte) error {
	program, err := bpf.Parse(raw)
	if err != nil {
		return err
	}
	native := auditArch(p.Arch)
	for _, foreign := range []uint32{0, auditI386, auditARM, auditX86_64, auditAArch64} {
		if foreign == native {
			continue
		}
		for _, number := range []uint32{0, 1, 59, 221, x32Bit | 59} {
			if got, _ := program.Run(bpf.Data{Number: number, Arch: foreign}); Action(got) != ActKillProcess {
				return fmt.Errorf("architecture %#x, system call %d: filter says %q, not %q", foreign, number, Action(got), ActKillProcess)
			}
		}
	}
	for _, number := range interestingNumbers(p) {
		vectors := append(witnesses(p.rulesOf(number)), [6]uint64{}, [6]uint64{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)})
		for _, args := range vectors {
			got, _ := program.Run(bpf.Data{Number: number, Arch: native, Args: args})
			if want := p.Evaluate(number, args); Action(got) != want {
				return fmt.Errorf("%s with arguments %#x: filter says %q, policy says %q", p.callName(number), args, Action(got), want)
			}
		}
	}
	return nil
}

// interestingNumbers is the whole table, the gaps in it and some way beyond, and the edges of the number space.
func interestingNumbers(p Policy) []uint32 {
	last := uint32(0)
	for _, c := range sysno.Table(p.Arch) {
		last = max(last, c.Number)
	}
	for _, r := range p.Rules {
		last = max(last, min(r.Number, 4096))
	}
	numbers := []uint32{x32Bit - 1, 1 << 31, ^uint32(0) - 1, ^uint32(0)}
	for n := uint32(0); n <= last+16; n++ {
		numbers = append(numbers, n)
		if p.Arch == "amd64" {
			numbers = append(numbers, n|x32Bit)
		}
	}
	for _, r := range p.Rules {
		if r.Number > 4096 {
			numbers = append(numbers, r.Number)
		}
	}
	return numbers
}
