package seccomp_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func start(t *testing.T, c child) (string, error) {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// errnos makes calls in a child under the filters and returns what each failed with.
func errnos(t *testing.T, filters [][]byte, calls []call) []syscall.Errno {
	t.Helper()
	out, err := start(t, child{Filters: filters, Calls: calls})
	if err != nil {
		t.Fatalf("child: %v\n%s", err, out)
	}
	var got []syscall.Errno
	for line := range strings.Lines(out) {
		n, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatalf("child printed %q", out)
		}
		got = append(got, syscall.Errno(n))
	}
	if len(got) != len(calls) {
		t.Fatalf("%d answers to %d calls", len(got), len(calls))
	}
	return got
}

const bad = ^uintptr(0)

// Calls with wrong pointers and descriptors: harmless if they get through, and what they fail with tells whether they did.
func TestAdmittedCallsReachTheKernel(t *testing.T) {
	calls := map[string]call{
		"openat2":           {unix.SYS_OPENAT2, [6]uintptr{bad, bad, bad, 24}},
		"statx":             {unix.SYS_STATX, [6]uintptr{bad, bad, 0, 0, bad}},
		"faccessat2":        {unix.SYS_FACCESSAT2, [6]uintptr{bad, bad, 0, 0}},
		"close_range":       {unix.SYS_CLOSE_RANGE, [6]uintptr{9, 8, 0}},
		"epoll_pwait2":      {unix.SYS_EPOLL_PWAIT2, [6]uintptr{bad, bad, 1}},
		"memfd_create":      {unix.SYS_MEMFD_CREATE, [6]uintptr{bad, 0}},
		"pidfd_open":        {unix.SYS_PIDFD_OPEN, [6]uintptr{bad, 0}},
		"pidfd_send_signal": {unix.SYS_PIDFD_SEND_SIGNAL, [6]uintptr{bad, 0}},
		"futex_waitv":       {unix.SYS_FUTEX_WAITV, [6]uintptr{bad, 1000}},
		"futex_wake":        {unix.SYS_FUTEX_WAKE, [6]uintptr{bad, 0, 0, bad}},
		"copy_file_range":   {unix.SYS_COPY_FILE_RANGE, [6]uintptr{bad, 0, bad}},
		"landlock":          {unix.SYS_LANDLOCK_CREATE_RULESET, [6]uintptr{bad, 8, 0}},
		"io_submit":         {unix.SYS_IO_SUBMIT, [6]uintptr{bad, 1, bad}},
		"utimensat":         {unix.SYS_UTIMENSAT, [6]uintptr{bad, bad, bad}},
		"netlink socket":    {unix.SYS_SOCKET, [6]uintptr{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}},
		"writable code":     {unix.SYS_MPROTECT, [6]uintptr{1, 1, unix.PROT_WRITE | unix.PROT_EXEC}},
		"cachestat":         {unix.SYS_CACHESTAT, [6]uintptr{bad, bad, bad, 0}},
		"mseal":             {unix.SYS_MSEAL, [6]uintptr{1, 1, 0}},
		"tcp socket":        {unix.SYS_SOCKET, [6]uintptr{unix.AF_INET6, unix.SOCK_STREAM | unix.SOCK_CLOEXEC, unix.IPPROTO_TCP}},
		"raw socket":        {unix.SYS_SOCKET, [6]uintptr{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW}},
		"rubbish above int": {unix.SYS_SOCKET, [6]uintptr{1<<32 | unix.AF_UNIX, unix.SOCK_STREAM}},
		"sign extension":    {unix.SYS_IOCTL, [6]uintptr{bad, 0xffffffff80045430}},
	}
	names, list := flatten(calls)
	free := errnos(t, nil, list)
	for label, filters := range map[string][][]byte{
		"default":              {seccomp.Default().BPF},
		"init, then a default": {seccomp.InitFilter().BPF, seccomp.Default().BPF},
	} {
		filtered := errnos(t, filters, list)
		for i, name := range names {
			if filtered[i] != free[i] {
				t.Errorf("%s: %s fails with %v, and without filter with %v", label, name, filtered[i], free[i])
			}
		}
	}
}

