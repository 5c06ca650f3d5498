// Package grammar owns how the names in job files and host configurations are
// spelt: jobs, accounts, variables, capabilities, signals, limits. It says
// nothing about whether what they name exists.
package grammar

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// MaxName is the most bytes in a name.
const MaxName = 63

// Least and greatest values of resources. Below the least no program starts,
// and the error would come from the kernel and name none of the user's lines.
const (
	MinMemory = 16 << 20 // what init and a small program need
	MaxPids   = 1 << 22  // the kernel's PID_MAX_LIMIT
	MinCPUs   = 0.01     // the kernel's least quota: 1 ms in 100
	MaxCPUs   = 8192     // the kernel's NR_CPUS
)

// IsName reports whether s is [a-z0-9][a-z0-9-]{0,62}. Hand-written like the
// others here: a compiled regular expression would cost every start.
func IsName(s string) bool {
	if s == "" || len(s) > MaxName || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !lower(c) && !digit(c) && c != '-' {
			return false
		}
	}
	return true
}

func lower(c byte) bool  { return 'a' <= c && c <= 'z' }
func digit(c byte) bool  { return '0' <= c && c <= '9' }
func letter(c byte) bool { return lower(c) || 'A' <= c && c <= 'Z' }

// NameProblem says what is wrong with a name and what to write, "" if nothing.
func NameProblem(s string) string {
	if IsName(s) {
		return ""
	}
	problem := fmt.Sprintf("%s: a name has 1 to %d lower-case letters, digits and hyphens, and no hyphen first.", Quote(s), MaxName)
	if fixed := NameOf(strings.ReplaceAll(s, "/", "-")); IsName(fixed) && fixed != "job" {
		problem += fmt.Sprintf(" Write %q.", fixed)
	}
	return problem
}

// NameOf makes a name of a program's path.
func NameOf(program string) string {
	name := strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			return c
		case c >= 'A' && c <= 'Z':
			return c + 'a' - 'A'
		default:
			return '-'
		}
	}, path.Base(program))
	name = strings.Trim(name, "-")
	if len(name) > MaxName {
		name = strings.TrimRight(name[:MaxName], "-")
	}
	if name == "" {
		return "job"
	}
	return name
}

// IsFeatureName accepts the form of the names that doctor prints; which of
// them exist is known to the plan.
func IsFeatureName(s string) bool {
	for i := range len(s) {
		if c := s[i]; !lower(c) && !digit(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return s != "" && len(s) <= 64 && lower(s[0])
}

// IsAccount accepts a user's or group's name or number.
func IsAccount(s string) bool {
	if s != "" && digit(s[0]) {
		_, ok := ID(s)
		return ok
	}
	for i := range len(s) {
		c := s[i]
		if !letter(c) && c != '_' && (i == 0 || !digit(c) && c != '-' && c != '.' && (c != '$' || i != len(s)-1)) {
			return false
		}
	}
	return s != "" && len(s) <= 32
}

// ID reads a number that may be a uid or gid: (uid_t)-1 means "unchanged" to the kernel.
func ID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1 && (s == "0" || s[0] != '0')
}

// IsUser accepts a user with or without a group: "app", "1000:1000".
func IsUser(s string) bool {
	user, group, grouped := strings.Cut(s, ":")
	return IsAccount(user) && (!grouped || IsAccount(group))
}

// IsHostname accepts RFC 1123 names within the kernel's 64 bytes.
func IsHostname(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return false
		}
		for i := range len(l) {
			if c := l[i]; !letter(c) && !digit(c) && c != '-' {
				return false
			}
		}
	}
	return true
}

// loaderVariables steer the dynamic loader or glibc's own loading of code;
// with LD_* they would run foreign code in whatever the sandbox starts.
// GLIBC_TUNABLES: CVE-2023-4911.
func loaderVariable(name string) bool {
	return strings.HasPrefix(name, "LD_") || name == "GLIBC_TUNABLES" || name == "GCONV_PATH"
}

