#include "textflag.h"

// handler runs on the monitor's alternate stack, called as C calls: the frame that the
// kernel made keeps every register.
TEXT handler<>(SB), NOSPLIT|NOFRAME, $0
	MOVL	$29, DI           // PR_SET_TIMERSLACK
	MOVL	$1000000, SI      // nanoseconds
	MOVL	$0, DX
	MOVL	$0, R10
	MOVL	$0, R8
	MOVL	$157, AX          // prctl
	SYSCALL
	RET

TEXT restorer<>(SB), NOSPLIT|NOFRAME, $0
	MOVL	$15, AX           // rt_sigreturn
	SYSCALL
	INT	$3

// func entries() (handler, restorer uintptr)
TEXT ·entries(SB), NOSPLIT, $0-16
	LEAQ	handler<>(SB), AX
	MOVQ	AX, handler+0(FP)
	LEAQ	restorer<>(SB), AX
	MOVQ	AX, restorer+8(FP)
	RET
