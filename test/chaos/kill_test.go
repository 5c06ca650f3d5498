package chaos

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lifetime is a little more than a run of these tests takes on a busy machine.
const lifetime = 120 * time.Millisecond

// random gives reproducible instants: the seed is in the log of a failure.
func random(t *testing.T) func() time.Duration {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	return func() time.Duration { return time.Duration(r.Int64N(int64(lifetime))) }
}

type running struct {
	cmd *exec.Cmd
	out *bytes.Buffer
}

func (s *site) start(args ...string) running {
	s.t.Helper()
	r := running{s.command("nucleus", args...), new(bytes.Buffer)}
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
	if err := r.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *site) wait(r running) int {
	s.t.Helper()
	return finish(s.t, r.cmd, r.cmd.Wait())
}

func (s *site) signal(pid int, sig unix.Signal) {
	s.t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		s.t.Fatalf("kill %d: %v", pid, err)
	}
}

func TestSupervisorKilledAtAnyTime(t *testing.T) {
	sites(t, func(s *site) {
		at := random(s.t)
		args := s.jobs("sleep 0.03")["everything"]
		for range 40 {
			r := s.start(args...)
			after := at()
			time.Sleep(after)
			_ = r.cmd.Process.Kill() // it may have ended
			_ = s.wait(r)
			s.gc("killed after " + after.String())
		}
	})
}

func TestStoppedSupervisorKilled(t *testing.T) {
	sites(t, func(s *site) {
		at := random(s.t)
		args := s.jobs("sleep 0.03")["everything"]
		for range 10 {
			r := s.start(args...)
			after := at()
			time.Sleep(after)
			s.signal(r.cmd.Process.Pid, unix.SIGSTOP) // a zombie takes it as well
			time.Sleep(10 * time.Millisecond)
			// Alive, although it does nothing: its sandbox is not for gc to take. If
			// it was stopped with the lock of the state root, gc says so.
			code, out := s.try("gc")
			if locked := code == 125 && strings.Contains(out, "has held its lock"); !locked && (code != 0 || strings.TrimSpace(out) != "") {
				s.t.Errorf("gc beside a stopped supervisor: exit code %d, collected %q", code, out)
			}
			_ = r.cmd.Process.Kill()
			_ = s.wait(r)
			s.gc("stopped after " + after.String() + ", then killed")
		}
	})
}

// Whatever happens to init, the supervisor sees it, cleans up by itself and
// says that it was not the workload's doing.
func TestInitKilledAtAnyTime(t *testing.T) {
	sites(t, func(s *site) {
		at := random(s.t)
		args := s.jobs("sleep 0.03; exit 7")["everything"]
		killed := 0
		for range 40 {
			r := s.start(args...)
			after := at() / 2
			time.Sleep(after)
			pid := child(s.t, r.cmd.Process.Pid, "nucleus-init")
			if pid != 0 && unix.Kill(pid, unix.SIGKILL) == nil {
				killed++
			}
			if code := s.wait(r); code != 125 && code != 7 {
				s.t.Errorf("init killed after %s: exit code %d, want 125, or 7 if it came too late: %s", after, code, r.out)
			} else if code == 125 && !strings.Contains(r.out.String(), "nucleus: error: ") {
				s.t.Errorf("init killed after %s: no error: %q", after, r.out)
			}
			s.nothingLeft("init killed after " + after.String())
		}
		if killed == 0 {
			s.t.Error("no init was met: nothing was tested")
		}
	})
}

func TestInitKilledWhileTheWorkloadRuns(t *testing.T) {
	sites(t, func(s *site) {
		for name, args := range s.jobs("sleep 20") {
			r := s.start(args...)
			init, _ := s.workload(r)
			s.signal(init, unix.SIGKILL)
			if code := s.wait(r); code != 125 || !strings.Contains(r.out.String(), "init ended") {
				s.t.Errorf("%s: exit code %d, want 125 and that init ended: %s", name, code, r.out)
			}
			s.nothingLeft(name + ": init killed")
		}
	})
}

func TestWorkloadKilledFromTheHost(t *testing.T) {
	sites(t, func(s *site) {
		for name, args := range s.jobs("sleep 20; exit 3") {
			r := s.start(args...)
			_, work := s.workload(r)
			s.signal(work, unix.SIGKILL)
			if code := s.wait(r); code != 128+int(unix.SIGKILL) {
				s.t.Errorf("%s: exit code %d, want 137: %s", name, code, r.out)
			}
			s.nothingLeft(name + ": workload killed")
		}
	})
}

// workload waits until the workload runs a program, and gives init and it.
func (s *site) workload(r running) (init, work int) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if init = child(s.t, r.cmd.Process.Pid, "nucleus-init"); init == 0 {
			continue
		}
		if work = child(s.t, init, ""); work != 0 && child(s.t, work, "sleep") != 0 {
			return init, work
		}
	}
	s.t.Fatalf("no workload: %s", r.out)
	return 0, 0
}

// A signal during the start ends it, and one after it is the workload's: there
// is no instant at which it is lost.
func TestTerminatedAtAnyTime(t *testing.T) {
	sites(t, func(s *site) {
		at := random(s.t)
		args := s.jobs("sleep 20")["everything"]
		for range 40 {
			r := s.start(args...)
			after := at() / 2
			time.Sleep(after)
			s.signal(r.cmd.Process.Pid, unix.SIGTERM)
			began := time.Now()
			code := s.wait(r)
			if code == 0 || time.Since(began) > 15*time.Second {
				s.t.Errorf("SIGTERM after %s: exit code %d after %s: %s", after, code, time.Since(began), r.out)
			}
			s.nothingLeft("SIGTERM after " + after.String())
		}
	})
}

