package seccomp

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/bpf"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/sysno"
)

var arches = []string{"amd64", "arm64"}

// built is an embedded filter of any architecture, with its interpreter.
type built struct {
	t       *testing.T
	arch    string
	raw     []byte
	program bpf.Program
}

func load(t *testing.T, name, goarch string) built {
	t.Helper()
	raw, err := os.ReadFile("filters/" + name + "_" + goarch + ".bpf")
	if err != nil {
		t.Fatal(err)
	}
	program, err := bpf.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return built{t, goarch, raw, program}
}

func (b built) number(name string) uint32 {
	b.t.Helper()
	n, ok := sysno.Number(b.arch, name)
	if !ok {
		b.t.Fatalf("%s has no %s", b.arch, name)
	}
	return n
}

func (b built) verdict(name string, args ...uint64) Action {
	b.t.Helper()
	d := bpf.Data{Number: b.number(name), Arch: auditArch(b.arch)}
	copy(d.Args[:], args)
	v, _ := b.program.Run(d)
	return Action(v)
}

// forBoth runs a test on the default filter of each architecture.
func forBoth(t *testing.T, filter string, test func(*testing.T, built)) {
	for _, goarch := range arches {
		t.Run(goarch, func(t *testing.T) { test(t, load(t, filter, goarch)) })
	}
}

const upper = uint64(1) << 32

