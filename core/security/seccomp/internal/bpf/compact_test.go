package bpf

import (
	"testing"

	"pgregory.net/rapid"
)

// chain is a filter as libseccomp makes them: the architecture, then one number after the
// other. With arg, a number's answer depends on its first argument.
func chain(t *rapid.T, count int) (Program, []uint32) {
	var rest Program
	edges := []uint32{0, 1<<31 - 1, 1 << 31, ^uint32(0)}
	number := uint32(0)
	for range count {
		number += rapid.Uint32Range(1, 3).Draw(t, "gap")
		verdict := rapid.Uint32Range(1, 3).Draw(t, "verdict")
		edges = append(edges, number-1, number, number+1)
		op := rapid.SampledFrom([]uint16{JumpEqual, JumpEqual, JumpEqual, JumpGreater, JumpGreaterE}).Draw(t, "op")
		k := number
		if op != JumpEqual {
			k = number + 500 // above most: a range
			edges = append(edges, k-1, k, k+1)
		}
		if rapid.IntRange(0, 4).Draw(t, "argument") == 0 {
			rest = append(rest, Instruction{Op: JumpEqual, JF: 6, K: k}, Instruction{Op: LoadAbs, K: 16}, Instruction{Op: And, K: 6},
				Instruction{Op: JumpSet, JT: 1, K: 4}, Instruction{Op: JumpAlways, K: 1}, Instruction{Op: Return, K: verdict}, Instruction{Op: Return, K: verdict + 1})
			continue
		}
		if rapid.IntRange(0, 4).Draw(t, "any argument") == 0 {
			rest = append(rest, Instruction{Op: JumpEqual, JF: 7, K: k})
			rest = append(rest, anyValue(Instruction{Op: Return, K: verdict}, Instruction{Op: Return, K: verdict + 1})...)
			continue
		}
		rest = append(rest, Instruction{Op: op, JF: 1, K: k}, Instruction{Op: Return, K: verdict})
	}
	rest = append(rest, Instruction{Op: Return, K: 9})
	head := Program{{Op: LoadAbs, K: 4}, {Op: JumpEqual, JT: 1, K: 77}, {Op: Return, K: 8}, {Op: LoadAbs, K: 0}}
	return append(head, rest...), edges
}

// anyValue is what libseccomp makes of a rule without conditions beside others of its call.
func anyValue(yes, no Instruction) Program {
	return Program{{Op: LoadAbs, K: 20}, {Op: JumpGreater, JT: 3}, {Op: JumpEqual, JF: 3}, {Op: LoadAbs, K: 16}, {Op: JumpGreaterE, JF: 1}, yes, no}
}

func TestCompactDropsWhatNothingReaches(t *testing.T) {
	p := Program{{Op: LoadAbs, K: 4}, {Op: JumpEqual, JT: 1, K: 77}, {Op: Return, K: 8}, {Op: LoadAbs, K: 0}}
	for n := range uint32(5) {
		p = append(p, Instruction{Op: JumpEqual, JF: 1, K: n}, Instruction{Op: Return, K: 1})
	}
	p = append(p, Instruction{Op: JumpEqual, JF: 7, K: 5})
	p = append(append(p, anyValue(Instruction{Op: Return, K: 1}, Instruction{Op: Return, K: 2})...), Instruction{Op: Return, K: 3})
	for _, in := range p.Compact() {
		if in.Op == Return && in.K == 2 {
			t.Errorf("it is there: %v", p.Compact())
		}
	}
}

func TestCompactSaysTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, edges := chain(t, rapid.IntRange(1, 400).Draw(t, "count"))
		q := p.Compact()
		if len(q) > len(p) {
			t.Fatalf("%d instructions from %d", len(q), len(p))
		}
		if _, err := Parse(q.Bytes()); err != nil {
			t.Fatal(err)
		}
		for _, n := range edges {
			for _, d := range []Data{{Number: n, Arch: 77}, {Number: n, Arch: 77, Args: [6]uint64{4}}, {Number: n, Arch: 77, Args: [6]uint64{2}}, {Number: n, Arch: 78}} {
				got, _ := q.Run(d)
				if want, _ := p.Run(d); got != want {
					t.Fatalf("%+v: %d, want %d", d, got, want)
				}
			}
		}
	})
}

func TestCompactMakesRanges(t *testing.T) {
	p := Program{{Op: LoadAbs, K: 4}, {Op: JumpEqual, JT: 1, K: 77}, {Op: Return, K: 8}, {Op: LoadAbs, K: 0}}
	for n := range uint32(300) {
		p = append(p, Instruction{Op: JumpEqual, JF: 1, K: n}, Instruction{Op: Return, K: 1})
	}
	p = append(p, Instruction{Op: Return, K: 2})
	if q := p.Compact(); len(q) != 7 {
		t.Errorf("%d instructions for one range: %v", len(q), q)
	}
}

// Only the comparisons that are too far from their answers have a jump of their own.
func TestCompactOfManyRanges(t *testing.T) {
	const ranges, size = 300, 3
	p := Program{{Op: LoadAbs, K: 4}, {Op: JumpEqual, JT: 1, K: 77}, {Op: Return, K: 8}, {Op: LoadAbs, K: 0}}
	for n := range uint32(ranges * size) {
		p = append(p, Instruction{Op: JumpEqual, JF: 1, K: n}, Instruction{Op: Return, K: n / size % 2})
	}
	p = append(p, Instruction{Op: Return, K: ranges % 2})
	q := p.Compact()
	// For each range a comparison, and a jump for some.
	if len(q) > ranges+ranges/2 {
		t.Errorf("%d instructions from %d", len(q), len(p))
	}
	for n := range uint32(ranges*size + 1) {
		if got, _ := q.Run(Data{Number: n, Arch: 77}); got != n/size%2 {
			t.Errorf("%d: %d", n, got)
		}
	}
}

func TestCompactLeavesWhatItDoesNotKnow(t *testing.T) {
	ret := Instruction{Op: Return, K: 1}
	for name, p := range map[string]Program{
		"no architecture":   {{Op: LoadAbs, K: 0}, {Op: JumpEqual, K: 5}, ret, ret},
		"another beginning": {ret},
		"bits of the number": {
			{Op: LoadAbs, K: 4}, {Op: JumpEqual, JT: 1, K: 77}, ret, {Op: LoadAbs, K: 0}, {Op: JumpSet, JF: 1, K: 4}, ret, {Op: JumpEqual, JF: 1, K: 4}, ret, {Op: Return, K: 2},
		},
		"a foreign architecture that is asked more": {
			{Op: LoadAbs, K: 4}, {Op: JumpEqual, JT: 1, K: 77}, {Op: LoadAbs, K: 0}, {Op: JumpEqual, JF: 1, K: 4}, ret, {Op: Return, K: 2},
		},
	} {
		if q := p.Compact(); len(q) != len(p) || &q[0] != &p[0] {
			t.Errorf("%s: %v", name, q)
		}
	}
}
