package seccomp

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/sysno"
)

// TracePolicy is the policy under which somebody outside is asked what becomes of a call, as data. What no sandbox may do
// kills the process here as well.
func TracePolicy(goarch string) Policy {
	p := Policy{Arch: goarch, Default: ActNotify}
	add := adder(&p, nil)
	for _, name := range killed.names {
		add(name, killed.action)
	}
	p.Normalize()
	return p
}

// TraceFilter returns the filter of [TracePolicy].
func TraceFilter() Filter { return newFilter("trace", []byte(traceBPF)) }

// TraceInitFilter returns the filter of PID 1 beside a workload under [TraceFilter].
func TraceInitFilter() Filter { return newFilter("init", []byte(traceInitBPF)) }

// Trace is what processes called, and what a policy would have had to say to that.
type Trace struct {
	policy Policy

	mu    sync.Mutex
	calls map[uint32]*Traced
	rest  Traced // all that no table knows: their numbers are the caller's to make up
}

// Traced is what is known of one call.
type Traced struct {
	Name  string
	Count uint64
	// Refused is how many of them the policy does not admit, and Answer what it says to the first of these. Args are that
	// one's arguments, as far as any has a say in it.
	Refused uint64
	Answer  string
	Args    []uint64
	// Closed: they were refused in the trace, too.
	Closed bool
}

// closed is what a trace does not open, though `allow` can: what a ring does no filter and no trace sees, so programs are to
// fall back as they will without it; the others are refused, some of them by their arguments, for what they do to all of
// the host or to PID 1.
var closed = []string{
	"fcntl", "fsetxattr", "io_uring_enter", "io_uring_register", "io_uring_setup", "lsetxattr", "memfd_secret", "prlimit64", "setsockopt", "setxattr", "setxattrat",
}

// NewTrace makes one that has seen nothing.
func NewTrace(p Policy) *Trace { return &Trace{policy: p, calls: map[uint32]*Traced{}} }

// Decide counts a call. It goes through (0) if the policy admits it, or if a job's `allow` could have it admit it and it is
// none of closed; the others get what the policy answers, so that programs fall back as they will without the trace.
func (t *Trace) Decide(number uint32, args [6]uint64) syscall.Errno {
	action := t.policy.Evaluate(number, args)
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.calls[number]
	if c == nil {
		if name := sysno.Name(t.policy.Arch, number); name != "" {
			c = &Traced{Name: name, Closed: refusal(name) != "" || slices.Contains(closed, name)}
			t.calls[number] = c
		} else {
			c = &t.rest
			c.Name, c.Closed = "unknown", true
		}
	}
	c.Count++
	if action.Admits() {
		return 0
	}
	c.Refused++
	if c.Answer == "" {
		c.Answer, c.Args = action.String(), t.deciding(number, args)
	}
	if !c.Closed {
		return 0
	}
	if action.Kind() == ActErrno {
		return cmp.Or(syscall.Errno(action.Data()), syscall.EPERM)
	}
	return syscall.EPERM
}

// deciding are the arguments of a call up to the last that a rule looks at.
func (t *Trace) deciding(number uint32, args [6]uint64) []uint64 {
	n := 0
	for _, r := range t.policy.rulesOf(number) {
		for _, c := range r.Conds {
			n = max(n, int(c.Arg)+1)
		}
	}
	if n == 0 {
		return nil
	}
	return slices.Clone(args[:n])
}

