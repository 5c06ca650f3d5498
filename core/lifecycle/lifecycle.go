// Package lifecycle is the sequencer: it takes a plan through the five phases
// in their order, keeps the gates between them, and undoes everything again,
// whatever happened. It composes the phase packages, which don't know each
// other, and does no kernel work of its own.
package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/checkpoint"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/fs"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
	"github.com/nucleus-runtime/nucleus/core/listen"
	"github.com/nucleus-runtime/nucleus/core/member"
	"github.com/nucleus-runtime/nucleus/core/namespaces"
	"github.com/nucleus-runtime/nucleus/core/notify"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/probe"
	"github.com/nucleus-runtime/nucleus/core/security"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/core/tree"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
	"github.com/nucleus-runtime/nucleus/internal/plainfile"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	sdk "github.com/nucleus-runtime/nucleus/sdk/network"
)

// Config is what a sandbox needs beside its plan.
type Config struct {
	// Dir is the sandbox's own, and the caller's: after the teardown it may be used for
	// another run, or removed, if its journal has nothing pending.
	Dir        *state.Dir
	InitPath   string
	Init       *os.File // what to execute instead of InitPath, if not nil
	Refused    []string // host paths that no sandbox may have anything of
	Programs   string   // and one that no job may bind: where Nucleus's programs are
	Seccomp    seccomp.Compiler
	Cgroups    cgroups.Facts
	Privileged bool
	Streams    exec.Streams
	Log        *audit.Log
	// Manager is told what the sandbox says of itself, if the plan says so; nil for nobody.
	Manager *notify.Manager
	// Listen are the sockets that the workload gets, if the plan says so. They stay the
	// caller's.
	Listen []listen.Socket
	// Image is what the workload goes on from, nil to begin. Its descriptor becomes the
	// sandbox's.
	Image *checkpoint.Image
	// Member is the sandbox's place in its stack, nil if it is of none, and Dial connects
	// to others of it: to no job that a rule does not have.
	Member *sdk.Member
	Dial   member.Dial
	// Begun is the init that this run takes if it is the first that comes to it, nil for none.
	Begun *namespaces.Begun
	// Sources: without one of them a plan that needs it fails.
	Sources
	// Settled is called with the plan once nothing changes it any more before the start
	// gate, while init is at work if nobody has a say in it by then.
	Settled func(*plan.Plan)
	// Lap is called at the end of each step, for -trace.
	Lap func(step string)
	// StartTimeout bounds the start; 0 is a minute.
	StartTimeout time.Duration
}

// Sandbox is a sandbox between its creation and its teardown.
type Sandbox struct {
	cfg  Config
	plan *plan.Plan
	dir  *state.Dir
	log  *audit.Log

	conn    *channel.Conn
	init    *namespaces.Init
	group   *cgroups.Group
	limited bool
	prep    *fs.Prepared
	stdio   *exec.Stdio
	process initproto.Process
	setup   *initproto.Setup // what init was told
	files   unix.Rlimit      // RLIMIT_NOFILE of ours, and so of the workload
	// initFilter is the BPF program that init puts on itself.
	initFilter []byte
	own        *security.Own
	trace      trace
	gate       *os.File // write end of the start gate
	workPid    int
	workFD     int
	note       *os.File // progress of a stage 2 that is PID 1 itself
	programs   hookPrograms
	fetching   *fetching // until what comes of it is known
	values     secretValues
	loans      loans
	unkeep     context.CancelFunc // ends the keeping of the loans; nil if there are none
	inside     *insideHooks       // hooks that init runs at the moment
	early      []unix.Signal      // came while the start hooks ran
	bounds     boundaries
	net        connection
	foreign    enclosed
	layers     layers
	// hookWarning is what the poststop hooks could not do.
	hookWarning error

	initStart string // tells init from another process that gets its pid

	mapped   chan struct{} // closed when mappedNS is known, or never will be
	mappedNS string        // init's user namespace with its maps, "" if there was no init
	cloned   chan struct{} // closed when init has been made, or has failed to be
	initConn *channel.Conn // init's end, until it has it
	release  chan struct{} // closed when init is gone
	watchdog *time.Timer
	streamed chan streamResult
	spawned  spawns
	insides  insides
	freezing sync.Mutex    // one pause or resume at a time
	pauses   atomic.Uint64 // that have begun
	mu       sync.Mutex
	status   Status
	aborted  bool
	changed  func()        // is called after each change of the status
	runs     chan struct{} // closed when the workload runs
	dropped  chan struct{} // closed when nobody wants it to be started any more
	readied  chan struct{}
	ending   chan struct{} // closed when the workload is to end, or has
	health   probe.State
	notices  notices
	requests chan request
	done     chan struct{}
	started  time.Time
	result   exec.Result
	err      error
}