// stops are workloads that do not want to end.
var stops = map[string]string{
	"TERM ignored":            `trap "" TERM INT HUP QUIT; while :; do sleep 1; done`,
	"double fork and setsid":  `setsid sh -c 'trap "" TERM; setsid sleep 300 & sleep 300' & trap "" TERM; sleep 300`,
	"stopped processes":       `trap "" TERM; for i in 1 2 3 4; do sleep 300 & kill -STOP $!; done; sleep 300`,
	"children that ignore it": `trap "" TERM; for i in 1 2 3 4 5 6 7 8; do sh -c 'trap "" TERM; sleep 300' & done; sleep 300`,
}

// storm is for sandboxes with a limit of processes and of processor time, and bounded
// by the group of these tests besides.
const storm = `trap "" TERM; f() { while :; do sleep 0.01 & sh -c : & done; }; f 2>/dev/null & f 2>/dev/null & sleep 300`

func TestStopIsBounded(t *testing.T) {
	const grace, slack = 300 * time.Millisecond, 2 * time.Second
	sites(t, func(s *site) {
		work := stops
		if s.limits {
			work = map[string]string{"fork storm": storm}
			for k, v := range stops {
				work[k] = v
			}
		}
		for name, script := range work {
			body := "  command = [\"/bin/sh\", \"-c\", " + quote(script) + "]\n  stop {\n    grace = \"300ms\"\n  }\n"
			if s.limits {
				body += limits
			}
			r := s.start("run", "-config", s.job("stop", body))
			s.workload(r)
			time.Sleep(100 * time.Millisecond)
			began := time.Now()
			s.signal(r.cmd.Process.Pid, unix.SIGTERM)
			code := s.wait(r)
			if took := time.Since(began); took > grace+slack {
				s.t.Errorf("%s: stopped in %s, want at most %s", name, took, grace+slack)
			}
			if code != 137 && code != 143 {
				s.t.Errorf("%s: exit code %d, want 137 or 143: %s", name, code, r.out)
			}
			s.nothingLeft(name)
		}
	})
}

func quote(script string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `${`, `$${`).Replace(script) + `"`
}

// Of the supervisor's death its sandbox dies, without gc.
func TestSandboxDiesWithItsSupervisor(t *testing.T) {
	sites(t, func(s *site) {
		for name, script := range stops {
			r := s.start("run", "-config", s.job("orphan", "  command = [\"/bin/sh\", \"-c\", "+quote(script)+"]\n"))
			s.workload(r)
			s.signal(r.cmd.Process.Pid, unix.SIGKILL)
			if code := s.wait(r); code != -int(unix.SIGKILL) {
				s.t.Errorf("%s: exit code %d, want death by SIGKILL", name, code)
			}
			s.quiet()
			if entries, err := os.ReadDir(s.root + "/sandboxes"); err != nil || len(entries) != 1 {
				s.t.Errorf("%s: %d dead sandboxes before gc, want 1 (%v)", name, len(entries), err)
			}
			s.gc(name)
		}
	})
}

// The pid file of a killed supervisor keeps nobody from starting again; one of
// a living process does, and so does any other file.
func TestStalePidFile(t *testing.T) {
	sites(t, func(s *site) {
		path := s.who.Home + "/pid"
		args := []string{"run", "-pid-file", path, "--", "/bin/sh", "-c", "sleep 20"}
		r := s.start(args...)
		s.workload(r)
		if code, out := s.try("run", "-pid-file", path, "--", "/bin/true"); code != 125 || !strings.Contains(out, "pid file") {
			s.t.Errorf("beside a living one: exit code %d: %s", code, out)
		}
		_ = r.cmd.Process.Kill()
		_ = s.wait(r)
		s.gc("killed")
		if code, out := s.try("run", "-pid-file", path, "--", "/bin/true"); code != 0 {
			s.t.Errorf("after it was killed: exit code %d: %s", code, out)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			s.t.Errorf("the pid file is left: %v", err)
		}
		if err := os.WriteFile(path, []byte("12345678x"), 0o644); err != nil {
			s.t.Fatal(err)
		}
		if code, out := s.try("run", "-pid-file", path, "--", "/bin/true"); code != 125 {
			s.t.Errorf("over a user's file: exit code %d: %s", code, out)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "12345678x" {
			s.t.Errorf("a user's file: %q, %v", b, err)
		}
	})
}

// Output that nobody reads is no reason to live on after a stop.
func TestStopBesideASleepingReader(t *testing.T) {
	sites(t, func(s *site) {
		job := s.job("reader", "  command = [\"/bin/sh\", \"-c\", \"while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done\"]\n  tty = true\n  stop {\n    grace = \"300ms\"\n  }\n")
		cmd := s.command("nucleus", "run", "-config", job)
		out, err := cmd.StdoutPipe()
		if err != nil {
			s.t.Fatal(err)
		}
		defer out.Close()
		if err := cmd.Start(); err != nil {
			s.t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond) // the pipe is full by now
		began := time.Now()
		s.signal(cmd.Process.Pid, unix.SIGTERM)
		if err := cmd.Wait(); err == nil {
			s.t.Error("exit code 0, want that of a killed workload")
		}
		if took := time.Since(began); took > 5*time.Second {
			s.t.Errorf("stopped in %s", took)
		}
		s.nothingLeft("a sleeping reader")
	})
}