func TestRefusedCallsDoNotReachTheKernel(t *testing.T) {
	type refusal struct {
		call
		want syscall.Errno
	}
	refusals := map[string]refusal{
		"unshare":              {call{unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWUSER}}, unix.EPERM},
		"setns":                {call{unix.SYS_SETNS, [6]uintptr{bad, 0}}, unix.EPERM},
		"clone NEWUSER":        {call{unix.SYS_CLONE, [6]uintptr{unix.CLONE_NEWUSER | unix.CLONE_THREAD}}, unix.EPERM},
		"clone upper bits":     {call{unix.SYS_CLONE, [6]uintptr{1<<32 | unix.CLONE_NEWUSER | unix.CLONE_THREAD}}, unix.EPERM},
		"clone3":               {call{unix.SYS_CLONE3, [6]uintptr{bad, 88}}, unix.ENOSYS},
		"mount":                {call{unix.SYS_MOUNT, [6]uintptr{bad, bad, bad, 0, bad}}, unix.EPERM},
		"open_tree":            {call{unix.SYS_OPEN_TREE, [6]uintptr{bad, bad, 0}}, unix.EPERM},
		"TIOCSTI":              {call{unix.SYS_IOCTL, [6]uintptr{bad, unix.TIOCSTI}}, unix.EPERM},
		"TIOCSTI upper bits":   {call{unix.SYS_IOCTL, [6]uintptr{bad, 1<<32 | unix.TIOCSTI}}, unix.EPERM},
		"TIOCLINUX":            {call{unix.SYS_IOCTL, [6]uintptr{bad, 0xffffffff0000541c}}, unix.EPERM},
		"TIOCEXCL":             {call{unix.SYS_IOCTL, [6]uintptr{bad, unix.TIOCEXCL}}, unix.EPERM},
		"TCXONC":               {call{unix.SYS_IOCTL, [6]uintptr{bad, unix.TCXONC, unix.TCOOFF}}, unix.EPERM},
		"AF_PACKET":            {call{unix.SYS_SOCKET, [6]uintptr{unix.AF_PACKET, unix.SOCK_RAW}}, unix.EAFNOSUPPORT},
		"AF_PACKET upper bits": {call{unix.SYS_SOCKET, [6]uintptr{1<<40 | unix.AF_PACKET, unix.SOCK_RAW}}, unix.EAFNOSUPPORT},
		"AF_VSOCK":             {call{unix.SYS_SOCKET, [6]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}}, unix.EAFNOSUPPORT},
		"AF_INET SEQPACKET":    {call{unix.SYS_SOCKET, [6]uintptr{unix.AF_INET, unix.SOCK_SEQPACKET}}, unix.EPROTONOSUPPORT}, // ESOCKTNOSUPPORT, says the kernel
		"bridge":               {call{unix.SYS_IOCTL, [6]uintptr{bad, unix.SIOCGIFBR}}, unix.ENOPKG},
		"io_uring_setup":       {call{unix.SYS_IO_URING_SETUP, [6]uintptr{1, bad}}, unix.ENOSYS},
		"keyctl":               {call{unix.SYS_KEYCTL, [6]uintptr{bad}}, unix.ENOSYS},
		"bpf":                  {call{unix.SYS_BPF, [6]uintptr{bad, bad, 8}}, unix.EPERM},
		"perf_event_open":      {call{unix.SYS_PERF_EVENT_OPEN, [6]uintptr{bad}}, unix.EPERM},
		"userfaultfd":          {call{unix.SYS_USERFAULTFD, [6]uintptr{bad}}, unix.EPERM},
		"ptrace":               {call{unix.SYS_PTRACE, [6]uintptr{bad, bad}}, unix.EPERM},
		"process_vm_writev":    {call{unix.SYS_PROCESS_VM_WRITEV, [6]uintptr{bad, bad, 1, bad, 1}}, unix.EPERM},
		"pidfd_getfd":          {call{unix.SYS_PIDFD_GETFD, [6]uintptr{bad, 0}}, unix.EPERM},
		"personality":          {call{unix.SYS_PERSONALITY, [6]uintptr{0x0400000}}, unix.EPERM},
		"lease":                {call{unix.SYS_FCNTL, [6]uintptr{bad, 1<<40 | unix.F_SETLEASE, unix.F_WRLCK}}, unix.EACCES},
		"prlimit of another":   {call{unix.SYS_PRLIMIT64, [6]uintptr{1, unix.RLIMIT_CPU, bad, 0}}, unix.EPERM},
		"seccomp listener":     {call{unix.SYS_SECCOMP, [6]uintptr{1, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, bad}}, unix.EINVAL},
		"memfd_secret":         {call{unix.SYS_MEMFD_SECRET, [6]uintptr{bad}}, unix.ENOSYS},
		"snapshot":             {call{unix.SYS_IOCTL, [6]uintptr{bad, 0x50009417}}, unix.EPERM},
		"UDP_ENCAP":            {call{unix.SYS_SETSOCKOPT, [6]uintptr{bad, unix.IPPROTO_UDP, unix.UDP_ENCAP, bad, 4}}, unix.ENOPROTOOPT},
		"large attribute":      {call{unix.SYS_FSETXATTR, [6]uintptr{bad, bad, bad, 65536, 0}}, unix.ENOSPC},
		"setxattrat":           {call{unix.SYS_SETXATTRAT, [6]uintptr{bad, bad, 0, bad, bad, 16}}, unix.ENOSYS},
		"no such call":         {call{1000, [6]uintptr{}}, unix.ENOSYS},
	}
	calls := map[string]call{}
	for name, r := range refusals {
		calls[name] = r.call
	}
	names, list := flatten(calls)
	for label, filters := range map[string][][]byte{
		"default":              {seccomp.Default().BPF},
		"init, then a default": {seccomp.InitFilter().BPF, seccomp.Default().BPF},
	} {
		for i, got := range errnos(t, filters, list) {
			if want := refusals[names[i]].want; got != want {
				t.Errorf("%s: %s fails with %v, want %v", label, names[i], got, want)
			}
		}
	}
	// Teeth: without the filter these fail otherwise, or not at all, whoever runs the test.
	free := errnos(t, nil, list)
	for i, name := range names {
		switch name {
		case "setns", "clone3", "TIOCSTI", "TIOCSTI upper bits", "TIOCLINUX", "TIOCEXCL", "TCXONC", "snapshot", "clone NEWUSER", "clone upper bits", "personality", "seccomp listener", "keyctl", "prlimit of another":
			if free[i] == refusals[name].want {
				t.Errorf("%s fails with %v also without a filter: the test shows nothing", name, free[i])
			}
		}
	}
}

