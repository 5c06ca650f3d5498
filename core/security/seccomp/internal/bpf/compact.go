package bpf

import (
	"math"
	"slices"
)

// Compact gives a program that says the same of every call and is not longer: numbers of
// calls beside each other that meet with the same answer are one range of a binary search,
// where libseccomp compares with each of them. The kernel translates a filter for each
// process that loads one, and tries it with every number (seccomp_cache_prepare()), so
// that a third of the instructions is a third of the time. What a program is not understood
// well enough for is left as it is.
func (p Program) Compact() Program {
	if len(p) < 3 || p[0] != (Instruction{Op: LoadAbs, K: offsetArch}) || p[1].Op != JumpEqual {
		return p
	}
	foreign := p[min(2+int(p[1].JF), len(p)-1)]
	c := compactor{from: p.decided(), arch: p[1].K}
	if foreign.Op != Return || !c.divide() {
		return p
	}
	c.collect()
	for far := make([]bool, len(c.ranges)); ; {
		head := Program{p[0], {Op: JumpEqual, JT: 1, K: c.arch}, foreign, {Op: LoadAbs, K: offsetNumber}}
		out, more, ok := c.assemble(head, far)
		switch {
		case !ok || len(out) >= len(p):
			return p
		case !more:
			return out
		}
	}
}

// decided makes plain jumps of comparisons that have one outcome. libseccomp writes a rule
// without conditions beside others of the same call as "at least 0", and what a call gets
// otherwise is then said where nothing comes.
func (p Program) decided() Program {
	from := make([]int, len(p)) // how many ways lead to an instruction
	for i, in := range p {
		switch in.Op {
		case Return:
		case JumpAlways:
			from[i+1+int(in.K)]++
		case LoadAbs, And:
			from[i+1]++
		default:
			from[i+1+int(in.JT)]++
			from[i+1+int(in.JF)]++
		}
	}
	out := slices.Clone(p)
	for i, in := range p {
		if in.K != 0 {
			continue
		}
		// Not more than 0 is 0.
		left := in.Op == JumpEqual && from[i] == 1 && i > 0 && p[i-1].Op == JumpGreater && p[i-1].K == 0 && p[i-1].JF == 0
		if in.Op == JumpGreaterE || left {
			out[i] = Instruction{Op: JumpAlways, K: uint32(in.JT)}
		}
	}
	return out
}

const (
	offsetNumber = 0
	offsetArch   = 4
)

// compactor takes a program apart: into ranges of numbers, and the instructions that
// answer, which look at a call's arguments or return.
type compactor struct {
	from   Program
	arch   uint32
	ranges []numbers
	tail   []int // the answering instructions that are in use, in their order
}

// numbers is a range that ends where the next begins, and where its answer begins.
type numbers struct {
	first  uint32
	answer int
}

// divide finds the ranges: an answer can only change where a number is compared.
func (c *compactor) divide() bool {
	edges := []uint32{0}
	for _, in := range c.from {
		switch in.Op {
		case JumpEqual:
			edges = append(edges, in.K, in.K+1) // behind the last number is 0 again
		case JumpGreater:
			edges = append(edges, in.K+1)
		case JumpGreaterE:
			edges = append(edges, in.K)
		}
	}
	slices.Sort(edges)
	returns := map[uint32]int{}
	for _, n := range slices.Compact(edges) {
		at, ok := c.answer(n)
		if !ok {
			return false
		}
		if in := c.from[at]; in.Op == Return {
			if same, ok := returns[in.K]; ok {
				at = same
			}
			returns[in.K] = at
		}
		if k := len(c.ranges); k == 0 || c.ranges[k-1].answer != at {
			c.ranges = append(c.ranges, numbers{n, at})
		}
	}
	return true
}

// answer follows the program with a number until it returns, or loads something else.
func (c *compactor) answer(number uint32) (at int, ok bool) {
	var a uint32
	for at < len(c.from) {
		in := c.from[at]
		at++
		switch in.Op {
		case LoadAbs:
			switch in.K {
			case offsetNumber:
				a = number
			case offsetArch:
				a = c.arch
			default:
				return at - 1, true
			}
		case JumpAlways:
			at += int(in.K)
		case Return:
			return at - 1, true
		case JumpEqual, JumpGreater, JumpGreaterE:
			at += in.skip(a)
		default:
			return 0, false // bits of the number: it is no range
		}
	}
	return 0, false
}

// collect finds what answers, from the ranges on.
func (c *compactor) collect() {
	used := make([]bool, len(c.from))
	for _, r := range c.ranges {
		used[r.answer] = true
	}
	for i, in := range c.from {
		if !used[i] {
			continue
		}
		c.tail = append(c.tail, i)
		switch in.Op {
		case Return:
		case JumpAlways:
			used[i+1+int(in.K)] = true
		case LoadAbs, And:
			used[i+1] = true
		default:
			used[i+1+int(in.JT)], used[i+1+int(in.JF)] = true, true
		}
	}
}

// jump is one whose way is only known when all is laid out: to an instruction of from.
type jump struct {
	at, to int
	leaf   int // the range that it is from
	always bool
	taken  bool
}

// assemble lays out head, the search, and the answers. Comparisons jump to the answers, which
// is possible over 255 instructions; those of ranges that are far have a jump of their own for
// it, and more tells that it has found further ones.
func (c *compactor) assemble(out Program, far []bool) (_ Program, more, ok bool) {
	var jumps []jump
	fits := true
	var search func(lo, hi int)
	search = func(lo, hi int) {
		if hi-lo == 1 {
			jumps = append(jumps, jump{at: len(out), to: c.ranges[lo].answer, leaf: lo, always: true})
			out = append(out, Instruction{Op: JumpAlways})
			return
		}
		mid, at := (lo+hi)/2, len(out)
		out = append(out, Instruction{Op: JumpGreaterE, K: c.ranges[mid].first})
		if mid-lo == 1 && !far[lo] {
			jumps = append(jumps, jump{at: at, to: c.ranges[lo].answer, leaf: lo})
		} else {
			search(lo, mid)
		}
		if hi-mid == 1 && !far[mid] {
			jumps = append(jumps, jump{at: at, to: c.ranges[mid].answer, leaf: mid, taken: true})
			return
		}
		over := len(out) - at - 1
		fits = fits && over <= math.MaxUint8
		out[at].JT = uint8(over)
		search(mid, hi)
	}
	search(0, len(c.ranges))
	place := map[int]int{}
	for i, old := range c.tail {
		place[old] = len(out) + i
	}
	way := func(at, to int) uint8 {
		fits = fits && place[to]-at-1 <= math.MaxUint8
		return uint8(place[to] - at - 1)
	}
	for _, j := range jumps {
		over := place[j.to] - j.at - 1
		switch {
		case j.always:
			out[j.at].K = uint32(over)
		case over > math.MaxUint8:
			far[j.leaf], more = true, true
		case j.taken:
			out[j.at].JT = uint8(over)
		default:
			out[j.at].JF = uint8(over)
		}
	}
	for _, old := range c.tail {
		in, at := c.from[old], len(out)
		switch in.Op {
		case LoadAbs, And, Return:
		case JumpAlways:
			in.K = uint32(place[old+1+int(in.K)] - at - 1)
		default:
			in.JT, in.JF = way(at, old+1+int(in.JT)), way(at, old+1+int(in.JF))
		}
		out = append(out, in)
	}
	return out, more, fits
}
