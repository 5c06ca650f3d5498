package security

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/procstatus"
)

// PostureError lists every difference between what was planned and what the
// host's kernel says of the process.
type PostureError struct{ Differences []string }

func (e *PostureError) Error() string {
	return "the posture of the workload is not the planned one: " + strings.Join(e.Differences, "; ")
}

// ErrStopped tells that a process waits for SIGCONT.
var ErrStopped = errors.New("a process of the sandbox has stopped it (SIGSTOP)")

// Own is what of this process the posture of its children is compared with: what they have
// inherited, and what they must not share.
type Own struct {
	seccomp   string // its mode
	filters   int
	uncounted bool // by a kernel before 5.9
	ns        map[string]string
	root      unix.Statx_t
}

// ReadOwn reads it.
func ReadOwn() (*Own, error) {
	proc, err := openProc("self")
	if err != nil {
		return nil, fmt.Errorf("reading our own posture: %w", err)
	}
	defer unix.Close(proc)
	p := &posture{dir: proc, buf: make([]byte, 8192)}
	text, err := p.read("status")
	if err != nil {
		return nil, fmt.Errorf("reading our own posture: %w", err)
	}
	o := &Own{seccomp: procstatus.Text(text).Get("Seccomp"), ns: make(map[string]string, len(nsFiles))}
	o.filters, err = strconv.Atoi(procstatus.Text(text).Get("Seccomp_filters"))
	o.uncounted = err != nil
	for _, n := range nsFiles {
		// A kernel that has no such namespace has no such file.
		m, err := unix.Readlinkat(proc, "ns/"+n.file, p.buf)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("readlinkat ns/"+n.file, err)
		}
		o.ns[n.file] = string(p.buf[:m])
	}
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, unix.STATX_INO, &o.root); err != nil {
		return nil, os.NewSyscallError("statx /", err)
	}
	return o, nil
}

// openProc opens a directory of /proc to look things up in.
func openProc(pid string) (int, error) {
	fd, err := unix.Open("/proc/"+pid, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/proc/" + pid, Err: err}
	}
	return fd, nil
}

// Expected is what the posture is compared with.
type Expected struct {
	Own     *Own
	Plan    *plan.Plan
	Process initproto.Process
	InitPid int // as the host sees it
	// Cgroup is the path of the sandbox's group by controller ("" on v2), nil
	// for none.
	Cgroup map[string]string
	// InitFilter is on the process too, for init had it when it made it.
	InitFilter []byte
}

const (
	// filterWait bounds how long stage 2 may take to load its filter.
	filterWait = 5 * time.Second
	// filterSpin is how much of it is waited for without a sleep.
	filterSpin = 300 * time.Microsecond
)

// ReadPosture reads what the kernel says of stage 2, which waits at the start
// gate, and compares it with the plan. Any difference is a PostureError.
func ReadPosture(pid int, want Expected) error {
	proc, err := openProc(strconv.Itoa(pid))
	if err != nil {
		return fmt.Errorf("reading the posture: %w", err)
	}
	defer unix.Close(proc)
	p := &posture{dir: proc, pid: pid, want: want, buf: make([]byte, 8192)}
	// What stage 2 has from its fork is read while it puts on the rest.
	p.namespaces()
	p.root()
	p.cgroup()
	status, err := p.atGate()
	if err != nil {
		return err
	}
	p.credentials(status)
	p.cwd()
	p.descriptors()
	p.limits()
	if p.err != nil {
		return fmt.Errorf("reading the posture: %w", p.err)
	}
	if len(p.bad) > 0 {
		return &PostureError{p.bad}
	}
	return nil
}

// ReadInitPosture waits until init has hardened itself, and compares what the
// kernel says of it with what it was told: the workload must not run beside an
// init that is still open to it.
func ReadInitPosture(pid int, own *Own, setup *initproto.Setup) error {
	proc, err := openProc(strconv.Itoa(pid))
	if err != nil {
		return fmt.Errorf("reading the posture of init: %w", err)
	}
	defer unix.Close(proc)
	p := &posture{dir: proc, pid: pid, want: Expected{Own: own}, buf: make([]byte, 8192)}
	keep := fmt.Sprintf("%016x", setup.InitCaps)
	s, err := p.awaitFilters(count(setup.InitFilter), func(s procstatus.Text) bool { return s.Get("CapEff") == keep && s.Get("CapPrm") == keep })
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	p.check("init's effective set", s.Get("CapEff"), keep)
	p.check("init's permitted set", s.Get("CapPrm"), keep)
	p.check("init's no_new_privs", s.Get("NoNewPrivs"), "1")
	if len(p.bad) > 0 {
		return &PostureError{p.bad}
	}
	return nil
}

