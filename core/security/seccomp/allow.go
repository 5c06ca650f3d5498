package seccomp

// allowed are the calls that the default policy lets through whatever their arguments. Being in no argument rule they
// stay in the kernel's bitmap of calls that are allowed without running the filter. Names that an architecture does not
// have are left out there.
var allowed = [][]string{
	// files and directories
	{
		"access", "cachestat", "chdir", "chmod", "chown", "close", "close_range", "copy_file_range", "creat", "dup", "dup2",
		"dup3", "faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown",
		"fchownat", "fdatasync", "fgetxattr", "file_getattr", "file_setattr", "flistxattr", "flock",
		"fremovexattr", "fstat", "fstatfs", "fsync", "ftruncate", "futimesat", "getcwd", "getdents",
		"getdents64", "getxattr", "getxattrat", "lchown", "lgetxattr", "link", "linkat", "listxattr", "listxattrat",
		"llistxattr", "lremovexattr", "lseek", "lstat", "mkdir", "mkdirat", "mknod", "mknodat",
		"name_to_handle_at", "newfstatat", "open", "openat", "openat2", "pread64", "preadv", "preadv2", "pwrite64",
		"pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "removexattr", "removexattrat",
		"rename", "renameat", "renameat2", "rmdir", "sendfile", "splice", "stat", "statfs",
		"statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "tee", "truncate", "umask", "unlink",
		"unlinkat", "utime", "utimensat", "utimes", "vmsplice", "write", "writev",
	},
	// waiting, events, asynchronous I/O
	{
		"epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd", "eventfd2",
		"inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy",
		"io_getevents", "io_pgetevents", "io_setup", "io_submit", "pipe", "pipe2", "poll", "ppoll", "pselect6", "select",
		"signalfd", "signalfd4", "timerfd_create", "timerfd_gettime", "timerfd_settime",
	},
	// sockets but for making them
	{
		"accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom",
		"recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "shutdown",
	},
	// memory; mprotect and mmap stay free to make writable code, which JIT compilers live by
	{
		"brk", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "mincore", "mlock", "mlock2", "mlockall",
		"mmap", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc",
		"pkey_free", "pkey_mprotect", "process_mrelease", "remap_file_pages",
	},
	// processes and threads
	{
		"arch_prctl", "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue", "futex_wait",
		"futex_waitv", "futex_wake", "get_robust_list", "get_thread_area", "getcpu", "getpgid", "getpgrp", "getpid",
		"getppid", "getsid", "gettid", "pidfd_open", "pidfd_send_signal", "prctl", "rseq", "rseq_slice_yield",
		"set_robust_list", "set_thread_area", "set_tid_address", "setpgid", "setsid", "vfork", "wait4", "waitid",
	},
	// signals
	{
		"kill", "pause", "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo",
		"rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "sigaltstack", "tgkill", "tkill",
	},
	// identity; without capabilities these can only give up rights
	{
		"capget", "capset", "getegid", "geteuid", "getgid", "getgroups", "getresgid", "getresuid", "getuid",
		"landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lsm_get_self_attr", "lsm_list_modules",
		"setfsgid", "setfsuid", "setgid", "setgroups", "setregid", "setresgid", "setresuid", "setreuid", "setuid",
	},
	// limits and scheduling; the kernel lets a process only lower its standing
	{
		"getpriority", "getrlimit", "getrusage", "ioprio_get", "ioprio_set", "sched_get_priority_max", "sched_get_priority_min",
		"sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler",
		"sched_rr_get_interval", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler",
		"sched_yield", "setpriority", "setrlimit", "sysinfo", "times", "uname",
	},
	// time; setting the clock needs a capability that the kernel checks in adjtimex, which is also how it is read
	{
		"adjtimex", "alarm", "clock_adjtime", "clock_getres", "clock_gettime", "clock_nanosleep", "getitimer",
		"gettimeofday", "nanosleep", "setitimer", "time", "timer_create", "timer_delete", "timer_getoverrun",
		"timer_gettime", "timer_settime",
	},
	// System V and POSIX IPC, all in the sandbox's own namespace
	{
		"mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink", "msgctl", "msgget",
		"msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop", "shmat", "shmctl", "shmdt", "shmget",
	},
	{"getrandom"},
}
