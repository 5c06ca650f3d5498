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

// func entry() uintptr
TEXT ·entry(SB), NOSPLIT, $0-8
	LEAQ	handler<>(SB), AX
	MOVQ	AX, ret+0(FP)
	RET
