// Bench measures Nucleus against its peers: time from start to exit, sandboxes
// per second, memory of idle ones, time of a further command. All peers run the same
// payload on the same root file system with the same filter in the same run, in
// interleaved rounds, since only ratios of one run mean anything.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

type options struct {
	nucleus, user, out string
	rounds, runs       int
	seconds            float64
	sandboxes          int
	only               string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "launcher" {
		fail(serveLauncher(slices.Contains(os.Args[2:], "-fresh-cgroup2")))
		return
	}
	var o options
	flag.StringVar(&o.nucleus, "nucleus", "", "the installed nucleus binary; without it only the peers are measured")
	flag.StringVar(&o.user, "user", "", "start sandboxes as this user instead of the current one")
	flag.StringVar(&o.out, "out", "bench/results", "directory for the tables and the plot")
	flag.IntVar(&o.rounds, "rounds", 5, "interleaved rounds")
	flag.IntVar(&o.runs, "runs", 20, "cold starts, and commands, of each peer in a round")
	flag.Float64Var(&o.seconds, "seconds", 2, "how long each sandboxes-per-second measurement takes")
	flag.IntVar(&o.sandboxes, "sandboxes", 50, "idle sandboxes alive at once")
	flag.StringVar(&o.only, "only", "cold,rate,idle,exec", "which measurements")
	flag.Parse()
	fail(run(o))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: error: %v\n", err)
		os.Exit(1)
	}
}

// inMemory is where all peers keep their state: in memory, as in /run and
// $XDG_RUNTIME_DIR of a host with systemd, which are no tmpfs everywhere.
const inMemory = "/dev/shm"

func run(o options) (err error) {
	dir, err := os.MkdirTemp("", "nucleus-bench-")
	if err != nil {
		return err
	}
	defer func() {
		if removeErr := os.RemoveAll(dir); err == nil {
			err = removeErr
		}
	}()
	memory, err := os.MkdirTemp(inMemory, "nucleus-bench-")
	if err != nil {
		return err
	}
	defer func() {
		if removeErr := os.RemoveAll(memory); err == nil {
			err = removeErr
		}
	}()
	for _, d := range []string{dir, memory} {
		if err := os.Chmod(d, 0o755); err != nil {
			return err
		}
	}
	f, err := newFixture(dir, memory)
	if err != nil {
		return err
	}
	uid, gid, name, err := who(o.user)
	if err != nil {
		return err
	}
	if err := f.forUser(uid, gid); err != nil {
		return err
	}
	f.nucleus = o.nucleus

	pureV2, err := onlyCgroupV2()
	if err != nil {
		return err
	}
	f.peerLimits = pureV2 && f.root
	f.nucleusLimits = f.root
	report := newReport(o, f, name, pureV2)

	host, err := startLauncher(false)
	if err != nil {
		return err
	}
	defer host.stop() //nolint:errcheck // it has nothing to lose
	private := host
	if !pureV2 && os.Geteuid() == 0 {
		if private, err = startLauncher(true); err != nil {
			return err
		}
		defer private.stop() //nolint:errcheck // it has nothing to lose
	}
	s := &session{options: o, fixture: f, report: report, host: host, private: private}
	for _, p := range peers(f) {
		s.rows = append(s.rows, &row{peer: p})
	}
	s.proveAll()
	for _, kind := range []struct {
		name    string
		measure func()
	}{{"cold", s.cold}, {"rate", s.rate}, {"idle", s.idle}, {"exec", s.exec}} {
		if slices.Contains(strings.Split(o.only, ","), kind.name) {
			kind.measure()
		}
	}
	if f.nucleus != "" {
		report.trace = s.trace()
	}
	report.rows = s.rows
	return report.write()
}

func who(name string) (uid, gid int, title string, err error) {
	if name == "" {
		title = "root"
		if os.Geteuid() != 0 {
			title = "user"
		}
		return os.Geteuid(), os.Getegid(), title, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, "", err
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, "", err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, "user", err
}

func onlyCgroupV2() (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return false, os.NewSyscallError("statfs /sys/fs/cgroup", err)
	}
	return fs.Type == unix.CGROUP2_SUPER_MAGIC, nil
}

// trace asks Nucleus where the time of one start goes.
func (s *session) trace() string {
	job, err := s.fixture.job([]string{"/bin/true"}, "trace", "")
	if err != nil {
		return err.Error()
	}
	cmd := exec.Command(s.fixture.nucleus, "run", "-trace", "-config", job)
	cmd.Env, cmd.Dir = s.fixture.env, "/"
	if s.fixture.uid != os.Geteuid() {
		cmd.SysProcAttr = credential(s.fixture.uid, s.fixture.gid)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v\n%s", err, out)
	}
	return string(out)
}

func resultPath(o options, title, extension string) string {
	return filepath.Join(o.out, title+extension)
}