func TestDefaultFilterDecidesByArguments(t *testing.T) {
	eperm, einval, eafnosupport, enopkg := Errno(syscall.EPERM), Errno(syscall.EINVAL), Errno(syscall.EAFNOSUPPORT), Errno(syscall.ENOPKG)
	noProtocol, noOption, enospc := Errno(syscall.EPROTONOSUPPORT), Errno(syscall.ENOPROTOOPT), Errno(syscall.ENOSPC)
	const flags = syscall.SOCK_CLOEXEC | syscall.SOCK_NONBLOCK
	forBoth(t, "default", func(t *testing.T, b built) {
		for _, tc := range []struct {
			name string
			args []uint64
			want Action
		}{
			{"clone", []uint64{uint64(syscall.SIGCHLD)}, ActAllow},
			{"clone", []uint64{0x3d0f00}, ActAllow}, // pthread_create of glibc
			{"clone", []uint64{syscall.CLONE_VM | syscall.CLONE_VFORK | uint64(syscall.SIGCHLD)}, ActAllow},
			{"clone", []uint64{syscall.CLONE_NEWNS}, eperm},
			{"clone", []uint64{0x02000000}, eperm}, // CLONE_NEWCGROUP
			{"clone", []uint64{syscall.CLONE_NEWUTS}, eperm},
			{"clone", []uint64{syscall.CLONE_NEWIPC}, eperm},
			{"clone", []uint64{syscall.CLONE_NEWUSER}, eperm},
			{"clone", []uint64{syscall.CLONE_NEWPID}, eperm},
			{"clone", []uint64{syscall.CLONE_NEWNET}, eperm},
			{"clone", []uint64{0x80}, eperm}, // CLONE_NEWTIME
			{"clone", []uint64{0x3d0f00 | syscall.CLONE_NEWUSER}, eperm},
			{"clone", []uint64{upper | syscall.CLONE_NEWUSER}, eperm},
			{"clone", []uint64{upper | uint64(syscall.SIGCHLD)}, ActAllow},

			{"ioctl", []uint64{0, tiocsti}, eperm},
			{"ioctl", []uint64{0, tioclinux}, eperm},
			{"ioctl", []uint64{0, tiocsetd}, eperm},
			{"ioctl", []uint64{0, tiocexcl}, eperm},
			{"ioctl", []uint64{0, upper | tiocexcl}, eperm},
			{"ioctl", []uint64{0, tcxonc, stopOutput}, eperm},
			{"ioctl", []uint64{0, upper | tcxonc, upper | stopOutput}, eperm},
			{"ioctl", []uint64{0, tcxonc, 1}, ActAllow},    // TCOON
			{"ioctl", []uint64{0, 0x540d, 0}, ActAllow},    // TIOCNXCL
			{"ioctl", []uint64{0, upper | tiocsti}, eperm}, // CVE-2019-10063
			{"ioctl", []uint64{0, 0xffffffff_00000000 | tioclinux}, eperm},
			{"ioctl", []uint64{0, 1<<63 | tiocsetd}, eperm},
			{"ioctl", []uint64{0, siocgifbr}, enopkg},
			{"ioctl", []uint64{0, siocgifbr + 1}, enopkg},
			{"ioctl", []uint64{0, upper | siocgifvlan}, enopkg},
			{"ioctl", []uint64{0, siocgifvlan + 1}, enopkg},
			{"ioctl", []uint64{0, siocbraddbr + 1}, enopkg},
			{"ioctl", []uint64{0, siocadddlci}, enopkg},
			{"ioctl", []uint64{0, siocadddlci + 1}, enopkg},
			{"ioctl", []uint64{0, snapshotCreate}, eperm},
			{"ioctl", []uint64{0, upper | snapshotCreateV2}, eperm},
			{"ioctl", []uint64{0, 0x40049409}, ActAllow},      // FICLONE
			{"ioctl", []uint64{0, siocbraddbr + 2}, ActAllow}, // SIOCBRADDIF asks for NET_ADMIN first
			{"ioctl", []uint64{0, 0x8910}, ActAllow},          // SIOCGIFNAME
			{"ioctl", []uint64{tiocsti, 0x5413}, ActAllow},    // TIOCGWINSZ on descriptor 0x5412
			{"ioctl", []uint64{0, 0x5401}, ActAllow},
			{"ioctl", []uint64{0, 0xffffffff_80045430}, ActAllow}, // TIOCGPTN sign-extended, as musl passes it

			{"socket", []uint64{syscall.AF_UNIX, syscall.SOCK_STREAM}, ActAllow},
			{"socket", []uint64{syscall.AF_INET, syscall.SOCK_DGRAM}, ActAllow},
			{"socket", []uint64{syscall.AF_INET6, syscall.SOCK_STREAM}, ActAllow},
			{"socket", []uint64{upper | syscall.AF_INET, upper | syscall.SOCK_STREAM, upper}, ActAllow}, // rubbish above an int is legal
			{"socket", []uint64{syscall.AF_INET, syscall.SOCK_STREAM | flags, 6}, ActAllow},
			{"socket", []uint64{syscall.AF_INET6, syscall.SOCK_STREAM | flags, 262}, ActAllow}, // MPTCP, which Go listens with
			{"socket", []uint64{syscall.AF_INET, syscall.SOCK_DGRAM | flags, 17}, ActAllow},
			{"socket", []uint64{syscall.AF_INET, syscall.SOCK_DGRAM, 1}, ActAllow},       // ping
			{"socket", []uint64{syscall.AF_INET6, syscall.SOCK_DGRAM, 58}, ActAllow},     // ping -6
			{"socket", []uint64{syscall.AF_INET, syscall.SOCK_RAW | flags, 2}, ActAllow}, // the kernel asks for NET_RAW
			{"socket", []uint64{syscall.AF_INET, syscall.SOCK_STREAM, 132}, noProtocol},  // SCTP
			{"socket", []uint64{syscall.AF_INET6, syscall.SOCK_SEQPACKET, 132}, noProtocol},
			{"socket", []uint64{syscall.AF_INET, syscall.SOCK_SEQPACKET, 0}, noProtocol},
			{"socket", []uint64{syscall.AF_INET, syscall.SOCK_DCCP, 0}, noProtocol}, // an alias of dccp_ipv4
			{"socket", []uint64{syscall.AF_INET6, syscall.SOCK_DCCP | flags, 33}, noProtocol},
			{"socket", []uint64{syscall.AF_INET, syscall.SOCK_DGRAM, 115}, noProtocol},  // L2TP
			{"socket", []uint64{syscall.AF_INET6, syscall.SOCK_DGRAM, 136}, noProtocol}, // UDP-Lite
			{"socket", []uint64{syscall.AF_INET, syscall.SOCK_STREAM, 256}, noProtocol}, // SMC
			{"socket", []uint64{upper | syscall.AF_INET, upper | syscall.SOCK_STREAM, upper | 132}, noProtocol},
			{"socket", []uint64{syscall.AF_INET, syscall.SOCK_STREAM, 1<<31 | 6}, noProtocol},
			{"socket", []uint64{1<<31 | syscall.AF_INET, syscall.SOCK_STREAM, 6}, noProtocol},
			{"socket", []uint64{syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_ROUTE}, ActAllow},
			{"socket", []uint64{syscall.AF_NETLINK, syscall.SOCK_RAW, upper}, ActAllow},
			{"socket", []uint64{syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_NETFILTER}, noProtocol},
			{"socket", []uint64{syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_AUDIT}, noProtocol},
			{"socket", []uint64{upper | syscall.AF_NETLINK, syscall.SOCK_RAW, upper | syscall.NETLINK_NETFILTER}, noProtocol},
			{"socket", []uint64{syscall.AF_PACKET}, eafnosupport},
			{"socket", []uint64{upper | syscall.AF_PACKET}, eafnosupport},
			{"socket", []uint64{40}, eafnosupport}, // AF_VSOCK
			{"socket", []uint64{38}, eafnosupport}, // AF_ALG
			{"socket", []uint64{15}, eafnosupport}, // AF_KEY
			{"socket", []uint64{30}, eafnosupport}, // AF_TIPC
			{"socket", []uint64{0}, eafnosupport},
			{"socket", []uint64{3}, eafnosupport},  // AF_AX25
			{"socket", []uint64{11}, eafnosupport}, // AF_DECnet
			{"socket", []uint64{43}, eafnosupport}, // AF_SMC
			{"socketpair", []uint64{syscall.AF_UNIX}, ActAllow},
			{"socketpair", []uint64{30}, eafnosupport},
			{"socketpair", []uint64{upper | 30}, eafnosupport},

			{"personality", []uint64{0}, ActAllow},
			{"personality", []uint64{0x8}, ActAllow},
			{"personality", []uint64{0x20000}, ActAllow},
			{"personality", []uint64{0x20008}, ActAllow},
			{"personality", []uint64{0xffffffff}, ActAllow},
			{"personality", []uint64{^uint64(0)}, ActAllow},
			{"personality", []uint64{0x0040000}, eperm}, // ADDR_NO_RANDOMIZE
			{"personality", []uint64{0x0400000}, eperm}, // READ_IMPLIES_EXEC
			{"personality", []uint64{upper | 0x0400000}, eperm},

			{"setsockopt", []uint64{0, syscall.IPPROTO_UDP, unix.UDP_ENCAP}, noOption},
			{"setsockopt", []uint64{0, upper | syscall.IPPROTO_IPV6, upper | flowLabelManager}, noOption},
			{"setsockopt", []uint64{0, syscall.IPPROTO_TCP, tcpAOAddKey}, noOption},
			{"setsockopt", []uint64{0, syscall.IPPROTO_TCP, flowLabelManager}, ActAllow},
			{"setsockopt", []uint64{0, syscall.IPPROTO_TCP, syscall.TCP_NODELAY}, ActAllow},
			{"setsockopt", []uint64{0, syscall.SOL_SOCKET, syscall.SO_REUSEADDR}, ActAllow},

			{"setxattr", []uint64{0, 0, 0, maxAttribute, 0}, ActAllow},
			{"setxattr", []uint64{0, 0, 0, maxAttribute + 1, 0}, enospc},
			{"lsetxattr", []uint64{0, 0, 0, upper, 0}, enospc},
			{"fsetxattr", []uint64{0, 0, 0, 65536, 0}, enospc},

			{"seccomp", []uint64{1, 0}, ActAllow},
			{"seccomp", []uint64{1, 1}, ActAllow}, // TSYNC
			{"seccomp", []uint64{1, 1 << 3}, einval},
			{"seccomp", []uint64{1, upper | 1<<3 | 1}, einval},
		} {
			if got := b.verdict(tc.name, tc.args...); got != tc.want {
				t.Errorf("%s %#x: %s, want %s", tc.name, tc.args, got, tc.want)
			}
		}
	})
}

