package seccomp

import "syscall"

// SetIDPolicy is the policy that keeps a workload from making set-user-ID and set-group-ID files, as data. It is loaded
// on top of the workload's own filter when a directory of the host is writable inside: nosuid holds in the sandbox only,
// and on the host such a file lends its owner's identity to whoever executes it. The rules are those of systemd's
// RestrictSUIDSGID= (systemd.exec(5)). openat2 takes its mode from memory, which no filter sees; programs fall back to
// openat where a kernel lacks it.
func SetIDPolicy(goarch string) Policy {
	p := Policy{Arch: goarch, Default: ActAllow}
	add := adder(&p, nil)
	for _, bit := range []uint64{syscall.S_ISUID, syscall.S_ISGID} {
		has := func(arg uint8) Cond { return Cond{Arg: arg, Op: OpMaskedEqual, Value: bit, Value2: bit} }
		for name, arg := range map[string]uint8{"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "mknod": 1, "mknodat": 2, "creat": 1} {
			add(name, Errno(syscall.EPERM), has(arg))
		}
		// Without one of these flags the mode is whatever the register held.
		for _, flag := range []uint64{syscall.O_CREAT, tmpFile} {
			made := func(arg uint8) Cond { return Cond{Arg: arg, Op: OpMaskedEqual, Value: flag, Value2: flag} }
			add("open", Errno(syscall.EPERM), made(1), has(2))
			add("openat", Errno(syscall.EPERM), made(2), has(3))
		}
	}
	add("openat2", Errno(syscall.ENOSYS))
	p.Normalize()
	return p
}

// tmpFile is __O_TMPFILE of the kernel, without the O_DIRECTORY that goes with it.
const tmpFile = 0o20000000

// SetIDFilter returns the filter of [SetIDPolicy].
func SetIDFilter() Filter { return newFilter("setid", []byte(setidBPF)) }
