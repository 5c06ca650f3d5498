package seccomp

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/sysno"
)

// resolveProfile works a profile out: groups that apply, names to numbers, foreign architectures dropped, the
// launcher's calls and those of Allow added.
func (r Request) resolveProfile(goarch string, opened []string) (Resolved, error) {
	p := r.Profile
	out := Resolved{Name: p.Name, Policy: Policy{Arch: goarch}}
	if err := p.check(); err != nil {
		return out, err
	}
	// check has seen that both are well formed.
	out.Policy.Default, _ = p.defaultAction()
	out.Flags, _ = p.loadFlags()
	out.Ignored = p.foreign(goarch)

	var errs []error
	for i := range p.Syscalls {
		g := &p.Syscalls[i]
		if !r.applies(g, goarch) {
			continue
		}
		rules, ignored, err := g.rules(goarch)
		if err != nil {
			errs = append(errs, &ProfileError{Name: p.Name, Line: g.line, Err: err})
		}
		for _, rule := range rules {
			if earlier, ok := out.Policy.overruled(rule); ok {
				out.Ignored = append(out.Ignored, fmt.Sprintf("line %d: %q for system call %q: an earlier rule says %q",
					g.line, rule.Action, out.Policy.callName(rule.Number), earlier))
				continue
			}
			out.Policy.Rules = append(out.Policy.Rules, rule)
		}
		out.Ignored = append(out.Ignored, ignored...)
	}
	for _, name := range opened {
		n, _ := sysno.Number(goarch, name)
		out.Policy.open(n)
	}
	if err := errors.Join(errs...); err != nil {
		return out, err
	}
	for _, name := range launcherCalls {
		added, err := out.Policy.admit(name)
		if err != nil {
			return out, &ProfileError{Name: p.Name, Err: err}
		}
		if added {
			out.Added = append(out.Added, name)
		}
	}
	out.Policy.Normalize()
	if err := out.Policy.Validate(); err != nil {
		return out, &ProfileError{Name: p.Name, Err: err}
	}
	return out, nil
}

// foreign lists the architectures of the profile that are not filtered but killed.
func (p *Profile) foreign(goarch string) []string {
	named := p.Architectures
	for _, m := range p.ArchMap {
		if m.Architecture == ociArch(goarch) {
			named = m.SubArchitectures
		}
	}
	var ignored []string
	for _, arch := range named {
		if arch != ociArch(goarch) {
			ignored = append(ignored, fmt.Sprintf("architecture %s: its calls are killed", arch))
		}
	}
	return ignored
}

// applies evaluates includes and excludes: all conditions of includes must hold, and none of excludes.
func (r Request) applies(g *SyscallGroup, goarch string) bool {
	has := func(c string) bool {
		return slices.ContainsFunc(r.Caps, func(kept string) bool { return capName(kept) == capName(c) })
	}
	kernelAtLeast := func(s string) bool {
		// Group.check has seen that it is a version.
		least, err := ParseKernel(s)
		return err == nil && !r.Kernel.less(least)
	}
	if in := g.Includes; slices.ContainsFunc(in.Caps, func(c string) bool { return !has(c) }) ||
		len(in.Arches) > 0 && !slices.Contains(in.Arches, goarch) ||
		in.MinKernel != "" && !kernelAtLeast(in.MinKernel) {
		return false
	}
	ex := g.Excludes
	return !slices.ContainsFunc(ex.Caps, has) &&
		!slices.Contains(ex.Arches, goarch) &&
		(ex.MinKernel == "" || !kernelAtLeast(ex.MinKernel))
}

// rules turns a group into numbered rules. A name that no architecture has can only be a mistake or newer than our
// tables: harmless where it would allow, and an error where it should have refused.
func (g *SyscallGroup) rules(goarch string) (rules []Rule, ignored []string, err error) {
	if err := g.check(); err != nil {
		return nil, nil, err
	}
	action, _ := g.action()
	conds, _ := g.conds()
	var errs []error
	for _, name := range append(slices.Clone(g.Names), g.Name) {
		if name == "" {
			continue
		}
		number, ok := sysno.Number(goarch, name)
		switch {
		case ok:
			rules = append(rules, Rule{Number: number, Action: action, Conds: slices.Clone(conds)})
		case sysno.Known(name):
		case action.Admits():
			ignored = append(ignored, fmt.Sprintf("system call %q: unknown", name))
		default:
			msg := fmt.Sprintf("%s for unknown system call %q", action, name)
			if s := suggestion(goarch, name); s != "" {
				msg += fmt.Sprintf("; did you mean %q?", s)
			}
			errs = append(errs, errors.New(msg))
		}
	}
	return rules, ignored, errors.Join(errs...)
}

// overruled finds an earlier rule for all of a call that says something else. The first one counts, as in other runtimes;
// the default profile of containers-common, for one, has such pairs.
func (p *Policy) overruled(rule Rule) (Action, bool) {
	if len(rule.Conds) > 0 {
		return 0, false
	}
	for _, r := range p.Rules {
		if r.Number == rule.Number && len(r.Conds) == 0 && r.Action != rule.Action {
			return r.Action, true
		}
	}
	return 0, false
}

// open makes a call allowed whatever rules it has.
func (p *Policy) open(number uint32) {
	p.Rules = slices.DeleteFunc(p.Rules, func(r Rule) bool { return r.Number == number })
	p.Rules = append(p.Rules, Rule{Number: number, Action: ActAllow})
}

// admit makes sure that a call of the launcher gets through and tells whether it had to add it. A profile that does not
// list the call is completed; one that refuses it in so many words is in error, since it could start nothing and
// overruling it would enforce something else than what is written.
func (p *Policy) admit(name string) (added bool, err error) {
	number, _ := sysno.Number(p.Arch, name)
	listed := false
	for _, r := range p.Rules {
		if r.Number != number {
			continue
		}
		if !r.Action.Admits() {
			return false, fmt.Errorf("rule with action %q for %s, which every start needs (%s)", r.Action, name, strings.Join(launcherCalls, ", "))
		}
		listed = listed || len(r.Conds) == 0
	}
	if listed || p.Default.Admits() {
		return false, nil
	}
	p.open(number)
	return true, nil
}