// W7: a process without capabilities makes a user namespace and has them all inside.
func TestW7NoDoorToUserNamespaces(t *testing.T) {
	forBoth(t, "default", func(t *testing.T, b built) {
		for name, want := range map[string]Action{
			"clone3": Errno(syscall.ENOSYS), "unshare": Errno(syscall.EPERM), "setns": Errno(syscall.EPERM),
		} {
			for _, arg := range []uint64{0, ^uint64(0), syscall.CLONE_NEWUSER} {
				if got := b.verdict(name, arg, arg, arg); got != want {
					t.Errorf("%s %#x: %s, want %s", name, arg, got, want)
				}
			}
		}
	})
}

// W25: a call that the policy does not list kills ordinary programs. Here only the list of killed calls ends a process.
func TestW25OnlyTheDangerousListKills(t *testing.T) {
	forBoth(t, "default", func(t *testing.T, b built) {
		for number := range uint32(1024) {
			d := bpf.Data{Number: number, Arch: auditArch(b.arch)}
			v, _ := b.program.Run(d)
			listed := slices.Contains(killed.names, sysno.Name(b.arch, number))
			if (Action(v) == ActKillProcess) != listed {
				t.Errorf("system call %d (%s): %s", number, sysno.Name(b.arch, number), Action(v))
			}
			if sysno.Name(b.arch, number) == "" && Action(v) != Errno(syscall.ENOSYS) {
				t.Errorf("unassigned system call %d: %s, want ENOSYS", number, Action(v))
			}
		}
	})
}

