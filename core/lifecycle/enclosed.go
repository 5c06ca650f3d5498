package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/fs"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/runtimes"
	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// enclosed is a sandbox that the program of a runtime plugin runs.
type enclosed struct {
	answer  *runtimes.Answer // nil for the native runtime
	asked   chan struct{}    // closed when the answer is there; nil for the native runtime
	signals chan unix.Signal // to the workload, in their order
	// signalled: somebody here has sent the program itself a signal.
	signalled atomic.Bool
	state     *os.File // the program's directory
	// checkpoint is what images of the sandbox are compared by.
	checkpoint identity
	// stuck: it is paused by the program, which has not let it go on after a save. Under
	// Sandbox.freezing.
	stuck bool
}

// delivers tells whether signals go by a call of the program.
func (e *enclosed) delivers() bool { return e.answer != nil && len(e.answer.Signal.Args) > 0 }

// ownStack tells whether the workload's network stack is the program's.
func (e *enclosed) ownStack() bool { return e.answer != nil && e.answer.OwnNetwork }

// close lets the program's file go: init has its own.
func (e *enclosed) close() {
	if e.answer != nil && e.answer.File != nil {
		_ = e.answer.File.Close()
		e.answer.File = nil
	}
	if e.state != nil {
		_ = e.state.Close()
		e.state = nil
	}
}

// askRuntime asks the plugin how the sandbox is run.
func (s *Sandbox) askRuntime(ctx context.Context) error {
	if s.plan.Runtime == nil {
		return nil
	}
	a, err := AskRuntime(ctx, s.cfg.Runtimes, s.dir.ID, s.plan, s.cfg.Privileged)
	if err != nil {
		return err
	}
	s.foreign.answer = a
	close(s.foreign.asked)
	if err := s.mayCheckpoint(); err != nil {
		return err
	}
	s.log.Emit(audit.RuntimePrepared, nil, map[string]any{"plugin": s.plan.Runtime.Plugin, "program": a.Program.Path, "facts": a.Facts})
	return nil
}

// AskRuntime asks the plugin of a plan how a sandbox of it is run, and looks at whether it
// can be here. The program's file is the caller's to close.
func AskRuntime(ctx context.Context, source runtimes.Source, sandbox string, p *plan.Plan, privileged bool) (*runtimes.Answer, error) {
	r := p.Runtime
	if source == nil {
		return nil, &PhaseError{Phase: "exec", Origin: "runtime", Err: errors.New("there is nobody to ask runtime plugins")}
	}
	spec, err := json.Marshal(p.Bundle())
	if err != nil {
		return nil, phase("exec", err)
	}
	network := runtime.NetworkNone
	switch {
	case p.Network.Plugin:
		network = runtime.NetworkOwn
	case !p.Namespace(specs.NetworkNamespace):
		network = runtime.NetworkHost
	}
	a, err := source.Prepare(ctx, sandbox, runtimes.Want{
		Plugin: r.Plugin, Config: r.Config, Eval: r.Eval, Spec: spec, Network: network, Rootless: !privileged, Checkpoint: r.Checkpoint,
	})
	if err != nil {
		e := &PhaseError{Phase: "exec", Origin: "runtime", Err: &sourceError{err}}
		var re *runtimes.Error
		if errors.As(err, &re) {
			e.Hint = audit.Clean(re.Hint)
		}
		return nil, e
	}
	if err := runsHere(p, privileged, a); err != nil {
		_ = a.File.Close() // was not read
		return nil, err
	}
	return a, nil
}

// runsHere tells why a sandbox cannot be run as a plugin has said.
func runsHere(p *plan.Plan, privileged bool, a *runtimes.Answer) error {
	if err := mayOpenDevices(p, privileged, a.Program.Devices); err != nil {
		return err
	}
	if a.OwnNetwork {
		if err := mustDial(p); err != nil {
			return err
		}
	}
	if p.Runtime.Checkpoint && !a.Checkpoint.Given() {
		return &PhaseError{Phase: "exec", Origin: "runtime.checkpoint", Hint: "remove the line, or take another runtime", Err: fmt.Errorf("runtime %q cannot save the state of a sandbox", p.Runtime.Plugin)}
	}
	return nil
}

// mustDial refuses probes that would have to reach a network stack of the program's own.
func mustDial(p *plan.Plan) error {
	e := &PhaseError{Phase: "exec", Hint: "probe by exec = [...], or have the runtime use the sandbox's network namespace"}
	switch {
	case p.Readiness != nil && len(p.Readiness.Addrs) > 0:
		e.Origin = "readiness"
	case p.Health != nil && len(p.Health.Addrs) > 0:
		e.Origin = "health"
	default:
		return nil
	}
	e.Err = fmt.Errorf("runtime %q has a network stack of its own, where no connection can be made from outside", p.Runtime.Plugin)
	return e
}