// EnvProblem says what is wrong with the name of an environment variable:
// a summary and what to write instead, both "" if nothing.
func EnvProblem(name string) (summary, detail string) {
	valid := name != "" && !digit(name[0])
	for i := range len(name) {
		c := name[i]
		valid = valid && (letter(c) || digit(c) || c == '_' || i > 0 && (c == '.' || c == '-'))
	}
	switch {
	case !valid:
		return "Not a variable name", fmt.Sprintf("%s is no name of an environment variable: use letters, digits and underscores, a letter first.", Quote(name))
	case loaderVariable(name):
		return "Loader variable refused", fmt.Sprintf("%s makes programs load foreign code, so LD_*, GLIBC_TUNABLES and GCONV_PATH are refused. Put libraries where the root file system's loader looks (ld.so.conf), or set the variable in a script that the command runs.", name)
	default:
		return "", ""
	}
}

// Capabilities are those of Linux 6.12, by number.
func Capabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
		"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
		"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
		"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
		"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
		"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

// Dangerous reports capabilities with which a program can undo its sandbox or
// pass over every permission in it: refused by the strict modes.
func Dangerous(capability string) bool {
	return slices.Contains([]string{
		"CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH",
		"CAP_SYS_BOOT", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_SYS_PACCT", "CAP_LINUX_IMMUTABLE", "CAP_BPF",
		"CAP_PERFMON", "CAP_NET_RAW", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETFCAP", "CAP_FOWNER",
		"CAP_CHECKPOINT_RESTORE",
	}, capability)
}

// SignalNames are those of signals 1 to 31, by number.
func SignalNames() []string {
	return []string{
		"SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1",
		"SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP",
		"SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS",
	}
}

// CanonicalSignal accepts a signal by name, in any case, with or without SIG,
// by number, and real-time signals as SIGRTMIN+N. What it doesn't know comes
// back in the nearest form.
func CanonicalSignal(s string) (string, bool) {
	names := SignalNames()
	if n, err := strconv.Atoi(s); err == nil {
		if n >= 1 && n <= len(names) {
			return names[n-1], true
		}
		return s, false
	}
	name := withPrefix("SIG", s)
	if slices.Contains(names, name) {
		return name, true
	}
	if plus, ok := strings.CutPrefix(name, "SIGRTMIN"); ok {
		if plus == "" {
			return "SIGRTMIN", true
		}
		// glibc keeps the kernel's first two for itself: SIGRTMIN is 34 of 64.
		n, err := strconv.Atoi(strings.TrimPrefix(plus, "+"))
		if err == nil && plus[0] == '+' && n >= 0 && n <= 30 {
			return fmt.Sprintf("SIGRTMIN+%d", n), true
		}
	}
	return name, false
}

// withPrefix brings a name to its canonical upper case.
func withPrefix(prefix, s string) string {
	s = strings.ToUpper(s)
	if strings.HasPrefix(s, prefix) {
		return s
	}
	return prefix + s
}

// RlimitNames are setrlimit(2)'s, without RLIMIT_ and in lower case.
func RlimitNames() []string {
	return []string{
		"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
		"rttime", "sigpending", "stack",
	}
}

// HookPhases are OCI's, without the deprecated prestart.
func HookPhases() []string {
	return []string{"createRuntime", "createContainer", "startContainer", "poststart", "poststop"}
}

// IsSHA256 accepts the 64 hexadecimal digits that sha256sum prints.
func IsSHA256(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// Capability returns the canonical name, "CAP_CHOWN", of one written in any
// case, with or without CAP_. Its name is returned canonical even if there is none.
func Capability(s string) (string, bool) {
	c := withPrefix("CAP_", s)
	return c, slices.Contains(Capabilities(), c)
}

// Quote shows text from outside: cut if long, control characters escaped.
func Quote(s string) string {
	if len(s) > 80 {
		s = s[:77] + "..."
	}
	return strconv.Quote(s)
}