func TestDefaultFilterAdmitsModernCalls(t *testing.T) {
	forBoth(t, "default", func(t *testing.T, b built) {
		for _, name := range []string{
			"statx", "openat2", "faccessat2", "close_range", "epoll_pwait2", "memfd_create", "pidfd_open",
			"pidfd_send_signal", "rseq", "membarrier", "futex_waitv", "futex_wake", "futex_wait", "futex_requeue",
			"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "copy_file_range", "io_submit",
			"utimensat", "inotify_init1", "mq_open", "shmget", "fchmodat2", "cachestat", "mseal", "map_shadow_stack",
			"timer_create", "sched_setattr", "execveat", "getrandom", "restart_syscall",
			"rt_sigreturn", "mprotect", "setresuid", "mknodat", "sysinfo",
		} {
			if got := b.verdict(name, ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)); got != ActAllow {
				t.Errorf("%s: %s", name, got)
			}
		}
	})
}

// TestMemfdSecretIsRefused: kernels may be booted without it, and then every filter seems to
// refuse it.
func TestMemfdSecretIsRefused(t *testing.T) {
	for _, filter := range []string{"default", "init"} {
		forBoth(t, filter, func(t *testing.T, b built) {
			if got := b.verdict("memfd_secret", 0, 0, 0, 0, 0, 0); got == ActAllow {
				t.Errorf("%s: %s", filter, got)
			}
		})
	}
}

