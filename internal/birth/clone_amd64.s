#include "textflag.h"

// func cloneRun(args *cloneArgs, size uintptr, program *step, outcome *outcome, all, old *uint64, slack uintptr) (pid, errno uintptr)
//
// In the parent it returns like a system call. The child, on the stack that args
// names, carries out the program and never returns: it runs no Go code, for its
// memory is the parent's and the Go runtime knows nothing of it.
//
// All signals are blocked meanwhile: until the child has put its handlers to their
// defaults, they are the Go runtime's. It is here, where no goroutine is preempted, that
// the mask is set and set back, or it would take runtime.LockOSThread to do both on one
// thread, the first of which has Go's runtime start a thread more. So it is with how late
// this thread's timers may be, which the child inherits (processors.Slack).
TEXT ·cloneRun(SB), NOSPLIT, $0-72
	MOVQ	$2, DI // SIG_SETMASK
	MOVQ	all+32(FP), SI
	MOVQ	old+40(FP), DX
	MOVQ	$8, R10
	MOVQ	$14, AX // rt_sigprocmask
	SYSCALL
	MOVQ	slack+48(FP), SI
	TESTQ	SI, SI
	JZ	punctual
	MOVQ	$29, DI // PR_SET_TIMERSLACK
	XORL	DX, DX
	XORL	R10, R10
	XORL	R8, R8
	MOVQ	$157, AX // prctl
	SYSCALL
punctual:
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	program+16(FP), R12
	MOVQ	outcome+24(FP), R13
	MOVQ	$435, AX // clone3
	SYSCALL
	TESTQ	AX, AX
	JZ	next
	MOVQ	AX, BX
	MOVQ	$2, DI
	MOVQ	old+40(FP), SI
	MOVQ	$0, DX
	MOVQ	$8, R10
	MOVQ	$14, AX
	SYSCALL
	CMPQ	BX, $0xfffffffffffff001
	JCS	parent
	NEGQ	BX
	MOVQ	$0, pid+56(FP)
	MOVQ	BX, errno+64(FP)
	RET
parent:
	MOVQ	BX, pid+56(FP)
	MOVQ	$0, errno+64(FP)
	RET

	// R12 is the current step, R13 the outcome; the kernel preserves both.
next:
	MOVQ	0(R12), AX  // nr
	MOVQ	8(R12), DI
	MOVQ	16(R12), SI
	MOVQ	24(R12), DX
	MOVQ	32(R12), R10
	MOVQ	40(R12), R8
	MOVQ	48(R12), R9
	SYSCALL
	MOVQ	56(R12), CX // check
	ADDQ	$64, R12
	TESTQ	CX, CX      // ignore: whatever the result
	JZ	next
	CMPQ	AX, $0xfffffffffffff001
	JCC	failed
	CMPQ	CX, $2      // one: the result must be 1
	JNE	next
	CMPQ	AX, $1
	JEQ	next
	MOVQ	$-125, AX   // ECANCELED: the parent gave up
failed:
	NEGQ	AX
	MOVQ	AX, 0(R13)
	MOVQ	R12, 8(R13)
	MOVQ	$231, AX    // exit_group
	MOVQ	$1, DI
	SYSCALL
	INT	$3
