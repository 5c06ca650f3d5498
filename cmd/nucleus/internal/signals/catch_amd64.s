#include "textflag.h"

// handler runs on the alternate stack of whatever thread the kernel chose. It
// is called as C calls: the signal's number is in DI, and the frame that the
// kernel made keeps every register.
TEXT handler<>(SB), NOSPLIT|NOFRAME, $0
	MOVB	DI, -8(SP)        // the red zone
	MOVL	·pipeFD(SB), DI
	LEAQ	-8(SP), SI
	MOVL	$1, DX
	MOVL	$1, AX            // write; a full pipe loses the signal
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