func TestForeignABIsAreKilled(t *testing.T) {
	for _, filter := range []string{"default", "init", "trace", "traceinit"} {
		forBoth(t, filter, func(t *testing.T, b built) {
			for _, arch := range []uint32{0, auditI386, auditARM, auditX86_64, auditAArch64, 0xc00000f3} {
				if arch == auditArch(b.arch) {
					continue
				}
				for number := range uint32(512) {
					if v, _ := b.program.Run(bpf.Data{Number: number, Arch: arch}); Action(v) != ActKillProcess {
						t.Fatalf("architecture %#x, system call %d: %s", arch, number, Action(v))
					}
				}
			}
		})
	}
}

func TestX32IsKilled(t *testing.T) {
	b := load(t, "default", "amd64")
	for number := range uint32(1024) {
		for _, top := range []uint32{1 << 30, 1 << 31, 3 << 30} {
			if v, _ := b.program.Run(bpf.Data{Number: number | top, Arch: auditX86_64}); Action(v) != ActKillProcess {
				t.Fatalf("system call %#x: %s", number|top, Action(v))
			}
		}
	}
}

func TestEmbeddedFiltersMeanTheirPolicies(t *testing.T) {
	for _, goarch := range arches {
		def := DefaultPolicy(goarch)
		for name, p := range map[string]Policy{"default": def, "init": InitPolicy(def), "setid": SetIDPolicy(goarch), "local": LocalPolicy(goarch), "tcp": TCPPolicy(goarch), "runtime": RuntimePolicy(goarch), "trace": TracePolicy(goarch), "traceinit": InitPolicy(TracePolicy(goarch))} {
			if err := p.Validate(); err != nil {
				t.Errorf("%s %s: %v", name, goarch, err)
			}
			if err := Verify(p, load(t, name, goarch).raw); err != nil {
				t.Errorf("%s %s: %v", name, goarch, err)
			}
		}
	}
}

func TestVerifyNoticesOneChangedVerdict(t *testing.T) {
	p := DefaultPolicy("amd64")
	b := load(t, "default", "amd64")
	changed := 0
	for i, in := range b.program {
		if in.Op != bpf.Return {
			continue
		}
		mutant := slices.Clone(b.program)
		mutant[i].K = uint32(Errno(syscall.EXDEV))
		if err := Verify(p, mutant.Bytes()); err == nil {
			t.Errorf("return at instruction %d changed unnoticed", i)
		}
		changed++
	}
	if changed < 5 {
		t.Fatalf("only %d returns in the filter", changed)
	}
}

func TestListsNameRealCallsOnce(t *testing.T) {
	seen := map[string]bool{}
	check := func(name string) {
		if seen[name] {
			t.Errorf("%s is listed twice", name)
		}
		seen[name] = true
		_, amd64 := sysno.Number("amd64", name)
		_, arm64 := sysno.Number("arm64", name)
		if !amd64 && !arm64 {
			t.Errorf("%s is a call of no architecture", name)
		}
	}
	for _, names := range allowed {
		for _, name := range names {
			check(name)
		}
	}
	for _, d := range append([]denial{killed}, refused...) {
		if d.why == "" {
			t.Errorf("%v are denied for no reason", d.names)
		}
		for _, name := range d.names {
			check(name)
		}
	}
	for _, c := range capOpens {
		for _, name := range c.names {
			if !seen[name] {
				t.Errorf("%s opens %s, which is not denied", c.capability, name)
			}
		}
	}
}

// A call on no list gets ENOSYS, which is right for calls that are newer than the policy and an oversight for old ones.
func TestEveryKnownCallIsDecidedOnPurpose(t *testing.T) {
	deliberate := []string{
		"afs_syscall", "epoll_ctl_old", "epoll_wait_old", "getpmsg", "putpmsg", "security", "tuxcall", "uprobe", "uretprobe", "vserver", // no code behind them, or only for uprobes
	}
	var lists []string
	for _, names := range allowed {
		lists = append(lists, names...)
	}
	for _, d := range append([]denial{killed}, refused...) {
		lists = append(lists, d.names...)
	}
	lists = append(lists, "clone", "fcntl", "fsetxattr", "ioctl", "lsetxattr", "personality", "prlimit64", "seccomp", "setsockopt", "setxattr", "socket", "socketpair")
	lists = append(lists, deliberate...)
	for _, goarch := range arches {
		for _, c := range sysno.Table(goarch) {
			if !slices.Contains(lists, c.Name) {
				t.Errorf("%s: %s is on no list", goarch, c.Name)
			}
		}
	}
}

