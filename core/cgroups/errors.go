package cgroups

import (
	"errors"
	"fmt"
)

// ErrNoFD is returned by [Group.FD] where a process cannot be cloned into a
// group: CLONE_INTO_CGROUP knows only the v2 hierarchy.
var ErrNoFD = errors.New("no cgroup v2 group to clone into")

// UnsupportedError says that this host cannot enforce what was asked.
type UnsupportedError struct {
	Controller string // a key of Facts.Controllers, or "cgroup" for no group at all
	Why        string
	Remedy     string // a command or a setting that works; may be empty
}

func (e *UnsupportedError) Error() string {
	if e.Controller == anyController {
		return "cgroups are not available: " + e.Why
	}
	return fmt.Sprintf("cgroup controller %q is not available: %s", e.Controller, e.Why)
}

// LimitError says that one limit is out of range or was not taken by the kernel.
type LimitError struct {
	Limit string // the resource, such as "memory" or "io 8:0 rbps"
	Asked string
	Why   string
	Err   error // the kernel's answer, if it gave one
}

func (e *LimitError) Error() string {
	s := fmt.Sprintf("cgroup limit %s = %s: %s", e.Limit, e.Asked, e.Why)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *LimitError) Unwrap() error { return e.Err }
