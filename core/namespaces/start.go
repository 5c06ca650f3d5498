// Package namespaces owns the birth of a sandbox's init: the clone flags, the
// id maps and who writes them. It never looks at what init does afterwards.
package namespaces

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/plainfile"
)

// flags of the namespaces that init has from its birth. The cgroup
// namespace is not among them: its root is the group that its maker is in, so
// init makes it once it has been attached (W8).
var flags = map[specs.LinuxNamespaceType]uintptr{
	specs.UserNamespace: unix.CLONE_NEWUSER, specs.PIDNamespace: unix.CLONE_NEWPID, specs.MountNamespace: unix.CLONE_NEWNS,
	specs.NetworkNamespace: unix.CLONE_NEWNET, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.IPCNamespace: unix.CLONE_NEWIPC,
	specs.TimeNamespace: unix.CLONE_NEWTIME,
}

// allCaps is more than any kernel has; ambient capabilities past its last one
// are left out by lastCap.
const allCaps = 64

// Options of Start.
type Options struct {
	Path     string   // of nucleus-init
	Program  *os.File // nucleus-init itself, instead of Path
	Stdio    [3]int   // become 0, 1 and 2 of init
	Control  int      // becomes 3
	CgroupFD *os.File // clone into this group (v2), nil for none
	// Tasks are the files of groups (v1) that init enters before anything else: by itself,
	// for to move another process takes longer than all the rest (cgroups.Group.Doors).
	Tasks   []*os.File
	LastCap uintptr // the kernel's last capability
	// MaxFiles, if not zero, is the hard limit of open files. Init is then started (on
	// amd64) with room for its four descriptors alone, and must set the soft limit itself:
	// Go's runtime would open the host's cgroup files, and those of huge pages, for
	// numbers that init has no use for.
	MaxFiles uint64
	// Begun is an init that has been begun for this plan, nil for none. Start makes another one
	// if it does not fit.
	Begun *Begun
	// Each of these may be nil. Mapped is called once the user namespace has its id maps, or
	// without a pid if those who write them could not. Init may not have come as far as its
	// exec by then, and Start may still fail.
	Mapped func(pid int)
	// Beside is called when init has been made, and is on its way to its exec. The scheduler
	// wakes a thread on the very processor that init begins on: what there is to do
	// meanwhile is best done by the thread that has made it.
	Beside func()
	// Execed is called by another goroutine, when init has executed its program or why it
	// could not is known. Beside need not have returned by then.
	Execed func(pid int, err error)
}

// Init is a started init. Its owner must call Wait.
type Init struct {
	Pid   int
	PidFD int
	// CPUs is where it is to run, with all that it makes, from its first process on: until
	// then it is kept off its maker's processor. As sched_setaffinity(2) takes it, nil for
	// where it is.
	CPUs []byte

	once   sync.Once
	status syscall.WaitStatus
	err    error
}

// UnsupportedError tells that this host does not let us make a sandbox.
type UnsupportedError struct {
	Err    error
	Remedy string
	Origin string // the job's path, "" if it is nothing that a job says
}

func (e *UnsupportedError) Error() string { return e.Err.Error() }
func (e *UnsupportedError) Unwrap() error { return e.Err }

