package seccomp

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/sysno"
)

// Op compares an argument, as an unsigned 64-bit number, with the value of a condition.
type Op uint8

// The comparisons of the OCI runtime specification.
const (
	OpNotEqual Op = iota + 1
	OpLess
	OpLessEqual
	OpEqual
	OpGreaterEqual
	OpGreater
	// OpMaskedEqual compares the argument and-ed with Value to Value2.
	OpMaskedEqual
)

// Cond is one condition on one argument.
type Cond struct {
	Arg    uint8  `json:"arg"`
	Op     Op     `json:"op"`
	Value  uint64 `json:"value"`
	Value2 uint64 `json:"value2,omitempty"`
}

// Match tells whether the condition holds for the arguments.
func (c Cond) Match(args [6]uint64) bool {
	a := args[c.Arg]
	switch c.Op {
	case OpNotEqual:
		return a != c.Value
	case OpLess:
		return a < c.Value
	case OpLessEqual:
		return a <= c.Value
	case OpEqual:
		return a == c.Value
	case OpGreaterEqual:
		return a >= c.Value
	case OpGreater:
		return a > c.Value
	case OpMaskedEqual:
		return a&c.Value == c.Value2
	}
	return false
}

// Rule gives one call an action: always, or where all conditions hold.
type Rule struct {
	Number uint32 `json:"number"`
	Action Action `json:"action"`
	Conds  []Cond `json:"conds,omitempty"`
}

func (r Rule) match(args [6]uint64) bool {
	for _, c := range r.Conds {
		if !c.Match(args) {
			return false
		}
	}
	return true
}

// Policy decides every call of one architecture. A rule with conditions goes before a rule without; a call that no rule
// decides gets Default; a call of any other ABI kills the process. Two rules that could both decide one call must
// agree (see [Policy.Validate]), so that the order of rules never matters.
type Policy struct {
	Arch    string `json:"arch"` // a GOARCH
	Default Action `json:"default"`
	Rules   []Rule `json:"rules"`
}

// ErrAmbiguous is wrapped by the error of Validate for a policy whose rules contradict each other.
var ErrAmbiguous = errors.New("rules contradict each other")

// x32Bit marks the calls of the x32 ABI, which share the architecture value of x86_64.
const x32Bit = 0x40000000

// Evaluate returns what the policy says of one native call. It is the reference that compiled filters are held to.
func (p Policy) Evaluate(number uint32, args [6]uint64) Action {
	// The kernel shows -1 to a filter when a tracer cancelled the call (Documentation/userspace-api/seccomp_filter).
	if p.Arch == "amd64" && number >= x32Bit && number != ^uint32(0) {
		return ActKillProcess
	}
	action := p.Default
	for _, r := range p.rulesOf(number) {
		if len(r.Conds) == 0 {
			action = r.Action
			continue
		}
		if r.match(args) {
			return r.Action
		}
	}
	return action
}

// rulesOf returns the rules of one call; Rules is sorted by number, the unconditional one first.
func (p Policy) rulesOf(number uint32) []Rule {
	lo, _ := slices.BinarySearchFunc(p.Rules, number, func(r Rule, n uint32) int { return int(int64(r.Number) - int64(n)) })
	hi := lo
	for hi < len(p.Rules) && p.Rules[hi].Number == number {
		hi++
	}
	return p.Rules[lo:hi]
}

// Normalize sorts the rules and drops those that change nothing, so that equal policies have equal digests.
func (p *Policy) Normalize() {
	for i := range p.Rules {
		slices.SortFunc(p.Rules[i].Conds, compareConds)
	}
	slices.SortFunc(p.Rules, compareRules)
	p.Rules = slices.CompactFunc(p.Rules, func(a, b Rule) bool { return compareRules(a, b) == 0 })

	kept := p.Rules[:0:0]
	for lo := 0; lo < len(p.Rules); {
		hi := lo
		for hi < len(p.Rules) && p.Rules[hi].Number == p.Rules[lo].Number {
			hi++
		}
		rules := p.Rules[lo:hi]
		if !p.uniform(rules) {
			kept = append(kept, rules...)
		} else if a := rules[0].Action; a != p.Default {
			if len(rules[0].Conds) == 0 {
				kept = append(kept, rules[0])
			} else {
				kept = append(kept, rules...)
			}
		}
		lo = hi
	}
	p.Rules = kept
}

// uniform tells whether all rules of a call have one action, in which case the widest says it all.
func (p *Policy) uniform(rules []Rule) bool {
	for _, r := range rules {
		if r.Action != rules[0].Action {
			return false
		}
	}
	return true
}