type streamResult struct {
	sums []tree.Summary
	err  error
}

// ID is the sandbox's: 32 hexadecimal digits.
func (s *Sandbox) ID() string { return s.dir.ID }

// Name is what users call it.
func (s *Sandbox) Name() string { return s.dir.Name }

// Master is Stdio.Master of the workload's streams.
func (s *Sandbox) Master() (*os.File, error) { return s.stdio.Master() }

// Gone is closed when nothing of the sandbox is left to die with its thread.
func (s *Sandbox) Gone() <-chan struct{} { return s.release }

// Pid is the workload's, as the host sees it.
func (s *Sandbox) Pid() int { return s.workPid }

// Create takes the plan through its phases up to the start gate: everything is
// enforced and verified, and the workload has not run. On an error everything
// is undone. Init dies with the thread that made it (golang#27505): the caller
// sees to it that the thread it calls on does not end before Gone.
func Create(ctx context.Context, cfg Config, p *plan.Plan) (_ *Sandbox, err error) {
	if cfg.Lap == nil {
		cfg.Lap = func(string) {}
	}
	if cfg.StartTimeout == 0 {
		cfg.StartTimeout = time.Minute
	}
	for _, h := range p.Hooks {
		cfg.StartTimeout += min(h.Timeout, 24*time.Hour) // theirs is their own
	}
	for _, h := range p.PluginHooks {
		cfg.StartTimeout += pluginTime + time.Duration(hooks.PreExec)*min(h.Timeout, 24*time.Hour)
	}
	s := &Sandbox{cfg: cfg, plan: p, dir: cfg.Dir, log: cfg.Log, workFD: -1, status: StatusCreating, runs: make(chan struct{}), dropped: make(chan struct{}), readied: make(chan struct{}), notices: notices{ready: make(chan struct{})}, ending: make(chan struct{}), requests: make(chan request, 16), done: make(chan struct{}), release: make(chan struct{})}
	if p.Runtime != nil {
		s.foreign.asked = make(chan struct{})
	}
	if err := s.checkSockets(); err != nil {
		return nil, err
	}
	if err := s.mayRestore(); err != nil {
		return nil, err
	}
	if err := s.openState(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, s.abort)
	s.watchdog = time.AfterFunc(cfg.StartTimeout, s.abort)
	defer func() {
		stop()
		s.watchdog.Stop()
		if err != nil {
			err = s.failed(ctx, err)
		}
	}()
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"hooks plugins", s.openPlugins},
		{"network begun", s.openNetwork},
		{"cgroup made", s.makeGroup},
		{"streams", s.openStreams},
		{"init cloned", s.cloneInit},
		{"setup sent", s.sendSetup},
		{"secrets sent", s.sendSecrets},
		{"gates open", s.openGates},
		{"meanwhile", s.meanwhile},
		{"fs done", s.awaitFS},
		{"mounts audited", s.audit},
		{"fs boundary", s.beforeSecurity},
		{"stage 2 forked", s.awaitStage2},
		{"posture verified", s.verifyPosture},
	} {
		if err := step.run(ctx); err != nil {
			return nil, err
		}
		s.lap(step.name)
	}
	// Either may have killed init when the last step was done.
	if !stop() || !s.watchdog.Stop() {
		return nil, fmt.Errorf("the start took more than %s", cfg.StartTimeout)
	}
	s.become(StatusCreated)
	return s, nil
}

