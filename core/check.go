package core

import (
	"fmt"

	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
)

// Check finds what no host of this architecture can do for a job: the part of a
// plan that needs no look at the host. The error is of type plan.Errors.
func Check(j *job.Job) error {
	if errs := check(j); len(errs) > 0 {
		return errs
	}
	return nil
}

func check(j *job.Job) plan.Errors {
	s := j.Security.Seccomp
	if s == nil {
		return nil
	}
	var errs plan.Errors
	for i, name := range s.Allow {
		err := seccomp.CheckAllow(name)
		if err == nil {
			continue
		}
		hint := "remove it from allow"
		if err.Suggestion != "" {
			hint = fmt.Sprintf("write %q", err.Suggestion)
		}
		errs = append(errs, plan.ErrorAt(j, fmt.Sprintf("security.seccomp.allow[%d]", i), hint, err.Error()))
	}
	return errs
}