type posture struct {
	dir  int
	pid  int
	want Expected
	// stands is its root.
	stands unix.Statx_t
	buf    []byte
	bad    []string
	err    error
}

func (p *posture) differ(format string, args ...any) {
	p.bad = append(p.bad, fmt.Sprintf(format, args...))
}

// check compares one value.
func (p *posture) check(what, got, want string) {
	if got != want {
		p.differ("%s is %s, want %s", what, got, want)
	}
}

// read reads a file that the kernel makes in one piece (single_open() in fs/proc): whatever a
// read gives beside a full buffer is all of it.
func (p *posture) read(name string) ([]byte, error) {
	fd, err := unix.Openat(p.dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, os.NewSyscallError("open "+name, err)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, p.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("read "+name, err)
		}
		return p.buf[:n], nil
	}
}

func (p *posture) link(name string) string {
	n, err := unix.Readlinkat(p.dir, name, p.buf)
	if err != nil {
		p.err = errors.Join(p.err, os.NewSyscallError("readlink "+name, err))
		return ""
	}
	return string(p.buf[:n])
}

// atGate waits until stage 2 has loaded its filters, which is the last thing it
// does, and gives its status. Stage 2 cannot tell us by itself: a filter may
// forbid every call that could.
func (p *posture) atGate() (procstatus.Text, error) {
	w := p.want.Process
	sleeps := func(s procstatus.Text) bool { return strings.HasPrefix(s.Get("State"), "S") }
	s, err := p.awaitFilters(count(append([][]byte{p.want.InitFilter, w.Filter}, w.Narrow...)...), sleeps)
	if err != nil {
		return nil, fmt.Errorf("stage 2: %w", err)
	}
	return s, nil
}

// count tells how many of these filters there are.
func count(filters ...[]byte) (n int) {
	for _, f := range filters {
		if len(f) > 0 {
			n++
		}
	}
	return n
}

// awaitFilters reads the status until n filters are on beside those that this
// process has itself, and has handed down: run in a container or by a service
// manager, it may well have some. Where there is nothing to count, no filter or a
// kernel before 5.9, settled says that it is time.
func (p *posture) awaitFilters(n int, settled func(procstatus.Text) bool) (procstatus.Text, error) {
	own := p.want.Own
	mode := "2"
	if n == 0 {
		mode = own.seccomp
	}
	began := time.Now()
	for wait := 20 * time.Microsecond; ; {
		b, err := p.read("status")
		if err != nil {
			return nil, fmt.Errorf("reading the posture: %w", err)
		}
		s := procstatus.Text(b)
		if state := s.Get("State"); strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X") {
			return nil, fmt.Errorf("reading the posture: %w", unix.ESRCH)
		}
		ready := s.Get("Seccomp") == mode
		if n == 0 || own.uncounted {
			ready = ready && settled(s)
		} else {
			ready = ready && s.Get("Seccomp_filters") == strconv.Itoa(own.filters+n)
		}
		if ready {
			// Read once more: the kernel writes the lines one after the other, and
			// the first ones may be from before the filter.
			if b, err = p.read("status"); err != nil {
				return nil, fmt.Errorf("reading the posture: %w", err)
			}
			return procstatus.Text(b), nil
		}
		waited := time.Since(began)
		if waited > filterWait && strings.HasPrefix(s.Get("State"), "T") {
			return nil, fmt.Errorf("not ready within %s: %w", filterWait, ErrStopped)
		}
		if waited > filterWait {
			return nil, fmt.Errorf("not ready within %s (seccomp mode %s, want %s; %s filters, want %d)", filterWait, s.Get("Seccomp"), mode, s.Get("Seccomp_filters"), own.filters+n)
		}
		// As a rule it is a matter of some microseconds, and a sleep is late by fifty and more.
		if waited < filterSpin {
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
			continue
		}
		// Not time.Sleep: to wake another thread up takes longer than this.
		_ = unix.Nanosleep(&unix.Timespec{Nsec: int64(wait)}, nil) // EINTR: a shorter wait
		wait = min(wait*2, 200*time.Microsecond)
	}
}

