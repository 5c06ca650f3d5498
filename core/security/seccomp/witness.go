package seccomp

import "slices"

// maxWitnesses bounds the product of all interesting values of all arguments of one call.
const maxWitnesses = 1 << 14

// witnesses returns argument vectors at and just off the edge of every condition of the rules, each also with the upper
// and lower halves disturbed: 32-bit arguments are where filters have been slipped past (CVE-2019-10063).
func witnesses(rules []Rule) [][6]uint64 {
	var values [6][]uint64
	product := 1
	for arg := range values {
		for _, r := range rules {
			for _, c := range r.Conds {
				if int(c.Arg) == arg {
					values[arg] = append(values[arg], c.edges()...)
				}
			}
		}
		if values[arg] != nil {
			values[arg] = append(values[arg], 0, ^uint64(0))
			slices.Sort(values[arg])
			values[arg] = slices.Compact(values[arg])
			product = min(product*len(values[arg]), maxWitnesses+1)
		}
	}
	if product <= maxWitnesses {
		return crossProduct(values)
	}
	return neighbours(rules, values)
}

// edges returns values on both sides of the condition.
func (c Cond) edges() []uint64 {
	const high = uint64(1) << 32
	var v []uint64
	if c.Op == OpMaskedEqual {
		low := c.Value & -c.Value
		top := c.Value
		for top&(top-1) != 0 {
			top &= top - 1
		}
		v = []uint64{c.Value2, c.Value2 | ^c.Value, c.Value2 ^ low, c.Value2 ^ top}
	} else {
		v = []uint64{c.Value, c.Value - 1, c.Value + 1}
	}
	return append(v, v[0]^high, v[0]|0xffffffff<<32)
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

// neighbours varies one argument at a time around vectors that each rule matches, and around every pair of rules put
// together, which finds the overlap of two rules without the whole product.
func neighbours(rules []Rule, values [6][]uint64) [][6]uint64 {
	var vectors [][6]uint64
	vary := func(base [6]uint64) {
		vectors = append(vectors, base)
		for arg, vs := range values {
			for _, v := range vs {
				vector := base
				vector[arg] = v
				vectors = append(vectors, vector)
			}
		}
	}
	for i, a := range rules {
		vary(satisfy([6]uint64{}, a, values))
		if len(rules) > 128 {
			continue
		}
		for _, b := range rules[i+1:] {
			vectors = append(vectors, satisfy(satisfy([6]uint64{}, b, values), a, values))
		}
	}
	return vectors
}

// satisfy changes base so that the rule matches, leaving arguments alone that match already.
func satisfy(base [6]uint64, r Rule, values [6][]uint64) [6]uint64 {
	for _, c := range r.Conds {
		if c.Match(base) {
			continue
		}
		for _, v := range values[c.Arg] {
			probe := base
			probe[c.Arg] = v
			if c.Match(probe) {
				base = probe
				break
			}
		}
	}
	return base
}
