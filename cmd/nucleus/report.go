package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/journald"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/state"
)

// How everything reads that goes to standard error: "nucleus:", then error,
// warning or hint, no capital, no period. A hint is something that can be
// typed or written as it stands.

// report prints an error with its remedy and gives the exit code.
func (a *app) report(err error) int {
	var x exitError
	if errors.As(err, &x) {
		return int(x)
	}
	var many plan.Errors
	if errors.As(err, &many) {
		for i, e := range many {
			hint := e.Hint
			if i+1 < len(many) && many[i+1].Hint == hint {
				hint = "" // once, after the last that it is for
			}
			a.problem("error", e.Error(), hint)
		}
		return exec.CodeRuntime
	}
	code := exec.CodeRuntime
	var ce *exec.CommandError
	if errors.As(err, &ce) {
		code = ce.Code
	}
	if c, ok := exitCodeOf(err); ok {
		code = c
	}
	hint := hintOf(err)
	if hint == "nucleus gc" && a.hostConfigPath != "" {
		hint += " -host-config " + a.hostConfigPath // what plugins are owed is told with that
	}
	a.problem("error", err.Error(), hint)
	return code
}

const ownRoot = "name a directory of your own: NUCLEUS_STATE_ROOT=DIR nucleus run …"

func hintOf(err error) string {
	var pe *lifecycle.PhaseError
	if errors.As(err, &pe) && pe.Hint != "" {
		return pe.Hint
	}
	var ue *usageError
	if errors.As(err, &ue) {
		return ue.hint
	}
	var he *hintedError
	if errors.As(err, &he) {
		return he.hint
	}
	var ce *exec.CommandError
	if errors.As(err, &ce) {
		return ce.Hint
	}
	var re *state.RootError
	if errors.As(err, &re) {
		return ownRoot
	}
	var oe *state.OwnerError
	if errors.As(err, &oe) {
		switch {
		case oe.UID == oe.Want && oe.Foreign:
			return fmt.Sprintf("name a directory for sandboxes alone, for instance %s", filepath.Join(oe.Path, "nucleus"))
		case oe.UID == oe.Want:
			return fmt.Sprintf("chmod 0700 %s", oe.Path)
		}
		return ownRoot
	}
	var me *journald.MissingError
	if errors.As(err, &me) {
		return "leave it out with -log none, or for all by taking log out of the host configuration: nucleus logs has the output in any case"
	}
	var se *state.StrayError
	if errors.As(err, &se) {
		return fmt.Sprintf("remove %q, and nucleus gc once more", se.Path)
	}
	var de *state.DirError
	if errors.As(err, &de) && errors.Is(de, fs.ErrPermission) {
		return fmt.Sprintf("chmod u=rwx %q", de.Path)
	}
	var je *state.JournalError
	if errors.As(err, &je) {
		switch {
		case errors.Is(je, fs.ErrPermission):
			return fmt.Sprintf("chmod -R u=rwX %q, and nucleus gc once more", je.Dir)
		case !je.Lost():
			return ""
		}
		return fmt.Sprintf("rm -r %q, and nucleus gc once more: control groups nucleus-%s that are left go with rmdir", je.Dir, filepath.Base(je.Dir))
	}
	var ne *state.NameTakenError
	if errors.As(err, &ne) {
		if ne.ID == "" {
			return fmt.Sprintf("remove %q, or choose another -name", ne.Path)
		}
		return "choose another -name, or leave it out; nucleus rm " + ne.Name + " removes one that has ended"
	}
	return ""
}

func (a *app) problem(kind, text, hint string) {
	writeProblem(a.stderr, kind, text, hint)
}

func writeProblem(w io.Writer, kind, text, hint string) {
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if i == 0 {
			fmt.Fprintf(w, "nucleus: %s: %s\n", kind, printable(line))
			continue
		}
		fmt.Fprintf(w, "nucleus: %s\n", printable(line))
	}
	if hint != "" {
		fmt.Fprintf(w, "nucleus: hint: %s\n", printable(hint))
	}
}

// printable makes text from outside safe for a terminal.
func printable(s string) string { return audit.Clean(s) }
