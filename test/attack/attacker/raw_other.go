//go:build !amd64

package attacker

func int80(nr, a, b, c uint32) int32 { return -38 } // ENOSYS: this machine has no such door

const haveInt80 = false
