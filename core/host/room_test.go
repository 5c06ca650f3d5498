package host

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// A room is a process of this test binary that takes something away from
// itself and then probes, so that each feature's absence can be provoked.

const roomName = "nucleus-host-test-room"

// rule is a seccomp rule: deny the call, if its argument matches.
type rule struct {
	NR     int
	Arg    int // -1: whatever the arguments
	Value  uint32
	Mask   bool // the argument has any of the bits, not the value
	Action uint32
}

type room struct {
	Steps   []string // what to take away, by name
	Rules   []rule
	Only    []string
	Blind   bool // do not tell Probe what Quick has found out
	Timeout time.Duration
	UID     int          // become this user and group
	Range   fact.IDRange // tell Probe that the user has this range
	Helper  string       // tell Probe that this is newuidmap

	flags  uintptr
	userNS bool
}

var roomSteps = map[string]func() error{
	"max_user_namespaces=0": func() error {
		return os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0)
	},
	"private mounts": func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
	"masked proc":    func() error { return unix.Mount("/dev/null", "/proc/version", "", unix.MS_BIND, "") },
	"no /dev/net":    func() error { return unix.Mount("t", "/dev/net", "tmpfs", 0, "") },
	"closed tun": func() error {
		if err := unix.Mount("t", "/dev/net", "tmpfs", 0, ""); err != nil {
			return err
		}
		return os.WriteFile("/dev/net/tun", nil, 0)
	},
	"empty chroot": func() error {
		dir, err := os.MkdirTemp("", "room")
		if err != nil {
			return err
		}
		defer os.Remove(dir)
		if err := unix.Chroot(dir); err != nil {
			return err
		}
		return unix.Chdir("/")
	},
	"chroot with proc": func() error {
		if err := unix.Mount("t", "/mnt", "tmpfs", 0, ""); err != nil {
			return err
		}
		// The rest is for a test binary that is linked dynamically.
		for _, dir := range []string{"/proc", "/usr", "/lib", "/lib64"} {
			if _, err := os.Stat(dir); err != nil {
				continue
			}
			if err := os.MkdirAll("/mnt/root"+dir, 0o755); err != nil {
				return err
			}
			if err := unix.Mount(dir, "/mnt/root"+dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return err
			}
		}
		if err := unix.Chroot("/mnt/root"); err != nil {
			return err
		}
		return unix.Chdir("/")
	},
	"subids for nobody": func() error {
		if err := unix.Mount("t", "/mnt", "tmpfs", 0, "mode=0755"); err != nil {
			return err
		}
		if err := os.WriteFile("/mnt/subid", []byte("nobody:300000:65536\n"), 0o644); err != nil {
			return err
		}
		for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
			if err := unix.Mount("/mnt/subid", file, "", unix.MS_BIND, ""); err != nil {
				return err
			}
		}
		return nil
	},
	"no CAP_SYS_ADMIN": func() error { return dropCaps(1 << unix.CAP_SYS_ADMIN) },
	"no capabilities":  func() error { return dropCaps(^uint64(0)) },
}

// become changes this thread's ids; the exec that follows is the process's.
func become(id uintptr) error {
	for _, c := range [][4]uintptr{{unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, id, id, id}, {unix.SYS_SETRESUID, id, id, id}} {
		if _, _, errno := unix.RawSyscall(c[0], c[1], c[2], c[3]); errno != 0 {
			return errno
		}
	}
	return nil
}

// dropCaps drops from this thread's sets and the bounding set, which exec of
// the probes would otherwise refill for root.
func dropCaps(drop uint64) error {
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		if drop&(1<<c) != 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
				return err
			}
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	for i := range data {
		keep := ^uint32(drop >> (32 * i))
		data[i].Effective &= keep
		data[i].Permitted &= keep
		data[i].Inheritable &= keep
	}
	return unix.Capset(&hdr, &data[0])
}

func (r rule) program() []unix.SockFilter {
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	ret := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: r.Action}
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	if r.Arg < 0 {
		return []unix.SockFilter{load(0), {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(r.NR)}, ret, allow}
	}
	test := uint16(unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K)
	if r.Mask {
		test = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	}
	return []unix.SockFilter{
		load(0),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: uint32(r.NR)},
		load(uint32(16 + 8*r.Arg)),
		{Code: test, Jf: 1, K: r.Value},
		ret, allow,
	}
}

func (r rule) install() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	p := r.program()
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	// Not seccomp(2): an earlier rule may deny it. Children are forked on this
	// thread's filters only if they are on every thread, hence one thread here.
	return unix.PrctlArg5Ptr(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, nil)
}

func maybeRoom() {
	if len(os.Args) < 2 || os.Args[0] != roomName {
		return
	}
	// Filters and capabilities are a thread's: the probes are started from
	// other threads, so the room is entered first and then executed again.
	runtime.LockOSThread()
	var r room
	if err := json.Unmarshal([]byte(os.Args[1]), &r); err != nil {
		panic(err)
	}
	if len(os.Args) == 2 {
		for _, s := range r.Steps {
			if strings.Contains(s, "chroot") {
				continue
			}
			if err := roomSteps[s](); err != nil {
				panic(fmt.Sprintf("%s: %v", s, err))
			}
		}
		if r.UID != 0 {
			if err := become(uintptr(r.UID)); err != nil {
				panic(err)
			}
		}
		for _, rl := range r.Rules {
			if err := rl.install(); err != nil {
				panic(err)
			}
		}
		panic(unix.Exec("/proc/self/exe", append(os.Args, "entered"), []string{"TMPDIR=/tmp"}))
	}
	// A root is the process's, and the program could not be executed in it.
	for _, s := range r.Steps {
		if strings.Contains(s, "chroot") {
			if err := roomSteps[s](); err != nil {
				panic(fmt.Sprintf("%s: %v", s, err))
			}
		}
	}
	h, err := Quick(Options{})
	if err != nil {
		panic(err)
	}
	if r.Range.Count > 0 {
		h.SubUID, h.SubGID = []fact.IDRange{r.Range}, []fact.IDRange{r.Range}
	}
	if r.Helper != "" {
		h.NewUIDMap = r.Helper
	}
	if r.Blind {
		h.Features = nil
	}
	out := roomResult{h, Probe(context.Background(), ProbeOptions{Host: h, StateRoot: "/run/nucleus", Only: r.Only, Timeout: r.Timeout})}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		panic(err)
	}
	unix.Exit(0)
}

type roomResult struct {
	Host     fact.Host
	Features []fact.Feature
}

func (r roomResult) feature(t *testing.T, name string) fact.Feature {
	t.Helper()
	for _, f := range r.Features {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no feature %q in %+v", name, r.Features)
	return fact.Feature{}
}

func (r room) enter(t *testing.T) roomResult {
	t.Helper()
	arg, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{roomName, string(arg)}
	cmd.Env = []string{"TMPDIR=/tmp"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: r.flags, Pdeathsig: syscall.SIGKILL}
	if r.userNS {
		cmd.SysProcAttr = userNSAttr(r.flags)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		t.Fatalf("room %+v: %v\n%s", r, err, stderr.String())
	}
	var out roomResult
	if err := json.Unmarshal(stdout.Bytes(), &out); err != nil {
		t.Fatalf("room %+v: %v\n%s%s", r, err, stdout.String(), stderr.String())
	}
	return out
}
