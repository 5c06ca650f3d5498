package attack

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Each call of the dangerous list is made with a wrong pointer: EFAULT and its
// like mean that it reached the kernel.
func TestDangerousCalls(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		r := l.attacked(t, l.attack("calls"))
		held(t, r, "calls")
		calls := r.lines("CALL")
		if len(calls) < 50 {
			t.Errorf("only %d calls were tried", len(calls))
		}
		if l.UID == 0 {
			// Root outside gets through with every one that this kernel has.
			bare := l.bare(t, "calls")
			reached := bare.wins("calls")
			for _, line := range bare.lines("CALL") {
				name, how, _ := strings.Cut(line, ": ")
				absent := how == "ENOSYS" || how == "EAFNOSUPPORT" || how == "EPROTONOSUPPORT" || how == "EINVAL" && name == "seccomp listener"
				if !absent && !slices.Contains(reached, name) {
					t.Errorf("no teeth: %s did not reach the kernel outside: %s", name, how)
				}
			}
			if len(reached) < 40 {
				t.Errorf("no teeth: only %d calls reach the kernel outside: %q", len(reached), reached)
			}
			return
		}
		// A user's sandbox whose filter admits everything.
		if weak := l.attacked(t, l.weakened(t, l.attack("calls"))).wins("calls"); len(weak) < 20 {
			t.Errorf("no teeth: only %d calls reach the kernel without a filter: %q", len(weak), weak)
		}
	})
}

// The whole table, with and without the filter: what reaches the kernel is
// printed, for review, and must be less with it.
func TestWholeTable(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		strict := l.attacked(t, l.attack("table"))
		open := l.attacked(t, l.weakened(t, l.attack("table")))
		s, o := strict.wins("table"), open.wins("table")
		t.Logf("reach the kernel (%d): %s", len(s), strings.Join(s, " "))
		var kept []string
		for _, nr := range o {
			if !slices.Contains(s, nr) {
				kept = append(kept, nr)
			}
		}
		t.Logf("kept from it by the filter (%d): %s", len(kept), strings.Join(kept, " "))
		if len(s) < 150 || len(kept) < 40 {
			t.Errorf("the table looks wrong: %d calls reach the kernel, %d are kept from it", len(s), len(kept))
		}
		for _, nr := range []int{
			unix.SYS_PTRACE, unix.SYS_MOUNT, unix.SYS_BPF, unix.SYS_KEYCTL, unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_IO_URING_SETUP, unix.SYS_USERFAULTFD,
			unix.SYS_PERF_EVENT_OPEN, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_INIT_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_REBOOT, unix.SYS_PIVOT_ROOT,
			unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_FSOPEN, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR, unix.SYS_CLONE3,
		} {
			if slices.Contains(s, fmt.Sprint(nr)) {
				t.Errorf("call %d reaches the kernel", nr)
			}
		}
	})
}

// A filter that only knows native numbers is blind to calls by other doors.
func TestForeignABIs(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		held(t, l.attacked(t, l.attack("foreign")), "foreign")
		weak := l.outside(t, l.attacker, "foreign").wins("foreign")
		t.Logf("doors of this kernel, for the attack's teeth: %q", weak)
		if haveIA32(t) && len(weak) == 0 {
			t.Error("no teeth: the kernel has the 32-bit door, and the attack does not find it")
		}
	})
}

// haveIA32 tells by its configuration whether the kernel has 32-bit calls; one
// that does not tell has, as nearly all do, and none has them elsewhere.
func haveIA32(t *testing.T) bool {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		return false
	}
	f, err := os.Open("/proc/config.gz")
	if err != nil {
		return true
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), "\nCONFIG_IA32_EMULATION=y\n")
}

// Input is typed into the terminal that the sandbox was given (CVE-2017-5226,
// CVE-2019-10063): both the caller's, inherited, and one of the sandbox's own.
func TestTerminalInjection(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		for _, tty := range []bool{false, true} {
			j := l.attack("terminal").with("  tty = %t", tty)
			c := l.command(t.Context(), t, j)
			r := onTerminal(t, c)
			if len(r.lines("DONE")) == 0 {
				t.Fatalf("the attack did not run: %s", r.out)
			}
			got := slices.DeleteFunc(r.wins("terminal"), func(w string) bool {
				return tty && strings.HasPrefix(w, "TIOCSCTTY") // its own terminal is its own
			})
			if len(got) > 0 {
				t.Errorf("tty = %t: the attack succeeded: %q", tty, got)
			}
		}
		bare := l.Command(l.attacker, "terminal")
		weak := onTerminal(t, bare)
		if l.UID == 0 { // dev.tty.legacy_tiocsti leaves it to root
			teeth(t, weak, "terminal", "TIOCSTI on 0 high 0x0", "TIOCSTI on 0 high 0x100000000", "TIOCSETD")
		} else {
			teeth(t, weak, "terminal", "TIOCSETD on 0 high 0x100000000")
		}
	})
}

// onTerminal runs a command on a new terminal that is its controlling one.
func onTerminal(t *testing.T, c *exec.Cmd) result {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ptmx.Close()
	if err := unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	c.SysProcAttr.Setsid, c.SysProcAttr.Setctty, c.SysProcAttr.Ctty = true, true, 0
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	var out []byte
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 4096)
		for {
			n, err := ptmx.Read(b)
			out = append(out, b[:n]...)
			if err != nil {
				return
			}
		}
	}()
	_ = c.Wait() // its end is in the output
	<-read
	return result{out: string(out)}
}