// Start makes init in its namespaces. The thread that it is called on must live as long
// as the sandbox: the parent-death signal follows the thread, not the process
// (golang#27505).
func Start(p *plan.Plan, o Options) (*Init, error) {
	// Go would let 4 MiB of garbage gather in a process that needs less than one; each
	// further command leaves some.
	b := born{
		path: o.Path, argv: []string{"nucleus-init"}, env: []string{"GOMAXPROCS=1", "GOGC=25"}, fds: [4]int{o.Stdio[0], o.Stdio[1], o.Stdio[2], o.Control},
		program: -1, cgroup: -1, tasks: o.Tasks, maxFiles: o.MaxFiles, uids: p.IDs.UIDs, gids: p.IDs.GIDs, setGroups: p.IDs.SetGroups, helpers: p.IDs.Helpers, mapped: o.Mapped, beside: o.Beside, execed: o.Execed, begun: o.Begun,
	}
	if b.mapped == nil {
		b.mapped = func(int) {}
	}
	if b.beside == nil {
		b.beside = func() {}
	}
	if b.execed == nil {
		b.execed = func(int, error) {}
	}
	for _, n := range p.Namespaces {
		b.flags |= flags[n.Type]
	}
	if o.Program != nil {
		b.path, b.program = "", int(o.Program.Fd())
	}
	if o.CgroupFD != nil {
		b.cgroup = int(o.CgroupFD.Fd())
	}
	switch {
	case p.IDs.Kind == "none":
	case p.IDs.Helpers:
		// No map yet, and so no id: exec would drop the capabilities of the new
		// user namespace, were they not ambient.
		b.ambient = ambient(o.LastCap)
	default:
		b.writes = true
		_, uid := plan.HostID(p.IDs.UIDs, 0)
		_, gid := plan.HostID(p.IDs.GIDs, 0)
		// As 0:0 inside it keeps its capabilities over the exec; where the maps
		// have no 0, as ambient ones.
		if b.root = uid && gid; !b.root {
			b.ambient = ambient(o.LastCap)
		}
	}
	in, err := spawn(b)
	if err != nil {
		return nil, startError(err, p)
	}
	if p.IDs.Helpers {
		written := make(chan error, 1)
		go func() {
			pid, err := in.Pid, runHelpers(in.Pid, p)
			if err != nil {
				pid = 0
			}
			b.mapped(pid)
			written <- err
		}()
		b.beside()
		if err := <-written; err != nil {
			in.Kill()
			_, _ = in.Wait() // killed: its status tells nothing
			in.Close()
			return nil, err
		}
	}
	return in, nil
}

// born is how init is to come into the world, in a session of its own: signals
// of the terminal, and those that are sent to the supervisor's process group,
// are the supervisor's to pass on.
type born struct {
	path       string
	program    int // descriptor to execute instead of path, -1 for none
	argv, env  []string
	fds        [4]int
	flags      uintptr
	maxFiles   uint64 // the hard limit, if it has room for its own descriptors alone
	cgroup     int    // descriptor to clone into, -1 for none
	tasks      []*os.File
	begun      *Begun
	writes     bool // this process writes uids and gids before init goes on
	helpers    bool // others write them
	mapped     func(pid int)
	beside     func()
	execed     func(int, error)
	uids, gids []specs.LinuxIDMapping
	setGroups  bool
	root       bool // becomes 0:0
	ambient    []uintptr
}

// writeMaps writes the id maps of a process in a new user namespace.
func (b born) writeMaps(pid int) error {
	write := func(name, content string) error {
		f, err := plainfile.Open(fmt.Sprintf("/proc/%d/%s", pid, name), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(content)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return &mapError{file: name, err: err}
		}
		return nil
	}
	if err := write("uid_map", mapText(b.uids)); err != nil {
		return err
	}
	if !b.setGroups {
		// An unprivileged writer must give this up first (user_namespaces(7)).
		if err := write("setgroups", "deny"); err != nil {
			return err
		}
	}
	return write("gid_map", mapText(b.gids))
}

// mapError is the failure to write one of the files in /proc that make the id maps.
type mapError struct {
	file string
	err  error
}

func (e *mapError) Error() string { return e.err.Error() }
func (e *mapError) Unwrap() error { return e.err }