// lap tells the end of a step.
func (s *Sandbox) lap(step string) {
	s.cfg.Lap(step)
	failpoint.Hit(step)
}

// meanwhile does what can be done while init is at work: it gets the audit of the mounts
// ready, looks at this process, for the posture, and tells of the plan if hooks plugins do
// not narrow it later.
func (s *Sandbox) meanwhile(context.Context) (err error) {
	s.prep.Expect()
	if s.own, err = security.ReadOwn(); err != nil {
		return phase("security", err)
	}
	if s.cfg.Settled != nil && !s.narrows() {
		s.cfg.Settled(s.plan)
	}
	return nil
}

func (s *Sandbox) openState() error {
	if err := s.intendStopHooks(); err != nil {
		return err
	}
	s.log.Emit(audit.Created, nil, map[string]any{"mode": s.plan.Mode, "job": s.plan.File})
	for _, x := range s.plan.Degraded {
		s.log.Emit(audit.DegradedBy, nil, map[string]any{"protection": x.Name, "why": x.Why, "accepted": x.Accepted})
	}
	s.lap("state")
	return nil
}

// compile makes everything that the restrictions need, outside and before.
func (s *Sandbox) compile(ctx context.Context) error {
	p, err := security.Process(s.plan)
	if err != nil {
		return phase("security", err)
	}
	if s.plan.Runtime != nil {
		s.runCommand(&p)
	}
	f, init, err := s.filters(ctx)
	if err != nil {
		return err
	}
	p.Filter, p.FilterFlags = f.BPF, f.Flags
	if s.plan.Seccomp.NoSetID {
		p.Narrow = append(p.Narrow, seccomp.SetIDFilter().BPF)
	}
	if s.plan.Seccomp.PlainTCP {
		p.Narrow = append(p.Narrow, seccomp.TCPFilter().BPF)
	}
	s.process, s.initFilter = p, init.BPF
	return nil
}

// openStreams prepares what init gets from its birth: standard streams and the
// control socket.
func (s *Sandbox) openStreams(context.Context) error {
	var err error
	if s.stdio, err = exec.NewStdio(s.cfg.Streams, s.plan.Process.Terminal); err != nil {
		return phase("exec", err)
	}
	user := s.plan.Process.User.UID
	if s.plan.Runtime != nil {
		user = 0 // the program passes them on
	}
	if err := s.stdio.Own(s.hostUID(user)); err != nil {
		return phase("exec", err)
	}
	s.conn, s.initConn, err = channel.Pair()
	return phase("namespaces", err)
}

// hostUID gives the host's number of a user of the sandbox. One that is not mapped was
// refused before.
func (s *Sandbox) hostUID(uid uint32) int {
	if s.plan.IDs.Kind != "none" {
		uid, _ = plan.HostID(s.plan.IDs.UIDs, uid)
	}
	return int(uid)
}

