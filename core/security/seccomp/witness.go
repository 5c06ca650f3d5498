package seccomp

import "slices"

const (
	// maxWitnesses bounds the product of all interesting values of all arguments of one call.
	maxWitnesses = 1 << 16
	// maxValues bounds the interesting values of one argument.
	maxValues = 1 << 12
)

// witnesses returns argument vectors at and just off the edge of every condition of the rules. BPF sees 32 bits at a time,
// so compiled conditions compare halves: every upper half that matters is tried with every lower half. That finds what
// libseccomp makes of several ranges on one argument, and is where filters have been slipped past (CVE-2019-10063).
func witnesses(rules []Rule) [][6]uint64 {
	var values [6][]uint64
	product := 1
	for arg := range values {
		var conds []Cond
		for _, r := range rules {
			for _, c := range r.Conds {
				if int(c.Arg) == arg {
					conds = append(conds, c)
				}
			}
		}
		if conds != nil {
			values[arg] = interestingValues(conds)
			product = min(product*len(values[arg]), maxWitnesses+1)
		}
	}
	if product <= maxWitnesses {
		return crossProduct(values)
	}
	return neighbours(rules, values)
}

// interestingValues combines the halves of all edges, or where those are too many, of each condition's own.
func interestingValues(conds []Cond) []uint64 {
	var all []uint64
	for _, c := range conds {
		all = append(all, c.edges()...)
	}
	if values := combineHalves(all); values != nil {
		return values
	}
	var values []uint64
	for _, c := range conds {
		values = append(values, combineHalves(c.edges())...)
	}
	return sortedUnique(values)
}

// combineHalves returns nil if there would be more than maxValues.
func combineHalves(values []uint64) []uint64 {
	upper, lower := []uint64{0, 0xffffffff}, []uint64{0, 0xffffffff}
	for _, v := range values {
		upper, lower = append(upper, v>>32), append(lower, v&0xffffffff)
	}
	upper, lower = sortedUnique(upper), sortedUnique(lower)
	if len(upper)*len(lower) > maxValues {
		return nil
	}
	combined := make([]uint64, 0, len(upper)*len(lower))
	for _, u := range upper {
		for _, l := range lower {
			combined = append(combined, u<<32|l)
		}
	}
	return combined
}

func sortedUnique(values []uint64) []uint64 {
	slices.Sort(values)
	return slices.Compact(values)
}

// edges returns values on both sides of the condition, in either half.
func (c Cond) edges() []uint64 {
	const one = uint64(1)<<32 | 1
	if c.Op != OpMaskedEqual {
		return []uint64{c.Value, c.Value - one, c.Value + one, c.Value - 1, c.Value + 1}
	}
	low := c.Value & -c.Value
	top := c.Value
	for top&(top-1) != 0 {
		top &= top - 1
	}
	return []uint64{c.Value2, c.Value2 | ^c.Value, c.Value2 ^ low, c.Value2 ^ top, c.Value2 ^ one}
}

func crossProduct(values [6][]uint64) [][6]uint64 {
	vectors := [][6]uint64{{}}
	for arg, vs := range values {
		if vs == nil {
			continue
		}
		next := make([][6]uint64, 0, len(vectors)*len(vs))
		for _, vector := range vectors {
			for _, v := range vs {
				vector[arg] = v
				next = append(next, vector)
			}
		}
		vectors = next
	}
	return vectors
}

// neighbours varies one argument at a time around vectors that each rule matches, and puts every pair of rules together,
// which finds the overlap of two rules without the whole product.
func neighbours(rules []Rule, values [6][]uint64) [][6]uint64 {
	var vectors [][6]uint64
	for i, a := range rules {
		base := satisfy([6]uint64{}, a)
		vectors = append(vectors, base)
		for arg, vs := range values {
			if len(rules)*len(vs) > maxWitnesses {
				vs = a.ownValues(arg)
			}
			for _, v := range vs {
				vector := base
				vector[arg] = v
				vectors = append(vectors, vector)
			}
		}
		for _, b := range rules[i+1:] {
			vectors = append(vectors, satisfy(satisfy([6]uint64{}, b), a))
		}
	}
	return vectors
}

func (r Rule) ownValues(arg int) []uint64 {
	for _, c := range r.Conds {
		if int(c.Arg) == arg {
			return combineHalves(c.edges())
		}
	}
	return nil
}

// satisfy changes base so that the rule matches, leaving arguments alone that match already. An impossible condition
// (less than nothing) stays unmatched.
func satisfy(base [6]uint64, r Rule) [6]uint64 {
	for _, c := range r.Conds {
		if c.Match(base) {
			continue
		}
		switch c.Op {
		case OpNotEqual, OpGreater:
			base[c.Arg] = c.Value + 1
		case OpLess:
			base[c.Arg] = c.Value - 1
		case OpMaskedEqual:
			base[c.Arg] = base[c.Arg]&^c.Value | c.Value2
		case OpLessEqual, OpEqual, OpGreaterEqual:
			base[c.Arg] = c.Value
		}
	}
	return base
}
