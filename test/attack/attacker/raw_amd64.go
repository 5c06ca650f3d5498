package attacker

// int80 makes a system call by the 32-bit door.
func int80(nr, a, b, c uint32) int32

const haveInt80 = true