func flatten(calls map[string]call) (names []string, list []call) {
	for name, c := range calls {
		names, list = append(names, name), append(list, c)
	}
	return names, list
}

func TestDangerousCallsKillTheProcess(t *testing.T) {
	// Wrong arguments, so that nothing happens should the filter be missing.
	calls := map[string]call{
		"init_module": {unix.SYS_INIT_MODULE, [6]uintptr{bad, 0, bad}},
		"kexec_load":  {unix.SYS_KEXEC_LOAD, [6]uintptr{0, bad, bad, bad}},
		"reboot":      {unix.SYS_REBOOT, [6]uintptr{0, 0, 0}},
		"swapon":      {unix.SYS_SWAPON, [6]uintptr{bad, bad}},
		"acct":        {unix.SYS_ACCT, [6]uintptr{bad}},
	}
	if runtime.GOARCH == "amd64" {
		calls["x32 getpid"] = call{0x40000000 | unix.SYS_GETPID, [6]uintptr{}}
	}
	for name, c := range calls {
		for label, filter := range map[string][]byte{"default": seccomp.Default().BPF, "init": seccomp.InitFilter().BPF} {
			_, err := start(t, child{Filters: [][]byte{filter}, Calls: []call{c}})
			if !killedBySeccomp(err) {
				t.Errorf("%s under %s: %v, want killed by SIGSYS", name, label, err)
			}
		}
		errnos(t, nil, []call{c}) // teeth: survives without a filter
	}
}

func killedBySeccomp(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGSYS
}