// cloneInit makes init on this thread, with which it will die (PDEATHSIG), and prepares what
// it is going to be told while it is on its way.
func (s *Sandbox) cloneInit(ctx context.Context) error {
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &s.files); err != nil {
		return phase("namespaces", os.NewSyscallError("getrlimit", err))
	}
	s.mapped, s.cloned = make(chan struct{}), make(chan struct{})
	mapped, cloned := sync.OnceFunc(func() { close(s.mapped) }), sync.OnceFunc(func() { close(s.cloned) })
	beside, cancel := context.WithTimeout(ctx, s.cfg.StartTimeout)
	defer cancel()
	s.beginFetch(ctx, cancel)
	var rerr, perr error
	in, err := s.spawn(namespaces.Options{
		Path: s.cfg.InitPath, Program: s.cfg.Init, Stdio: s.stdio.FDs(), Control: s.initConn.FD(), LastCap: uintptr(security.LastCap()),
		MaxFiles: s.files.Max, Begun: s.cfg.Begun,
		Mapped: func(pid int) {
			if pid != 0 {
				s.mappedNS = fmt.Sprintf("/proc/%d/ns/user", pid)
			} else {
				cancel() // what it is prepared for will not be
			}
			mapped()
		},
		Execed: func(pid int, err error) {
			cloned()
			if err == nil {
				rerr = s.recordInit(pid)
				err = rerr
			}
			if err != nil {
				cancel()
			}
		},
		Beside: func() { perr = s.prepare(beside) },
	})
	_ = s.initConn.Close()
	s.mu.Lock()
	s.init = in
	if s.aborted && in != nil { // while nobody could know of it
		in.Kill()
	}
	s.mu.Unlock()
	cloned()
	mapped()
	if err == nil {
		err = rerr
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return phase("namespaces", err)
	}
	if perr != nil {
		// The first cause is the one to show: what the other says then is that it was ended.
		return cmp.Or(s.fetchFailed(), perr)
	}
	if len(s.plan.PluginHooks) > 0 { // who are told that limits are set
		if err := s.limitGroup(); err != nil {
			return err
		}
	}
	s.tell(hooks.PostNamespaces, nil)
	return s.reach(ctx, hooks.PreFS)
}

// prepare is what happens on this host beside the clone.
func (s *Sandbox) prepare(ctx context.Context) error {
	if err := s.openHooks(); err != nil {
		return err
	}
	if err := s.askRuntime(ctx); err != nil {
		return err
	}
	if err := s.compile(ctx); err != nil {
		return err
	}
	if err := s.prepareFS(ctx); err != nil {
		return err
	}
	s.cfg.Lap("(beside) prepared")
	return nil
}

// spawn makes init on the calling thread, in its group if it has one.
func (s *Sandbox) spawn(o namespaces.Options) (*namespaces.Init, error) {
	if s.group != nil {
		group, tasks, err := s.group.Doors()
		if err != nil {
			return nil, err
		}
		for _, f := range append(tasks, group) {
			if f != nil {
				defer f.Close()
			}
		}
		o.CgroupFD, o.Tasks = group, tasks
	}
	return namespaces.Start(s.plan, o)
}

// recordInit writes down who init is.
func (s *Sandbox) recordInit(pid int) error {
	failpoint.Hit("init unrecorded")
	id, err := identify(pid)
	if err != nil {
		return err
	}
	s.initStart = id.Start
	if err := s.dir.Journal.Intent(stepInit, id); err != nil {
		return err
	}
	s.log.Emit(audit.Namespaces, nil, map[string]any{"pid": pid, "namespaces": s.plan.NamespaceNames(), "ids": s.plan.IDs.Kind})
	return nil
}

var errNotCloned = errors.New("init was not made")

// userNS opens the sandbox's user namespace.
func (s *Sandbox) userNS() (*os.File, error) {
	<-s.mapped
	if s.mappedNS == "" {
		return nil, errNotCloned // the clone's own error is the one to show
	}
	f, err := plainfile.Open(s.mappedNS, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrPermission) {
		// Until its exec init is not dumpable, which is as good as closed to a root
		// without CAP_SYS_PTRACE.
		<-s.cloned
		f, err = plainfile.Open(s.mappedNS, os.O_RDONLY, 0)
	}
	return f, err
}

func (s *Sandbox) prepareFS(ctx context.Context) error {
	var err error
	s.prep, err = fs.Prepare(ctx, s.plan, fs.Options{
		Privileged: s.cfg.Privileged, Refused: s.cfg.Refused, Programs: s.cfg.Programs, Helper: s.cfg.InitPath,
		UserNS: s.userNS, Enclosure: s.enclosure(),
	})
	if err != nil {
		return phase("fs", err)
	}
	if s.plan.Root.Digest != "" {
		s.log.Emit(audit.RootfsVerified, nil, map[string]any{"digest": s.plan.Root.Digest})
	}
	return nil
}

