package lifecycle

import (
	"errors"
	"fmt"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// stageFailure turns what init tells of stage 2's end into an error, with the
// remedy that the plan knows of.
func (s *Sandbox) stageFailure(x initproto.Exited) error {
	err := exec.StageFailure(x, s.command())
	var ce *exec.CommandError
	if errors.As(err, &ce) {
		ce.Hint = commandHint(s.plan, ce)
	}
	return err
}

func commandHint(p *plan.Plan, ce *exec.CommandError) string {
	named := strings.Contains(ce.Command, "/")
	switch {
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
	case on.Kind == plan.MountBind && on.Origin != "":
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