// met leaves out what a backend wants opened in the namespace where the program's own
// network stack brings nothing there: what waits for the workload would wait for ever.
func (s *Sandbox) met(openings []network.Opening) (kept []network.Opening, missing []string, err error) {
	if !s.foreign.ownStack() {
		return openings, nil, nil
	}
	for _, o := range openings {
		switch {
		case o.Kind == network.NetNS, o.Kind == network.RouteSocket, o.Kind == network.Tap:
			kept = append(kept, o)
		case o.Optional:
			missing = append(missing, o.Name)
		default:
			return nil, nil, &PhaseError{
				Phase: "network", Origin: "runtime", Hint: "have the runtime use the sandbox's network namespace, or take another network",
				Err: fmt.Errorf("runtime %q has a network stack of its own, and network %q serves the one of the sandbox's network namespace alone (%s)", s.plan.Runtime.Plugin, s.plan.Network.Backend, audit.Clean(o.Name)),
			}
		}
	}
	return kept, missing, nil
}

// keepsProcess refuses what a hooks plugin has changed once the program was told of the
// process.
func (s *Sandbox) keepsProcess(was *plan.Plan) error {
	before, after := was.Process, s.plan.Process
	if s.foreign.answer == nil || slices.Equal(before.Env, after.Env) && slices.Equal(before.Rlimits, after.Rlimits) &&
		slices.Equal(before.Capabilities.Bounding, after.Capabilities.Bounding) {
		return nil
	}
	return &PhaseError{
		Phase: "hooks", Origin: s.plan.PluginHooks[0].Origin, Hint: "have the plugin change it at PRE NAMESPACES or PRE CGROUPS",
		Err: fmt.Errorf("a hooks plugin changes the workload's process, of which runtime %q has been told already", s.plan.Runtime.Plugin),
	}
}

// enclosure is what the program's root holds.
func (s *Sandbox) enclosure() *fs.Enclosure {
	a := s.foreign.answer
	if a == nil {
		return nil
	}
	f := a.File
	a.File = nil // the descriptors of the file system's phase own it now
	e := &fs.Enclosure{Program: f, Libraries: a.Program.Libraries, Devices: a.Program.Devices}
	if s.cfg.Image != nil {
		e.Image, s.cfg.Image.Data = s.cfg.Image.Data, nil // as the program's file
	}
	return e
}

// runPIDFile is there once the program has made the sandbox.
const runPIDFile = runtime.StatePath + "/run.pid"

func execPIDFile(id uint32) string { return fmt.Sprintf("%s/exec-%d.pid", runtime.StatePath, id) }

// programCommand fills in the process that init is to make for a call of the program.
func (s *Sandbox) programCommand(c runtime.Command, words ...string) (args, env []string) {
	words = append(words, runtime.WordID, s.dir.ID)
	r := strings.NewReplacer(words...)
	for _, a := range c.Args {
		args = append(args, r.Replace(a))
	}
	return args, c.Env
}

// runCommand completes the process that runs the workload.
func (s *Sandbox) runCommand(p *initproto.Process) {
	p.Paths = []string{runtime.ProgramPath}
	c := s.foreign.answer.Run
	if s.cfg.Image != nil {
		c = s.foreign.answer.Checkpoint.Restore
	}
	p.Args, p.Env = s.programCommand(c, runtime.WordPIDFile, runPIDFile, runtime.WordFailureFile, failureFile, runtime.WordImage, runtime.ImagePath)
}

// secretVars are the variables of the workload whose values are secrets.
func (s *Sandbox) secretVars() []secretVar {
	var out []secretVar
	for _, x := range s.plan.Secrets {
		if x.Env != "" {
			out = append(out, secretVar{x.Env, x.Origin, s.values[x.Name]})
		}
	}
	return out
}

// openRoot opens the root that the workload sees.
func (s *Sandbox) openRoot(flags uint64) (int, error) {
	name := "."
	if s.plan.Runtime != nil {
		name = runtime.RootPath
	}
	return s.inInitRoot(name, flags|unix.O_DIRECTORY)
}

// inInitRoot opens a file of init's root without following any link in it. A runtime's
// program may mount there: one that somebody has broken into puts a link wherever it
// likes, and the host's root would be where that leads to.
func (s *Sandbox) inInitRoot(name string, flags uint64) (int, error) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", s.init.Pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("open", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, strings.TrimPrefix(name, "/"), &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	return fd, os.NewSyscallError("openat2", err)
}

