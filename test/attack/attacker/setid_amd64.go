package attacker

import "golang.org/x/sys/unix"

// legacyModeCalls are those that newer architectures have no more.
var legacyModeCalls = map[string]uintptr{"chmod": unix.SYS_CHMOD, "open": unix.SYS_OPEN, "mknod": unix.SYS_MKNOD, "creat": unix.SYS_CREAT}
