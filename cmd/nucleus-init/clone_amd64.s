#include "textflag.h"

// func cloneShared(flags, stack uintptr, pidfd *int32, p *prepared) (pid, errno uintptr)
//
// In the parent it returns like a system call. The child calls child on the stack that
// begins below the address given, and never returns.
TEXT ·cloneShared(SB), NOSPLIT, $0-48
	MOVQ	flags+0(FP), DI
	MOVQ	stack+8(FP), SI
	MOVQ	pidfd+16(FP), DX
	MOVQ	p+24(FP), R12 // which the kernel preserves
	MOVQ	$0, R10
	MOVQ	$0, R8
	MOVQ	$56, AX // clone
	SYSCALL
	TESTQ	AX, AX
	JZ	child
	CMPQ	AX, $0xfffffffffffff001
	JCS	parent
	NEGQ	AX
	MOVQ	$0, pid+32(FP)
	MOVQ	AX, errno+40(FP)
	RET
parent:
	MOVQ	AX, pid+32(FP)
	MOVQ	$0, errno+40(FP)
	RET
child:
	MOVQ	R12, -64(SI) // its argument; clone has left the stack's address there
	LEAQ	-64(SI), SP
	CALL	·child(SB)
	INT	$3
