package seccomp

import (
	"crypto/sha256"
	"encoding/hex"
	"runtime"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/bpf"
)

// Filter is a compiled policy, ready for seccomp(2).
type Filter struct {
	// BPF is an array of struct sock_filter in the byte order of this machine.
	BPF []byte
	// Flags are the SECCOMP_FILTER_FLAG_* to load it with.
	Flags uint32
	// Digest is the SHA-256 of BPF in hexadecimal.
	Digest string
	// Name says where the policy comes from: "default", "init", "default+allow", or the name of the profile.
	Name string
	// Added are the calls admitted beyond the profile because the launcher's last steps run under the filter.
	Added []string
	// Ignored are the parts of the request that have no effect here, each with its reason.
	Ignored []string
	// Instructions is the number of BPF instructions.
	Instructions int
}

// Default returns the filter of the default policy.
func Default() Filter { return newFilter("default", []byte(defaultBPF)) }

// InitFilter returns the filter of PID 1 beside a workload under the default filter. For any other workload see
// [Compiler.CompileInit].
func InitFilter() Filter { return newFilter("init", []byte(initBPF)) }

func newFilter(name string, raw []byte) Filter {
	sum := sha256.Sum256(raw)
	return Filter{
		BPF:          raw,
		Digest:       hex.EncodeToString(sum[:]),
		Name:         name,
		Instructions: len(raw) / bpf.InstructionSize,
	}
}

// embedded returns the filter compiled at build time from exactly this policy, if there is one.
func embedded(p Policy) (Filter, bool) {
	if p.Arch != runtime.GOARCH {
		return Filter{}, false
	}
	def := DefaultPolicy(p.Arch)
	switch p.Digest() {
	case def.Digest():
		return Default(), true
	case InitPolicy(def).Digest():
		return InitFilter(), true
	}
	return Filter{}, false
}
