package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// bounded are the limits of every bomb: small, so that a bomb that got past them
// is seen by its count long before the host would notice.
const bounded = "  resources {\n    pids = 64\n    memory = \"128MiB\"\n  }\n  timeout = \"60s\""

// unlimited are those that the attacks must get past to show that it is the
// limit that stops them; they are still far from hurting the host.
const unlimited = "  resources {\n    pids = 256\n    memory = \"256MiB\"\n  }\n  timeout = \"60s\""

// asLimited runs as root where this host can limit, and as a user where it is
// given groups.
func asLimited(t *testing.T, controllers []string, f func(t *testing.T, l *lab)) {
	t.Helper()
	for _, c := range controllers {
		testutil.Needs(t, testutil.CgroupController(c))
	}
	name := "user"
	if os.Geteuid() == 0 {
		name = "root"
	}
	f(t, newLab(t, name, testutil.Self(t)))
}

func count(t *testing.T, r result) int {
	t.Helper()
	counts := r.lines("COUNT")
	if len(counts) == 0 {
		t.Fatalf("no count: code %d\n%s\n%s", r.code, r.out, r.err)
	}
	n, err := strconv.Atoi(counts[len(counts)-1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// alive fails the test if the host no longer starts processes in good time.
func (l *lab) alive(t *testing.T) {
	t.Helper()
	began := time.Now()
	if r := l.outside(t, "true"); r.code != 0 {
		t.Errorf("the host cannot start a process: %s", r.err)
	}
	if took := time.Since(began); took > testutil.Patient(5*time.Second) {
		t.Errorf("the host took %s to start a process", took)
	}
}

func TestProcessBombs(t *testing.T) {
	asLimited(t, []string{"pids"}, func(t *testing.T, l *lab) {
		for _, bomb := range []string{"forks", "threads"} {
			if n := count(t, l.run(t, l.attack(bomb, "200").with(unlimited))); n != 200 {
				t.Errorf("no teeth: %s: got %d processes of 200 with the higher limit", bomb, n)
			}
			r := l.run(t, l.attack(bomb, "200").with(bounded))
			if n := count(t, r); n > 64 {
				t.Errorf("%s: %d processes with a limit of 64", bomb, n)
			}
			if r.code != 0 {
				t.Errorf("%s: the end is not the workload's: code %d %s", bomb, r.code, r.err)
			}
			l.alive(t)
		}
	})
}

func TestMemoryBomb(t *testing.T) {
	asLimited(t, []string{"memory"}, func(t *testing.T, l *lab) {
		teeth(t, l.run(t, l.attack("memory", "150").with(unlimited)), "memory", "150 MiB")
		r := l.run(t, l.attack("memory", "150").with(bounded))
		held(t, r, "memory")
		if n := count(t, r); n > 128 || r.code != 137 {
			t.Errorf("%d MiB with a limit of 128, code %d", n, r.code)
		}
		l.alive(t)
	})
}

// Every writable place is filled, with bytes and with files: all of it is
// bounded, and none of it is the host's disk.
func TestFillingBombs(t *testing.T) {
	asLimited(t, []string{"memory", "pids"}, func(t *testing.T, l *lab) {
		before := free(t, "/")
		places := []string{"/tmp", "/var/tmp", "/run", "/dev/shm", "/root", "/scratch", "/dev", "/", "/proc", "/etc"}
		j := l.attack(append([]string{"fill", "400", "3000"}, places...)...)
		// Memory that holds files counts, so the end may be by the memory limit.
		r := l.run(t, j.with(bounded+"\n  tmpfs \"/scratch\" {\n    size = \"8MiB\"\n  }"))
		held(t, r, "fill")
		if r.code != 0 && r.code != 137 {
			t.Errorf("code %d: %s", r.code, r.err)
		}
		small := l.attack("fill", "40", "100", "/tmp").with("  resources {\n    memory = \"256MiB\"\n    pids = 64\n    rootfs_size = \"16MiB\"\n  }\n  timeout = \"60s\"")
		held(t, l.attacked(t, small), "fill")
		roomy := l.attack("fill", "40", "100", "/tmp").with("  resources {\n    memory = \"256MiB\"\n    pids = 64\n    rootfs_size = \"64MiB\"\n  }\n  timeout = \"60s\"")
		teeth(t, l.attacked(t, roomy), "fill", "/tmp took 40 MiB")
		if after := free(t, "/"); before > after+(300<<20) {
			t.Errorf("%d MiB of the host's disk are gone", (before-after)>>20)
		}
		l.alive(t)
	})
}

func free(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Bavail * uint64(st.Bsize)
}

// Kernel objects that no limit of their own bounds are paid for by the memory
// limit; descriptors by theirs.
func TestKernelObjectBombs(t *testing.T) {
	asLimited(t, []string{"memory", "pids"}, func(t *testing.T, l *lab) {
		r := l.run(t, l.attack("kernelobj", "3000").with(bounded))
		if made := r.lines("MADE"); r.code != 0 && r.code != 137 {
			t.Errorf("code %d: %v %s", r.code, made, r.err)
		}
		const files = "\n  resources {\n    pids = 64\n    memory = \"128MiB\"\n    rlimit \"nofile\" {\n      soft = %d\n      hard = %d\n    }\n  }\n  timeout = \"60s\""
		low := count(t, l.attacked(t, l.attack("fds").with(files, 100, 100)))
		high := count(t, l.attacked(t, l.attack("fds").with(files, 1000, 1000)))
		if low >= 100 || high < 900 || high >= 1000 {
			t.Errorf("%d descriptors with a limit of 100, %d with 1000", low, high)
		}
		l.alive(t)
	})
}

// Output that nobody reads, or that a slow reader does, costs the supervisor
// nothing: it neither buffers nor spins, and still obeys.
func TestOutputWithoutReader(t *testing.T) {
	asLimited(t, []string{"pids"}, func(t *testing.T, l *lab) {
		for _, kind := range []string{"file", "pipe"} {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			c := l.command(t.Context(), t, l.attack("flood", "1024").with(bounded))
			if kind == "pipe" {
				c.Stdout = w
			} else {
				// A socket, which is put behind a pipe that the supervisor copies from.
				fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
				defer ours.Close()
				defer theirs.Close()
				c.Stdout = theirs
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			_ = w.Close()
			await(t, "the flood", func() bool { return len(processesOf(t, l.attacker)) > 0 })
			time.Sleep(500 * time.Millisecond)
			ticks, rss := usage(t, c.Process.Pid)
			time.Sleep(500 * time.Millisecond)
			later, rssLater := usage(t, c.Process.Pid)
			if later-ticks > 20 { // of 50 that half a second has
				t.Errorf("%s: the supervisor spins: %d ticks in half a second", kind, later-ticks)
			}
			if rssLater > 64<<20 || rssLater > rss+(8<<20) {
				t.Errorf("%s: the supervisor buffers: %d MiB, then %d MiB", kind, rss>>20, rssLater>>20)
			}
			if err := c.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = c.Wait()
			}()
			select {
			case <-done:
			case <-time.After(testutil.Patient(30 * time.Second)):
				t.Errorf("%s: the supervisor does not end", kind)
				_ = c.Process.Kill()
				<-done
			}
		}
		// Teeth: with a reader all of it arrives.
		r := l.run(t, l.attack("flood", "64").with(bounded))
		if len(r.out) < 64<<20 {
			t.Errorf("no teeth: %d MiB arrived of 64", len(r.out)>>20)
		}
	})
}

// usage gives the processor time, in ticks, and resident memory of a process.
func usage(t testing.TB, pid int) (ticks, rss int64) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	num := func(i int) int64 {
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return num(11) + num(12), num(21) * int64(os.Getpagesize())
}

// The workload makes init the kernel's first victim when memory is short: the
// sandbox ends, and the end is told for what it was.
func TestInitAsVictim(t *testing.T) {
	asLimited(t, []string{"memory"}, func(t *testing.T, l *lab) {
		j := l.attack()
		j.command = []string{"/bin/sh", "-c", "echo 1000 >/proc/1/oom_score_adj && echo RAISED it; exec " + inside + " memory 150"}
		r := l.run(t, j.with(bounded))
		if len(r.lines("RAISED")) == 0 {
			t.Errorf("no teeth: %s%s", r.out, r.err)
		}
		held(t, r, "memory")
		if r.code != 137 || !strings.Contains(r.err, "memory") {
			t.Errorf("code %d: %s", r.code, r.err)
		}
	})
}

// Limits that the workload puts on init, which has its uid, can end its own
// sandbox and no more; a workload that has stopped itself is ended in time.
func TestInitUnderTheWorkloadsLimits(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		for _, limits := range []string{"--nofile=0:0 --as=0:0 --data=0:0 --nproc=0:0 --fsize=0:0 --stack=0:0", "--cpu=0:0"} {
			j := job{command: []string{"/bin/sh", "-c", "prlimit --pid 1 " + limits + " && echo LIMITED it; sleep 0.1; exit 7"}}
			r := l.run(t, j)
			if len(r.lines("LIMITED")) > 0 || r.code != 7 {
				t.Errorf("limits %s of init: code %d, %s%s", limits, r.code, r.out, r.err)
			}
			j.head = "  security {\n    seccomp {\n      allow = [\"prlimit64\"]\n    }\n  }\n"
			r = l.run(t, j)
			if len(r.lines("LIMITED")) == 0 {
				t.Errorf("no teeth: %s%s", r.out, r.err)
			}
			// Init may fail for want of what it was denied; then that is said.
			if r.code != 7 && (r.code != 125 || !strings.Contains(r.err, "init ended")) {
				t.Errorf("limits %s: code %d, want 7: %s", limits, r.code, r.err)
			}
		}
		began := time.Now()
		stopped := job{command: []string{"/bin/sh", "-c", "kill -STOP $$"}, head: "  resources {\n    pids = 64\n  }\n  timeout = \"500ms\"\n  stop {\n    grace = \"500ms\"\n  }\n"}
		if l.UID != 0 {
			stopped.head = strings.Replace(stopped.head, "pids = 64", "", 1)
		}
		if r := l.run(t, stopped); r.code != 137 || time.Since(began) > testutil.Patient(20*time.Second) {
			t.Errorf("a stopped workload: code %d after %s: %s", r.code, time.Since(began), r.err)
		}
	})
}