func mapText(ms []specs.LinuxIDMapping) string {
	var t strings.Builder
	for _, m := range ms {
		fmt.Fprintf(&t, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	return t.String()
}

func ambient(last uintptr) []uintptr {
	out := make([]uintptr, 0, allCaps)
	for c := uintptr(0); c <= last; c++ {
		out = append(out, c)
	}
	return out
}

// runHelpers lets newuidmap(1) and newgidmap(1) write the maps: they check the
// caller's lines in /etc/subuid and /etc/subgid.
func runHelpers(pid int, p *plan.Plan) error {
	ids := p.IDs
	run := func(helper, file string, maps []specs.LinuxIDMapping) error {
		args := []string{strconv.Itoa(pid)}
		for _, m := range maps {
			args = append(args, fmt.Sprint(m.ContainerID), fmt.Sprint(m.HostID), fmt.Sprint(m.Size))
		}
		cmd := exec.Command(helper, args...)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return &UnsupportedError{
				Err:    fmt.Errorf("writing id maps: %s: %s: %w", helper, strings.TrimSpace(string(out)), err),
				Remedy: fact.RemedyMapRefused,
				Origin: mapOrigin(p, file),
			}
		}
		return nil
	}
	// Side by side: each is a process of its own.
	gid := make(chan error, 1)
	go func() { gid <- run(ids.NewGIDMap, "gid_map", ids.GIDs) }()
	uid := run(ids.NewUIDMap, "uid_map", ids.UIDs)
	if err := <-gid; uid == nil {
		return err
	}
	return uid // most often, both fail for the same reason
}

// mapOrigin is what a job says that leads to an id map: the map, the kind of its user
// namespace, or else the user, whose ids have to be in it.
func mapOrigin(p *plan.Plan, file string) string {
	if p.IDs.Kind == "map" {
		return "namespaces." + file
	}
	if p.Where("namespaces.user") == "" && p.Where("user") != "" {
		return "user"
	}
	return "namespaces.user"
}

func startError(err error, p *plan.Plan) error {
	e := &UnsupportedError{Err: fmt.Errorf("creating namespaces: %w", err)}
	var maps *mapError
	if errors.As(err, &maps) && maps.file != "setgroups" {
		e.Origin = mapOrigin(p, maps.file)
	}
	switch {
	case errors.Is(err, unix.ENOSPC):
		e.Err = fmt.Errorf("creating namespaces: the limit of their number is reached: %w", err)
		e.Remedy = "raise the limits in /proc/sys/user (max_user_namespaces and its neighbours)"
	case errors.Is(err, unix.EPERM) && p.IDs.Kind != "none":
		e.Remedy = "this host does not let you make user namespaces: see nucleus doctor"
	case errors.Is(err, unix.EPERM):
		e.Remedy = "run as root with CAP_SYS_ADMIN"
	case errors.As(err, &maps): // of a process that was killed
		e.Err = fmt.Errorf("writing id maps: %w", err)
	case errors.Is(err, unix.ETOOMANYREFS):
		e.Err = fmt.Errorf("starting nucleus-init: its descriptors cannot be passed: %w", err)
		e.Remedy = "end the process of this user that leaves so many unread, or raise the limit of open files (ulimit -n)"
	case errors.Is(err, unix.EBADF):
		e.Err = fmt.Errorf("starting nucleus-init: it did not get all descriptors: %w", err)
		e.Remedy = "raise the limit of open files (ulimit -n)"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOENT):
		e.Err = fmt.Errorf("starting nucleus-init: %w", err)
		e.Remedy = "install nucleus-init where every user can execute it (make install)"
	case errors.Is(err, unix.ENOSYS):
		e.Remedy = "allow clone3(2): the seccomp profile of the container that we run in refuses it"
	case errors.Is(err, unix.EAGAIN):
		e.Remedy = "raise your limit of processes (ulimit -u)"
	}
	return e
}

// Kill ends init, and with it every process of its PID namespace.
func (i *Init) Kill() {
	_ = unix.PidfdSendSignal(i.PidFD, unix.SIGKILL, nil, 0) // ESRCH: it is gone already
}

// Wait collects init. When it returns, no process of the sandbox is left:
// zap_pid_ns_processes() in the kernel waits for all of them first.
// It may be called again.
func (i *Init) Wait() (syscall.WaitStatus, error) {
	i.once.Do(func() {
		for {
			_, err := syscall.Wait4(i.Pid, &i.status, 0, nil)
			if !errors.Is(err, unix.EINTR) {
				i.err = os.NewSyscallError("wait4", err)
				return
			}
		}
	})
	return i.status, i.err
}

// Close lets the pidfd go. Kill does nothing after it.
func (i *Init) Close() {
	if i.PidFD >= 0 {
		_ = unix.Close(i.PidFD) // nothing was written through it
		i.PidFD = -1
	}
}
