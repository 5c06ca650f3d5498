// Package bpf owns the reading of compiled filters: it decodes, checks and interprets classic BPF programs as seccomp
// runs them. It knows the instructions that libseccomp emits and refuses all others, so that a file which is not one of
// our filters is never mistaken for one.
package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// MaxInstructions is the kernel's limit on one filter (BPF_MAXINSNS).
	MaxInstructions = 4096
	// InstructionSize is the size of struct sock_filter.
	InstructionSize = 8

	dataSize = 64 // sizeof(struct seccomp_data)
)

// The opcodes in use: class | size/operation | mode/source, as in linux/bpf_common.h.
const (
	LoadAbs      = 0x20
	And          = 0x54
	JumpAlways   = 0x05
	JumpEqual    = 0x15
	JumpGreater  = 0x25
	JumpGreaterE = 0x35
	JumpSet      = 0x45
	Return       = 0x06
)

// Instruction is one struct sock_filter.
type Instruction struct {
	Op     uint16
	JT, JF uint8
	K      uint32
}

// Data is what the kernel shows to a filter about one call (struct seccomp_data).
type Data struct {
	Number uint32
	Arch   uint32
	IP     uint64
	Args   [6]uint64
}

// Program is a decoded and checked filter.
type Program []Instruction

// Parse decodes a filter in the byte order of the architectures in use, little endian, and checks it as the kernel
// would (bpf_check_classic, seccomp_check_filter), more strictly about opcodes.
func Parse(raw []byte) (Program, error) {
	switch {
	case len(raw) == 0:
		return nil, errors.New("filter is empty")
	case len(raw)%InstructionSize != 0:
		return nil, fmt.Errorf("filter of %d bytes is cut off", len(raw))
	case len(raw)/InstructionSize > MaxInstructions:
		return nil, fmt.Errorf("filter of %d instructions is above the kernel's limit of %d", len(raw)/InstructionSize, MaxInstructions)
	}
	p := make(Program, len(raw)/InstructionSize)
	for i := range p {
		b := raw[i*InstructionSize:]
		p[i] = Instruction{binary.LittleEndian.Uint16(b), b[2], b[3], binary.LittleEndian.Uint32(b[4:])}
	}
	return p, p.check()
}

func (p Program) check() error {
	for i, in := range p {
		rest := uint64(len(p) - i - 1)
		switch in.Op {
		case LoadAbs:
			if in.K%4 != 0 || in.K >= dataSize {
				return fmt.Errorf("instruction %d loads offset %d", i, in.K)
			}
		case And, Return:
		case JumpAlways:
			if uint64(in.K) >= rest {
				return fmt.Errorf("instruction %d jumps out of the filter", i)
			}
		case JumpEqual, JumpGreater, JumpGreaterE, JumpSet:
			if uint64(in.JT) >= rest || uint64(in.JF) >= rest {
				return fmt.Errorf("instruction %d jumps out of the filter", i)
			}
		default:
			return fmt.Errorf("instruction %d has opcode %#x, which no filter of ours uses", i, in.Op)
		}
	}
	if p[len(p)-1].Op != Return {
		return errors.New("filter does not end in a return")
	}
	return nil
}

// Bytes encodes the program.
func (p Program) Bytes() []byte {
	raw := make([]byte, 0, len(p)*InstructionSize)
	for _, in := range p {
		raw = binary.LittleEndian.AppendUint16(raw, in.Op)
		raw = append(raw, in.JT, in.JF)
		raw = binary.LittleEndian.AppendUint32(raw, in.K)
	}
	return raw
}

// Run returns what the filter says of a call, and how many instructions that took. Jumps go forward only, so it ends.
func (p Program) Run(d Data) (verdict uint32, steps int) {
	var a uint32
	for pc := 0; pc < len(p); pc++ {
		in := p[pc]
		steps++
		switch in.Op {
		case LoadAbs:
			a = d.word(in.K)
			continue
		case And:
			a &= in.K
			continue
		case JumpAlways:
			pc += int(in.K)
			continue
		case Return:
			return in.K, steps
		}
		pc += in.skip(a)
	}
	return 0, steps
}

// skip is how many instructions a conditional jump leaves out.
func (in Instruction) skip(a uint32) int {
	taken := false
	switch in.Op {
	case JumpEqual:
		taken = a == in.K
	case JumpGreater:
		taken = a > in.K
	case JumpGreaterE:
		taken = a >= in.K
	case JumpSet:
		taken = a&in.K != 0
	}
	if taken {
		return int(in.JT)
	}
	return int(in.JF)
}

// word reads the seccomp_data at a byte offset, little endian.
func (d Data) word(offset uint32) uint32 {
	switch offset {
	case 0:
		return d.Number
	case 4:
		return d.Arch
	case 8:
		return uint32(d.IP)
	case 12:
		return uint32(d.IP >> 32)
	}
	arg := d.Args[(offset-16)/8]
	if offset%8 == 4 {
		arg >>= 32
	}
	return uint32(arg)
}