func TestInitFilterIsInvisibleToChildren(t *testing.T) {
	for _, goarch := range arches {
		workload := DefaultPolicy(goarch)
		own := InitPolicy(workload)
		for _, number := range interestingNumbers(workload) {
			rules := slices.Concat(workload.rulesOf(number), own.rulesOf(number))
			for _, args := range append(witnesses(rules), [6]uint64{}) {
				theirs, ours := workload.Evaluate(number, args), own.Evaluate(number, args)
				if theirs.gentler(ours) {
					t.Fatalf("%s: init says %s to %s %#x, the workload's filter %s", goarch, ours, workload.callName(number), args, theirs)
				}
			}
		}
	}
}

func TestInitFilterRefusesWhatInitNeverNeeds(t *testing.T) {
	forBoth(t, "init", func(t *testing.T, b built) {
		for _, name := range []string{
			"mount", "umount2", "pivot_root", "move_mount", "open_tree", "fsopen", "mount_setattr", "unshare", "setns", "clone3",
			"bpf", "ptrace", "perf_event_open", "userfaultfd", "io_uring_setup", "keyctl", "process_vm_writev", "kexec_load", "init_module",
		} {
			if b.verdict(name).Admits() {
				t.Errorf("%s gets through", name)
			}
		}
		if b.verdict("clone", syscall.CLONE_NEWUSER).Admits() || b.verdict("ioctl", 0, upper|tiocsti).Admits() {
			t.Error("namespaces by clone or TIOCSTI get through")
		}
		// What PID 1 in Go and the process that becomes a workload do.
		for _, name := range []string{
			"clone", "wait4", "waitid", "kill", "recvmsg", "sendmsg", "pselect6", "epoll_pwait", "futex", "nanosleep", "mmap", "munmap",
			"madvise", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "sched_yield", "getpid", "gettid",
			"tgkill", "exit_group", "openat", "ioctl", "close", "read", "write", "prctl", "capset", "setresuid", "setresgid",
			"setgroups", "setsid", "chdir", "umask", "prlimit64", "landlock_restrict_self", "seccomp", "execve", "dup3",
			"close_range", "fcntl", "pidfd_open", "pidfd_send_signal",
		} {
			if got := b.verdict(name); got != ActAllow {
				t.Errorf("%s: %s", name, got)
			}
		}
	})
}

func TestEmbeddedFilterDescribesItself(t *testing.T) {
	f := Default()
	if f.Name != "default" || f.Instructions*8 != len(f.BPF) || len(f.Digest) != 64 || strings.ToLower(f.Digest) != f.Digest {
		t.Errorf("%+v", f)
	}
	f.BPF[0] ^= 0xff
	if Default().BPF[0] == f.BPF[0] {
		t.Error("filters share memory: one caller can change another's policy")
	}
	if InitFilter().Digest == Default().Digest {
		t.Error("init has the workload's filter")
	}
}

// Hot calls must stay cheap: below the kernel's bitmap a tree costs the logarithm of its size.
func TestFilterIsATree(t *testing.T) {
	forBoth(t, "default", func(t *testing.T, b built) {
		if n := len(b.program); n > 600 {
			t.Errorf("%d instructions", n)
		}
		for _, name := range []string{"read", "futex", "openat", "statx"} {
			_, steps := b.program.Run(bpf.Data{Number: b.number(name), Arch: auditArch(b.arch)})
			if steps > 24 {
				t.Errorf("%s takes %d instructions", name, steps)
			}
		}
	})
}