func (p *posture) credentials(s procstatus.Text) {
	w := p.want.Process
	ids := p.want.Plan.IDs
	uid, gid := w.UID, w.GID
	if ids.Kind != "none" {
		uid, _ = plan.HostID(ids.UIDs, w.UID)
		gid, _ = plan.HostID(ids.GIDs, w.GID)
	}
	p.check("uid", s.Get("Uid"), procstatus.Four(uid))
	p.check("gid", s.Get("Gid"), procstatus.Four(gid))
	if w.SetGroups {
		var groups []string
		for _, g := range w.Groups {
			if ids.Kind != "none" {
				g, _ = plan.HostID(ids.GIDs, g)
			}
			groups = append(groups, strconv.FormatUint(uint64(g), 10))
		}
		got := strings.Fields(s.Get("Groups"))
		slices.Sort(got)
		slices.Sort(groups)
		p.check("supplementary groups", strings.Join(got, " "), strings.Join(groups, " "))
	}
	hex := func(v uint64) string { return fmt.Sprintf("%016x", v) }
	p.check("bounding set", s.Get("CapBnd"), hex(w.Caps.Bounding))
	p.check("permitted set", s.Get("CapPrm"), hex(w.Caps.Permitted))
	p.check("effective set", s.Get("CapEff"), hex(w.Caps.Effective))
	p.check("inheritable set", s.Get("CapInh"), hex(w.Caps.Inheritable))
	p.check("ambient set", s.Get("CapAmb"), hex(w.Caps.Ambient))
	p.check("no_new_privs", s.Get("NoNewPrivs"), "1")
	p.check("umask", s.Get("Umask"), fmt.Sprintf("%04o", w.Umask))
	if p.want.Plan.Init {
		p.check("threads", s.Get("Threads"), "1") // else the Go runtime's go at execve
	}
}

// nsFiles are the namespaces by their names in /proc/PID/ns.
var nsFiles = []struct{ file, oci string }{
	{"user", "user"}, {"mnt", "mount"}, {"pid", "pid"}, {"net", "network"}, {"ipc", "ipc"}, {"uts", "uts"}, {"cgroup", "cgroup"}, {"time", "time"},
}

func (p *posture) namespaces() {
	planned := map[string]bool{}
	for _, n := range p.want.Plan.Namespaces {
		planned[string(n.Type)] = true
	}
	for _, n := range nsFiles {
		mine, ok := p.want.Own.ns[n.file]
		if !ok {
			continue // this kernel has no such namespace, and the plan none of it
		}
		theirs := p.link("ns/" + n.file)
		if p.err != nil {
			return
		}
		switch same := mine == theirs; {
		case same && planned[n.oci]:
			p.differ("the %s namespace is the host's", n.oci)
		case !same && !planned[n.oci]:
			p.differ("the %s namespace is not the host's", n.oci)
		}
	}
}

// root checks that the process stands in the sandbox's root, which is not the
// supervisor's.
func (p *posture) root() {
	var init unix.Statx_t
	if err := unix.Statx(p.dir, "root/", 0, unix.STATX_INO|unix.STATX_MNT_ID, &p.stands); err != nil {
		p.err = errors.Join(p.err, os.NewSyscallError("statx root", err))
		return
	}
	if err := unix.Statx(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/root/", p.want.InitPid), 0, unix.STATX_INO, &init); err != nil {
		p.err = errors.Join(p.err, err)
		return
	}
	if sameFile(p.want.Own.root, p.stands) {
		p.differ("the root is the host's")
	}
	if !sameFile(init, p.stands) {
		p.differ("the root is not init's")
	}
}

func sameFile(x, y unix.Statx_t) bool {
	return x.Dev_major == y.Dev_major && x.Dev_minor == y.Dev_minor && x.Ino == y.Ino
}

// cwd checks that the working directory lies in the sandbox (CVE-2024-21626).
// Its path tells nothing: the kernel prints it as seen from the reader's root,
// and a directory of another mount namespace looks like any other. The mount
// that it is on must be one of those that the process can reach.
func (p *posture) cwd() {
	var st unix.Statx_t
	if err := unix.Statx(p.dir, "cwd", 0, unix.STATX_MNT_ID, &st); err != nil {
		p.err = errors.Join(p.err, os.NewSyscallError("statx cwd", err))
		return
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		p.err = errors.Join(p.err, errors.New("the kernel does not tell the mount of the working directory (Linux 5.8)"))
		return
	}
	if p.stands.Mask&unix.STATX_MNT_ID != 0 && p.stands.Mnt_id == st.Mnt_id {
		return
	}
	own, err := p.hasMount(st.Mnt_id)
	if err != nil {
		p.err = errors.Join(p.err, err)
		return
	}
	if !own {
		p.differ("the working directory %q is on no mount of the sandbox", p.link("cwd"))
	}
}

// hasMount looks for a mount among those that the process can reach from its root.
func (p *posture) hasMount(id uint64) (bool, error) {
	fd, err := unix.Openat(p.dir, "mountinfo", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, os.NewSyscallError("open mountinfo", err)
	}
	f := os.NewFile(uintptr(fd), "mountinfo")
	defer f.Close()
	want := strconv.FormatUint(id, 10)
	lines := bufio.NewScanner(f)
	lines.Buffer(p.buf, 1<<20)
	for lines.Scan() {
		if first, _, _ := bytes.Cut(lines.Bytes(), []byte(" ")); string(first) == want {
			return true, nil
		}
	}
	return false, lines.Err()
}