func (s *Sandbox) sendSetup(ctx context.Context) error {
	// Without the poller of Go's runtime, which would wake a thread for each of its events.
	var gate [2]int
	if err := unix.Pipe2(gate[:], unix.O_CLOEXEC); err != nil {
		return phase("exec", os.NewSyscallError("pipe2", err))
	}
	defer unix.Close(gate[0])
	s.gate = os.NewFile(uintptr(gate[1]), "start gate")
	fds := make([]int, 0, len(s.prep.Files)+1)
	for _, f := range s.prep.Files {
		fds = append(fds, int(f.Fd()))
	}
	fds = append(fds, gate[0])
	s.process.Gate = int32(len(fds) - 1)
	fds = s.passSockets(fds)
	late := s.expectSecrets(len(fds))
	setup := &initproto.Setup{
		Hostname: s.plan.Hostname, Ops: s.prep.Ops, Landlock: security.Landlock(s.plan, s.prep.Entries), Process: s.process,
		InitFilter: s.initFilter, CgroupNS: s.plan.Namespace("cgroup"),
		Hold: s.holds(), SetIDs: s.plan.IDs.Helpers, UserNS: s.plan.IDs.Kind != "none", Direct: !s.plan.Init, InitCaps: security.InitCaps(s.process), Late: uint32(late),
		CPUs:  s.init.CPUs,
		Files: initproto.Rlimit{Resource: unix.RLIMIT_NOFILE, Soft: s.files.Cur, Hard: s.files.Max},
	}
	s.setup = setup
	if err := s.conn.Send(initproto.Encode(initproto.KindSetup, setup), fds...); err != nil {
		return s.broken("fs", err)
	}
	// Beside the first of init's work, that with mounts, which takes longer. What fills the
	// sandbox, and whoever is waited for, comes after it.
	if err := s.limitGroup(); err != nil {
		return err
	}
	// Init has its own copies; ours would keep pipes open that it must see end.
	for _, f := range s.prep.Files {
		_ = f.Close()
	}
	s.prep.Files = nil
	streamed := make(chan streamResult, 1)
	s.streamed = streamed
	if stream := s.prep.Stream(); stream != nil {
		go func() {
			sums, err := stream(ctx)
			streamed <- streamResult{sums, err}
		}()
	} else {
		streamed <- streamResult{}
	}
	return phase("exec", s.stdio.Started())
}

// openGates opens the gates of init's own start. That it is in its group is
// certain from its birth; only then may it enter a cgroup namespace (W8), and
// only then is stage 2 made.
func (s *Sandbox) openGates(context.Context) error {
	if s.group != nil {
		if err := s.dir.Journal.Done(stepCgroup); err != nil {
			return phase("cgroups", err)
		}
		s.log.Emit(audit.Cgroup, nil, map[string]any{"group": s.group.Paths()})
	}
	s.tell(hooks.PostCgroups, nil)
	if s.holds() || s.plan.Network.Plugin {
		return nil // the network comes first, and hooks
	}
	return s.letGo()
}

// letGo sends the gates ahead: init answers each in its turn.
func (s *Sandbox) letGo() error {
	if err := s.send(initproto.KindAttached); err != nil || s.narrows() {
		return err
	}
	return s.send(initproto.KindGo)
}

func (s *Sandbox) send(k initproto.Kind) error {
	if err := s.conn.Send(initproto.Encode(k, nil)); err != nil {
		return s.broken("namespaces", err)
	}
	return nil
}

// abort ends a start that takes too long, or that nobody wants any more: the
// step that waits for init sees the end of the socket.
func (s *Sandbox) abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aborted = true
	if s.init != nil {
		s.init.Kill()
	}
}

// failed undoes a start that failed and says why, with the best reason there is.
func (s *Sandbox) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = fmt.Errorf("start cancelled: %w", context.Cause(ctx))
	}
	t := audit.Failed
	var pe *security.PostureError
	if errors.As(err, &pe) {
		t = audit.PostureFailed
	}
	s.log.Emit(t, err, nil)
	return &StartError{ID: s.dir.ID, Name: s.dir.Name, Err: errors.Join(err, s.teardown(ctx, true))}
}
