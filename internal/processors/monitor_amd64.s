#include "go_asm.h"
#include "textflag.h"

// late runs on whatever thread gets the signal, and is for one.
TEXT late<>(SB), NOSPLIT|NOFRAME, $0
	MOVL	$186, AX          // gettid
	SYSCALL
	CMPL	AX, ·monitor(SB)
	JNE	other
	MOVL	$29, DI           // PR_SET_TIMERSLACK
	MOVQ	$const_lateBy, SI
	XORL	DX, DX
	XORL	R10, R10
	XORL	R8, R8
	MOVL	$157, AX          // prctl
	SYSCALL
	MOVL	$1, ·isLate(SB)
other:
	RET

TEXT restorer<>(SB), NOSPLIT|NOFRAME, $0
	MOVL	$15, AX           // rt_sigreturn
	SYSCALL
	INT	$3

// func entries() (handler, restorer uintptr)
TEXT ·entries(SB), NOSPLIT, $0-16
	LEAQ	late<>(SB), AX
	MOVQ	AX, handler+0(FP)
	LEAQ	restorer<>(SB), AX
	MOVQ	AX, restorer+8(FP)
	RET