// installed finds a program, or skips the test for want of it.
func installed(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		testutil.Skip(t, "program-"+name, "it is not installed")
	}
	return path
}

func TestForeignABIIsKilledInALiveProcess(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		testutil.Skip(t, "amd64", "only x86 has a second ABI reachable from 64-bit code")
	}
	gcc := installed(t, "gcc")
	dir := t.TempDir()
	source, program := filepath.Join(dir, "int80.c"), filepath.Join(dir, "int80")
	// getpid of i386 is 20, which as a 64-bit call would be writev.
	code := "int main(void) { long r; __asm__ volatile(\"int $0x80\" : \"=a\"(r) : \"a\"(20L) : \"memory\", \"r8\", \"r9\", \"r10\", \"r11\"); return r > 0 ? 0 : 1; }\n"
	if err := os.WriteFile(source, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), gcc, "-o", program, source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := start(t, child{Filters: [][]byte{seccomp.Default().BPF}, Exec: []string{program}}); !killedBySeccomp(err) {
		t.Errorf("int 0x80: %v, want killed by SIGSYS", err)
	}
	if out, err := start(t, child{Exec: []string{program}}); err != nil {
		t.Logf("this kernel has no i386 calls, so only the kill was tried: %v %s", err, out)
	}
}

// W25: ordinary programs died. These run under the filter of init and the default filter on top, as in a sandbox.
func TestW25RealSoftwareRuns(t *testing.T) {
	for name, tc := range map[string]struct {
		program string
		args    []string
		want    string
	}{
		"bash pipes and job control": {"bash", []string{"-c", `set -m; touch f; mkfifo p; (echo deep > p) & read x < p; wait; echo $(echo $x | cat)`}, "deep"},
		"perl":                       {"perl", []string{"-e", `print "ok ", join(",", map { $_*2 } 1..3)`}, "ok 2,4,6"},
		"python pool, sockets, time": {"python3", []string{"-c", `
import multiprocessing, os, socket, subprocess, tempfile, threading
def f(x): return x * x
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as p: assert p.map(f, [1, 2, 3]) == [1, 4, 9]
    with tempfile.TemporaryDirectory() as d: os.utime(d)
    socket.getaddrinfo("127.0.0.1", 80); socket.getaddrinfo("localhost", 80)
    a, b = socket.socketpair(); a.send(b"x"); assert b.recv(1) == b"x"
    t = threading.Thread(target=lambda: None); t.start(); t.join()
    print(subprocess.check_output(["sh", "-c", "echo fine"]).decode())
`}, "fine"},
		"git": {"git", []string{"-c", "init.defaultBranch=m", "-c", "alias.all=!git init -q . && git -c user.name=n -c user.email=e commit -q --allow-empty -m one && git log --format=%s && git gc -q", "all"}, "one"},
		"gcc": {"gcc", []string{"-x", "c", "-o", "out", "-fopenmp", "-v", "/dev/null", "-shared"}, "COLLECT_GCC"},
		"go":  {"go", []string{"version"}, "go1."},
		"node JIT, threads, child": {"node", []string{"-e", `
const { Worker } = require("worker_threads"); let s = 0; for (let i = 0; i < 3e6; i++) s += i;
new Worker("require('fs').readFileSync('/proc/self/status')", { eval: true }).on("exit", () => {
  require("fs").promises.readFile("/proc/self/stat").then(() => console.log("done", require("child_process").execSync("echo sub").toString()));
});`}, "done sub"},
		"java":  {"java", []string{"-version"}, "ersion"},
		"cargo": {"cargo", []string{"--version"}, "cargo "},
	} {
		t.Run(name, func(t *testing.T) {
			argv := append([]string{installed(t, tc.program)}, tc.args...)
			if out, err := start(t, child{Exec: argv}); err != nil {
				t.Fatalf("does not run here without a filter either: %v\n%s", err, out)
			}
			filters := [][]byte{seccomp.InitFilter().BPF, seccomp.Default().BPF}
			out, err := start(t, child{Filters: filters, Exec: argv})
			if err != nil || !strings.Contains(out, tc.want) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