func compareRules(a, b Rule) int {
	if a.Number != b.Number {
		return int(int64(a.Number) - int64(b.Number))
	}
	if (len(a.Conds) == 0) != (len(b.Conds) == 0) {
		return len(a.Conds) - len(b.Conds)
	}
	if a.Action != b.Action {
		return int(int64(a.Action) - int64(b.Action))
	}
	return slices.CompareFunc(a.Conds, b.Conds, compareConds)
}

func compareConds(a, b Cond) int {
	for _, pair := range [][2]uint64{
		{uint64(a.Arg), uint64(b.Arg)},
		{uint64(a.Op), uint64(b.Op)},
		{a.Value, b.Value},
		{a.Value2, b.Value2},
	} {
		switch {
		case pair[0] < pair[1]:
			return -1
		case pair[0] > pair[1]:
			return 1
		}
	}
	return 0
}

// Validate checks that the policy can be compiled: known architecture and actions, at most one condition on each
// argument of a rule (libseccomp's limit), and no two rules that decide one call differently.
func (p Policy) Validate() error {
	if sysno.Table(p.Arch) == nil {
		return fmt.Errorf("no filters are built for architecture %q", p.Arch)
	}
	if !p.Default.valid() && p.Default != ActNotify {
		return fmt.Errorf("default action %#x is not valid", uint32(p.Default))
	}
	if !slices.IsSortedFunc(p.Rules, compareRules) {
		return errors.New("rules are not in canonical order")
	}
	for _, r := range p.Rules {
		if err := r.validate(); err != nil {
			return fmt.Errorf("rule for %s: %w", p.callName(r.Number), err)
		}
	}
	return p.contradiction()
}

func (r Rule) validate() error {
	if !r.Action.valid() {
		return fmt.Errorf("action %#x is not valid", uint32(r.Action))
	}
	if r.Number >= x32Bit {
		return fmt.Errorf("number %#x is outside of the native table", r.Number)
	}
	seen := [6]bool{}
	for _, c := range r.Conds {
		switch {
		case c.Arg > 5:
			return fmt.Errorf("argument index %d is above 5", c.Arg)
		case c.Op < OpNotEqual || c.Op > OpMaskedEqual:
			return fmt.Errorf("comparison %d is not valid", c.Op)
		case seen[c.Arg]:
			return fmt.Errorf("two conditions on argument %d; one rule can hold only one for each argument", c.Arg)
		}
		seen[c.Arg] = true
	}
	return nil
}

// maxRulesPerCall bounds the work of comparing the rules of one call with each other.
const maxRulesPerCall = 256

// contradiction looks for a call that two rules decide differently.
func (p Policy) contradiction() error {
	for lo := 0; lo < len(p.Rules); {
		rules := p.rulesOf(p.Rules[lo].Number)
		lo += len(rules)
		if len(rules) > maxRulesPerCall {
			return fmt.Errorf("%s: %d rules for one call are more than the limit of %d", p.callName(rules[0].Number), len(rules), maxRulesPerCall)
		}
		if p.uniform(rules) {
			continue
		}
		if len(rules[1].Conds) == 0 {
			return fmt.Errorf("%s: both %q and %q without a condition: %w",
				p.callName(rules[0].Number), rules[0].Action, rules[1].Action, ErrAmbiguous)
		}
		for _, args := range witnesses(rules) {
			var first *Rule
			for i, r := range rules {
				if len(r.Conds) == 0 || !r.match(args) {
					continue
				}
				if first != nil && first.Action != r.Action {
					return fmt.Errorf("%s with arguments %#x: both %q and %q: %w",
						p.callName(r.Number), args, first.Action, r.Action, ErrAmbiguous)
				}
				first = &rules[i]
			}
		}
	}
	return nil
}

func (p Policy) callName(number uint32) string {
	if name := sysno.Name(p.Arch, number); name != "" {
		return name
	}
	return fmt.Sprintf("system call %d", number)
}

// Digest identifies the policy by its content: equal digests mean equal decisions on every call.
func (p Policy) Digest() string {
	h := sha256.New()
	b := append([]byte("nucleus seccomp policy 1\n"+p.Arch+"\n"), 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(p.Default))
	for _, r := range p.Rules {
		b = binary.LittleEndian.AppendUint32(b, r.Number)
		b = binary.LittleEndian.AppendUint32(b, uint32(r.Action))
		b = append(b, byte(len(r.Conds)))
		for _, c := range r.Conds {
			b = append(b, c.Arg, byte(c.Op))
			b = binary.LittleEndian.AppendUint64(b, c.Value)
			b = binary.LittleEndian.AppendUint64(b, c.Value2)
		}
	}
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}
