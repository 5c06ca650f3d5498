package main

import (
	"github.com/hashicorp/hcl/v2"
	"golang.org/x/term"

	"github.com/nucleus-runtime/nucleus/core/job"
)

// diagnostics prints what is wrong with a job file. Its error, if any of it is
// fatal, has been printed.
func (a *app) diagnostics(sources map[string][]byte, diags hcl.Diagnostics) error {
	if len(diags) == 0 {
		return nil
	}
	width := uint(100)
	if w, _, err := term.GetSize(int(a.stderr.Fd())); err == nil && w > 20 {
		width = uint(w)
	}
	if err := job.WriteDiagnostics(a.stderr, sources, diags, width, false); err != nil {
		return err
	}
	if diags.HasErrors() {
		return errInvalid
	}
	return nil
}