// Listener is the descriptor that seccomp(2) gives stage 2 for a filter with a listener, if it has this many sockets:
// the first after the gate. It is closed by execve(2).
func Listener(sockets int) int { return 4 + sockets }

// descriptors checks that stage 2 holds 0, 1, 2, the sockets that were passed, the
// gate, and its filter's listener if it has one, and nothing else.
func (p *posture) descriptors() {
	// fdinfo, for it asks only for ptrace access (Linux 5.14), where fd also
	// asks for an owner that a map without id 0 does not have.
	fd, err := unix.Openat(p.dir, "fdinfo", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		p.err = errors.Join(p.err, os.NewSyscallError("open fdinfo", err))
		return
	}
	d := os.NewFile(uintptr(fd), "fdinfo")
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		p.err = errors.Join(p.err, err)
		return
	}
	slices.Sort(names)
	open := Listener(len(p.want.Process.Listen))
	if p.want.Process.FilterFlags&unix.SECCOMP_FILTER_FLAG_NEW_LISTENER != 0 {
		open++
	}
	want := make([]string, open)
	for i := range want {
		want[i] = strconv.Itoa(i)
	}
	slices.Sort(want)
	p.check("open descriptors", strings.Join(names, " "), strings.Join(want, " "))
}

func (p *posture) limits() {
	for _, r := range p.want.Process.Rlimits {
		var got unix.Rlimit
		if err := unix.Prlimit(p.pid, int(r.Resource), nil, &got); err != nil {
			if errors.Is(err, unix.EPERM) {
				p.limitsByFile()
				return
			}
			p.err = errors.Join(p.err, os.NewSyscallError("prlimit64", err))
			return
		}
		if got.Cur != r.Soft || got.Max != r.Hard {
			p.differ("resource limit %d is %d:%d, want %d:%d", r.Resource, got.Cur, got.Max, r.Soft, r.Hard)
		}
	}
}

// limitNames are the rows of /proc/PID/limits.
var limitNames = map[uint32]string{
	unix.RLIMIT_CPU: "Max cpu time", unix.RLIMIT_FSIZE: "Max file size", unix.RLIMIT_DATA: "Max data size", unix.RLIMIT_STACK: "Max stack size",
	unix.RLIMIT_CORE: "Max core file size", unix.RLIMIT_RSS: "Max resident set", unix.RLIMIT_NPROC: "Max processes", unix.RLIMIT_NOFILE: "Max open files",
	unix.RLIMIT_MEMLOCK: "Max locked memory", unix.RLIMIT_AS: "Max address space", unix.RLIMIT_LOCKS: "Max file locks", unix.RLIMIT_SIGPENDING: "Max pending signals",
	unix.RLIMIT_MSGQUEUE: "Max msgqueue size", unix.RLIMIT_NICE: "Max nice priority", unix.RLIMIT_RTPRIO: "Max realtime priority", unix.RLIMIT_RTTIME: "Max realtime timeout",
}

// limitsByFile reads the limits where prlimit(2) is refused: it wants equal
// ids, or CAP_SYS_RESOURCE in the initial user namespace's terms.
func (p *posture) limitsByFile() {
	b, err := p.read("limits")
	if err != nil {
		p.err = errors.Join(p.err, err)
		return
	}
	text := string(b)
	for _, r := range p.want.Process.Rlimits {
		_, row, ok := strings.Cut(text, "\n"+limitNames[r.Resource])
		f := strings.Fields(row)
		if !ok || len(f) < 2 {
			p.differ("resource limit %q is unknown", limitNames[r.Resource])
			continue
		}
		p.check(limitNames[r.Resource], f[0]+":"+f[1], limitText(r.Soft)+":"+limitText(r.Hard))
	}
}

func limitText(v uint64) string {
	if v == unix.RLIM_INFINITY {
		return "unlimited"
	}
	return strconv.FormatUint(v, 10)
}

// cgroup checks that the process is in the sandbox's group.
func (p *posture) cgroup() {
	if len(p.want.Cgroup) == 0 {
		return
	}
	b, err := p.read("cgroup")
	if err != nil {
		p.err = errors.Join(p.err, err)
		return
	}
	paths := map[string]string{}
	for line := range bytes.Lines(b) {
		f := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(f) == 3 {
			for _, c := range strings.Split(f[1], ",") {
				paths[c] = f[2]
			}
		}
	}
	for c, dir := range p.want.Cgroup {
		if got, ok := paths[c]; !ok || !strings.HasSuffix(dir, got) || got == "/" {
			p.differ("the %s group is %q, want the end of %q", c, got, dir)
		}
	}
}
