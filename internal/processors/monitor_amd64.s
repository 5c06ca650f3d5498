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

// func handler() uintptr
TEXT ·handler(SB), NOSPLIT, $0-8
	LEAQ	late<>(SB), AX
	MOVQ	AX, ret+0(FP)
	RET
