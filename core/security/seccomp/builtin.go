package seccomp

import (
	"slices"
	"strings"
	"syscall"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/sysno"
)

// DefaultPolicy is the policy of a sandbox that asks for nothing, as data. The embedded filter of [Default] is compiled
// from it.
func DefaultPolicy(goarch string) Policy { return builtin(goarch, nil, nil) }

// builtin is the default policy with the calls opened that the kept capabilities and the names in allow stand for.
func builtin(goarch string, caps, allow []string) Policy {
	p := Policy{Arch: goarch, Default: Errno(syscall.ENOSYS)}
	opened := slices.Concat(openedByCaps(caps), allow)
	add := adder(&p, opened)
	for _, names := range allowed {
		for _, name := range names {
			add(name, ActAllow)
		}
	}
	argumentRules(add)
	denials(add)
	for _, name := range opened {
		if n, ok := sysno.Number(goarch, name); ok {
			p.Rules = append(p.Rules, Rule{Number: n, Action: ActAllow})
		}
	}
	p.Normalize()
	return p
}

// InitPolicy is the policy of PID 1 beside a workload under the policy given, as data. A filter is inherited by every
// child and can only narrow: whatever init may not do, no workload, hook or exec session can do either. So it is the
// refusing half of the default policy, admits the rest, and gives way wherever the workload's policy is gentler. That
// makes it invisible to children, and small.
func InitPolicy(workload Policy) Policy {
	base := Policy{Arch: workload.Arch, Default: ActAllow}
	add := adder(&base, nil)
	deniedArguments(add)
	add("clone", ActAllow, Cond{Arg: 0, Op: OpMaskedEqual, Value: cloneNamespaces})
	add("clone", Errno(syscall.EPERM))
	denials(add)
	base.Normalize()

	p := Policy{Arch: base.Arch, Default: base.Default}
	for lo := 0; lo < len(base.Rules); {
		rules := base.rulesOf(base.Rules[lo].Number)
		lo += len(rules)
		p.Rules = append(p.Rules, giveWay(base, rules, workload)...)
	}
	p.Normalize()
	return p
}

// giveWay returns the rules of one call as far as the workload's policy is at least as strict: a kill becomes an errno
// where the workload would see one, and goes where it would get through.
func giveWay(base Policy, rules []Rule, workload Policy) []Rule {
	number := rules[0].Number
	softened := slices.Clone(rules)
	for _, args := range append(witnesses(slices.Concat(rules, workload.rulesOf(number))), [6]uint64{}) {
		ours, theirs := base.Evaluate(number, args), workload.Evaluate(number, args)
		if !theirs.gentler(ours) {
			continue
		}
		if theirs.Kind() > ActErrno.Kind() && theirs.Kind() != ActKillProcess {
			return nil
		}
		for i := range softened {
			if softened[i].Action == ActKillProcess {
				softened[i].Action = Errno(syscall.EPERM)
			}
		}
	}
	return softened
}

// adder appends rules by name to a policy, without the names that are opened or that the architecture lacks.
func adder(p *Policy, opened []string) func(string, Action, ...Cond) {
	return func(name string, action Action, conds ...Cond) {
		if slices.Contains(opened, name) {
			return
		}
		if n, ok := sysno.Number(p.Arch, name); ok {
			p.Rules = append(p.Rules, Rule{Number: n, Action: action, Conds: conds})
		}
	}
}

func denials(add func(string, Action, ...Cond)) {
	for _, d := range append([]denial{killed}, refused...) {
		for _, name := range d.names {
			add(name, d.action)
		}
	}
}

func openedByCaps(caps []string) []string {
	var names []string
	for _, c := range capOpens {
		if slices.ContainsFunc(caps, func(kept string) bool { return capName(kept) == c.capability }) {
			names = append(names, c.names...)
		}
	}
	return names
}

// capName drops the optional prefix, so that NET_ADMIN and CAP_NET_ADMIN are one.
func capName(s string) string { return strings.TrimPrefix(strings.ToUpper(s), "CAP_") }
