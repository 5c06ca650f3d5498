package bpf

import (
	"strings"
	"testing"
)

func TestRunInterpretsEachInstruction(t *testing.T) {
	args := [6]uint64{0x1_0000_0005, 2, 3, 4, 5, 0xaaaa_bbbb_cccc_dddd}
	data := Data{Number: 7, Arch: 9, IP: 0x1122_3344_5566_7788, Args: args}
	load := func(offset uint32) Instruction { return Instruction{Op: LoadAbs, K: offset} }
	// One jump: 1 when taken, 2 when not.
	jump := func(offset uint32, op uint16, k uint32) Program {
		return Program{load(offset), {Op: op, JT: 0, JF: 1, K: k}, {Op: Return, K: 1}, {Op: Return, K: 2}}
	}
	for name, tc := range map[string]struct {
		program Program
		want    uint32
	}{
		"number":                   {jump(0, JumpEqual, 7), 1},
		"architecture":             {jump(4, JumpEqual, 9), 1},
		"low half of pointer":      {jump(8, JumpEqual, 0x5566_7788), 1},
		"high half of pointer":     {jump(12, JumpEqual, 0x1122_3344), 1},
		"low half of argument 0":   {jump(16, JumpEqual, 5), 1},
		"high half of argument 0":  {jump(20, JumpEqual, 1), 1},
		"low half of argument 5":   {jump(56, JumpEqual, 0xcccc_dddd), 1},
		"high half of argument 5":  {jump(60, JumpEqual, 0xaaaa_bbbb), 1},
		"equal not taken":          {jump(0, JumpEqual, 8), 2},
		"greater taken":            {jump(0, JumpGreater, 6), 1},
		"greater at the edge":      {jump(0, JumpGreater, 7), 2},
		"greater or equal at edge": {jump(0, JumpGreaterE, 7), 1},
		"greater or equal above":   {jump(0, JumpGreaterE, 8), 2},
		"set taken":                {jump(0, JumpSet, 4), 1},
		"set not taken":            {jump(0, JumpSet, 8), 2},
		"always": {
			Program{{Op: JumpAlways, K: 1}, {Op: Return, K: 1}, {Op: Return, K: 2}}, 2,
		},
		"and": {
			Program{load(0), {Op: And, K: 5}, {Op: JumpEqual, JF: 1, K: 5}, {Op: Return, K: 1}, {Op: Return, K: 2}}, 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Parse(tc.program.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := p.Run(data); got != tc.want {
				t.Errorf("verdict %d, want %d", got, tc.want)
			}
		})
	}
}

func TestParseRefusesWhatIsNoFilter(t *testing.T) {
	ret := Instruction{Op: Return}
	for name, tc := range map[string]struct {
		raw  []byte
		want string
	}{
		"empty":             {nil, "empty"},
		"cut off":           {make([]byte, 12), "cut off"},
		"too long":          {make([]byte, (MaxInstructions+1)*InstructionSize), "limit"},
		"no return":         {Program{{Op: LoadAbs}}.Bytes(), "return"},
		"jump beyond end":   {Program{{Op: JumpEqual, JT: 1}, ret}.Bytes(), "jumps out"},
		"else beyond end":   {Program{{Op: JumpSet, JF: 1}, ret}.Bytes(), "jumps out"},
		"huge jump":         {Program{{Op: JumpAlways, K: ^uint32(0)}, ret}.Bytes(), "jumps out"},
		"unaligned load":    {Program{{Op: LoadAbs, K: 2}, ret}.Bytes(), "offset"},
		"load beyond data":  {Program{{Op: LoadAbs, K: 64}, ret}.Bytes(), "offset"},
		"packet load (LDB)": {Program{{Op: 0x30}, ret}.Bytes(), "opcode"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(tc.raw)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}