// Calls gives what was called, by name.
func (t *Trace) Calls() []Traced {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Traced, 0, len(t.calls)+1)
	for _, c := range t.calls {
		out = append(out, *c)
	}
	if t.rest.Count > 0 {
		out = append(out, t.rest)
	}
	slices.SortFunc(out, func(a, b Traced) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// lateCalls are made where a run may have come to, and another one does: on the way back from a signal's handler, after a
// stop, at the end of a thread.
var lateCalls = []string{"exit", "restart_syscall", "rt_sigreturn"}

// Profile gives an OCI profile, as JSON: the policy, for what was called. What the policy refuses the profile does too, and
// what was not called is refused with the policy's default answer.
func (t *Trace) Profile() ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := specs.LinuxSeccomp{Architectures: []specs.Arch{specs.Arch(ociArch(t.policy.Arch))}}
	var err error
	// Where the policy admits what it does not name, the profile must not.
	fallback := t.policy.Default
	if fallback.Admits() {
		fallback = Errno(syscall.ENOSYS)
	}
	if p.DefaultAction, p.DefaultErrnoRet, err = ociAction(fallback); err != nil {
		return nil, err
	}
	groups := map[Action][]string{}
	called := slices.Concat(launcherCalls, lateCalls)
	for _, c := range t.calls {
		called = append(called, c.Name)
	}
	slices.Sort(called)
	for _, name := range slices.Compact(called) {
		number, _ := sysno.Number(t.policy.Arch, name)
		rules := t.policy.rulesOf(number)
		switch {
		case len(rules) == 0:
			if t.policy.Default != fallback {
				groups[t.policy.Default] = append(groups[t.policy.Default], name)
			}
		case len(rules) == 1 && len(rules[0].Conds) == 0:
			groups[rules[0].Action] = append(groups[rules[0].Action], name)
		default:
			if err := byArguments(&p, name, rules, t.policy.Default, fallback); err != nil {
				return nil, err
			}
		}
	}
	for action, names := range groups {
		if action == fallback {
			continue
		}
		if err := addGroup(&p, names, action, nil); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(p.Syscalls, func(a, b specs.LinuxSyscall) int {
		return cmp.Or(cmp.Compare(min(len(a.Args), 1), min(len(b.Args), 1)), cmp.Compare(a.Action, b.Action), slices.Compare(a.Names, b.Names))
	})
	out, err := json.MarshalIndent(p, "", "  ")
	return append(out, '\n'), err
}

// byArguments adds the rules of a call that is decided by its arguments.
func byArguments(p *specs.LinuxSeccomp, name string, rules []Rule, otherwise, fallback Action) error {
	whole := false
	for _, r := range rules {
		whole = whole || len(r.Conds) == 0
		if err := addGroup(p, []string{name}, r.Action, r.Conds); err != nil {
			return err
		}
	}
	if whole || otherwise == fallback {
		return nil
	}
	return addGroup(p, []string{name}, otherwise, nil)
}

func addGroup(p *specs.LinuxSeccomp, names []string, action Action, conds []Cond) error {
	s := specs.LinuxSyscall{Names: names}
	var err error
	if s.Action, s.ErrnoRet, err = ociAction(action); err != nil {
		return err
	}
	for _, c := range conds {
		s.Args = append(s.Args, specs.LinuxSeccompArg{Index: uint(c.Arg), Value: c.Value, ValueTwo: c.Value2, Op: ociOps[c.Op]})
	}
	p.Syscalls = append(p.Syscalls, s)
	return nil
}

var ociOps = map[Op]specs.LinuxSeccompOperator{
	OpNotEqual: specs.OpNotEqual, OpLess: specs.OpLessThan, OpLessEqual: specs.OpLessEqual, OpEqual: specs.OpEqualTo,
	OpGreaterEqual: specs.OpGreaterEqual, OpGreater: specs.OpGreaterThan, OpMaskedEqual: specs.OpMaskedEqual,
}

// ociAction is the word of a profile for an action, and its errno.
func ociAction(a Action) (specs.LinuxSeccompAction, *uint, error) {
	data := func() *uint { n := uint(a.Data()); return &n }
	switch a.Kind() {
	case ActKillProcess:
		return specs.ActKillProcess, nil, nil
	case ActKillThread:
		return specs.ActKillThread, nil, nil
	case ActTrap:
		return specs.ActTrap, nil, nil
	case ActErrno:
		return specs.ActErrno, data(), nil
	case ActTrace:
		return specs.ActTrace, data(), nil
	case ActLog:
		return specs.ActLog, nil, nil
	case ActAllow:
		return specs.ActAllow, nil, nil
	}
	return "", nil, fmt.Errorf("no profile can say %q", a)
}
