package lifecycle

import (
	"errors"
	"fmt"
	"path"
	"runtime"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// stageFailure turns what init tells of stage 2's end into an error, with the
// part of the job that it came from and the remedy that the plan knows of.
func (s *Sandbox) stageFailure(x initproto.Exited) error {
	err := s.stage2Failure(x, s.command())
	var ce *exec.CommandError
	if errors.As(err, &ce) {
		ce.Hint = commandHint(s.plan, ce)
	}
	var se *exec.StageError
	if !errors.As(err, &se) || se.Errno == 0 {
		return err
	}
	rlimits := s.plan.Process.Rlimits
	if s.plan.Runtime != nil {
		rlimits = s.plan.Runtime.Rlimits
	}
	switch {
	case se.Step == initproto.StepCwd:
		return workdirFailure(s.plan, se)
	case se.Step == initproto.StepSeccomp && errors.Is(se.Errno, unix.EMFILE):
		return &PhaseError{
			Phase: "security", Origin: `resources.rlimit["nofile"]`, Err: se,
			Hint: "a trace of the system calls has one open file more at the start: raise the limit, or write mode = \"enforce\"",
		}
	case se.Step == initproto.StepRlimit && se.Index < len(rlimits):
		return rlimitFailure(rlimits[se.Index], se)
	}
	return err
}

func workdirFailure(p *plan.Plan, se *exec.StageError) error {
	e := &PhaseError{Phase: "security", Origin: "workdir", Err: fmt.Errorf("working directory %q: %w", p.Process.Cwd, se.Errno)}
	if p.Where("workdir") == "" {
		e.Origin = "workspace.path"
	}
	switch {
	case errors.Is(se.Errno, unix.EACCES):
		e.Hint = fmt.Sprintf("the workload's user, uid %d of the sandbox, may not enter it: write another workdir, or another user", p.Process.User.UID)
	case errors.Is(se.Errno, unix.ENOTDIR):
		e.Hint = "name a directory"
	default:
		e.Hint = "name a directory of the sandbox: of its root file system, or a volume's target"
	}
	return e
}

func rlimitFailure(r specs.POSIXRlimit, se *exec.StageError) error {
	name := strings.ToLower(strings.TrimPrefix(r.Type, "RLIMIT_"))
	e := &PhaseError{
		Phase: "security", Origin: fmt.Sprintf("resources.rlimit[%q]", name), Err: fmt.Errorf("rlimit %q, soft %s, hard %s: %w", name, plan.LimitText(r.Soft), plan.LimitText(r.Hard), se.Errno),
		Hint: "hard may be at most what this process has: ulimit -H -a shows it",
	}
	if name == "nofile" {
		e.Hint += "; root's is bounded by /proc/sys/fs/nr_open"
	}
	return e
}

func commandHint(p *plan.Plan, ce *exec.CommandError) string {
	named := strings.Contains(ce.Command, "/")
	switch {
	case ce.Code == exec.CodeNotFound && strings.Contains(ce.Command, " "):
		return "the program and each of its arguments are elements of their own: [\"echo\", \"hello\"]; a line for a shell is [\"sh\", \"-c\", \"echo hello\"]"
	case ce.Code == exec.CodeNotFound && named:
		return "the file, or the interpreter that it names (#! line, ELF loader), is not in the sandbox"
	case ce.Code == exec.CodeNotFound && p.Root.Kind == plan.RootToolchain:
		return fmt.Sprintf("the sandbox has the host's /usr and PATH=%s; what lies elsewhere comes in by a volume with exec = true", searchPath(p))
	case ce.Code == exec.CodeNotFound:
		return fmt.Sprintf("it is looked for in PATH=%s below the root file system %q; the host's programs are not there", searchPath(p), p.Root.Path)
	case errors.Is(ce.Errno, unix.ENOEXEC):
		return "a script needs a first line such as #!/bin/sh, a program must be built for linux/" + runtime.GOARCH
	case errors.Is(ce.Errno, unix.EACCES) && named:
		return accessHint(p, ce.Command)
	}
	return ""
}

// accessHint: mounts from the job are noexec unless it says otherwise, and
// execve(2) has one errno for that, for missing bits and for a directory.
func accessHint(p *plan.Plan, command string) string {
	if !path.IsAbs(command) {
		command = path.Join(p.Process.Cwd, command)
	}
	on := p.MountAt(path.Clean(command))
	switch {
	case on == nil || !on.Has("noexec"):
		return fmt.Sprintf("it must be a regular file that uid %d of the sandbox may execute", p.Process.User.UID)
	case (on.Kind == plan.MountBind || on.Kind == plan.MountTmpfs) && on.Origin != "":
		return fmt.Sprintf("%s is mounted noexec: write exec = true in the block %s", on.Destination, on.Origin)
	}
	return fmt.Sprintf("%s is always mounted noexec: run it through its interpreter, or from a workspace with exec = true", on.Destination)
}

func searchPath(p *plan.Plan) string {
	for _, kv := range p.Process.Env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			return v
		}
	}
	return ""
}