// made tells whether the program has made the sandbox.
func (s *Sandbox) made() bool {
	fd, err := s.inInitRoot(runPIDFile, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// awaitMade waits until the program has made the sandbox, or has ended.
func (s *Sandbox) awaitMade() bool {
	for wait := time.Millisecond; !s.made(); wait = min(wait*2, 20*time.Millisecond) {
		if ready(s.workFD, wait) {
			return s.made()
		}
	}
	return true
}

// insidePID reads the number that a further process has inside, 0 if it is not known.
func (s *Sandbox) insidePID(id uint32) int {
	fd, err := s.inInitRoot(execPIDFile(id), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	b := make([]byte, 16)
	n, err := unix.Read(fd, b)
	if err != nil {
		return 0
	}
	pid, err := strconv.ParseUint(strings.TrimSpace(string(b[:n])), 10, 31)
	if err != nil {
		return 0
	}
	return int(pid)
}

// findCommand looks for a command in the workload's root, as execvp(3) would: what the
// program says of one that is missing could be a word of the workload's as well.
func (s *Sandbox) findCommand(command, cwd string, paths []string) error {
	root, err := s.openRoot(unix.O_PATH)
	if err != nil {
		return s.reason("fs", err)
	}
	defer unix.Close(root)
	miss := syscall.ENOENT
	for _, p := range paths {
		if !path.IsAbs(p) {
			p = path.Join(cwd, p)
		}
		switch errno := s.executable(root, p); errno {
		case 0:
			return nil
		case unix.ENOENT, unix.ENOTDIR:
		default:
			miss = errno
		}
	}
	code := exec.CodeNotExecutable
	if miss == unix.ENOENT {
		code = exec.CodeNotFound
	}
	e := &exec.CommandError{Command: command, Code: code, Errno: miss}
	e.Hint = commandHint(s.plan, e)
	return e
}

// executable gives the errno that execve(2) would have for a file, as far as that can
// be seen from here: what we may not look at, others may execute.
func (s *Sandbox) executable(root int, p string) syscall.Errno {
	on := s.plan.MountAt(path.Clean(p))
	if on != nil && on.Inside && on.Type == "tmpfs" {
		return 0 // the program's kernel alone knows what is there
	}
	fd, err := unix.Openat2(root, p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return unix.ENOENT
	case err != nil:
		return 0
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 || on != nil && !on.Inside && on.Has("noexec") {
		return unix.EACCES
	}
	return 0
}

// workload is the workload's process, or what a program makes of the plan's.
func (s *Sandbox) workload() initproto.Process {
	if s.plan.Runtime == nil {
		return s.process
	}
	p := s.plan.Process
	return initproto.Process{Env: p.Env, Cwd: p.Cwd, UID: p.User.UID, GID: p.User.GID, Groups: p.User.AdditionalGids}
}

// furtherProgram turns a command of the sandbox into the call of the program that runs
// it, and gives the description of the process, which the call reads.
func (s *Sandbox) furtherProgram(sp *initproto.Spawn) (*secret.Value, error) {
	a := s.foreign.answer
	if len(a.Exec.Args) == 0 {
		return nil, &PhaseError{Phase: "exec", Origin: "runtime", Err: fmt.Errorf("runtime %q runs no further processes", s.plan.Runtime.Plugin)}
	}
	if err := s.findCommand(sp.Args[0], sp.Cwd, sp.Paths); err != nil {
		return nil, err
	}
	w := s.plan.Process
	b, err := json.Marshal(&specs.Process{
		Terminal: sp.TTY, User: specs.User{UID: sp.UID, GID: sp.GID, AdditionalGids: sp.Groups, Umask: w.User.Umask}, Args: sp.Args, Env: sp.Env, Cwd: sp.Cwd,
		Capabilities: w.Capabilities, Rlimits: w.Rlimits, NoNewPrivileges: true,
	})
	if err != nil {
		return nil, err
	}
	v, err := secret.New(b)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	s.asProgram(sp)
	sp.Pass = true
	// The place has bounds, and commands, as of probes, have none.
	sp.Remove = execPIDFile(sp.ID)
	sp.Args, sp.Env = s.programCommand(a.Exec, runtime.WordPIDFile, sp.Remove)
	return v, nil
}

// asProgram gives a process that init makes what the program has.
func (s *Sandbox) asProgram(sp *initproto.Spawn) {
	p := s.process
	sp.Paths, sp.Cwd, sp.UID, sp.GID, sp.Groups = []string{runtime.ProgramPath}, p.Cwd, p.UID, p.GID, p.Groups
}

// stage2Failure is exec.StageFailure of the workload's process, or one beside it.
func (s *Sandbox) stage2Failure(x initproto.Exited, command string) error {
	err := exec.StageFailure(x, command)
	var ce *exec.CommandError
	if s.plan.Runtime != nil && errors.As(err, &ce) {
		return &PhaseError{Phase: "exec", Origin: "runtime", Err: fmt.Errorf("the program of runtime %q cannot be executed: %w", s.plan.Runtime.Plugin, ce.Errno)}
	}
	return err
}

// exitCode gives the code of what has ended, and the signal that ended it. A program
// can only tell a signal as a code.
func (s *Sandbox) exitCode(x initproto.Exited) (code, signal int) {
	code, signal = exec.ExitCode(syscall.WaitStatus(x.Status))
	if s.plan.Runtime != nil && signal == 0 && code > 128 && code <= 128+64 {
		signal = code - 128
	}
	return code, signal
}
