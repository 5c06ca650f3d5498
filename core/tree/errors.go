package tree

import (
	"errors"
	"fmt"
)

// ErrStream reports that a packed tree is not what Pack writes: damaged, cut
// short, or made by someone else.
var ErrStream = errors.New("malformed packed tree")

// ChangedError reports a tree that was modified while it was read.
type ChangedError struct {
	Path string // relative to the root of the tree
}

func (e *ChangedError) Error() string {
	return fmt.Sprintf("%q changed while it was read", e.Path)
}

// MountPointError reports a file system mounted inside a tree. What it holds is
// no part of the tree, and what it covers cannot be read.
type MountPointError struct {
	Path string
}

func (e *MountPointError) Error() string {
	return fmt.Sprintf("%q is a mount point: a tree must be on one mount", e.Path)
}

// LimitError reports a tree that is larger than its reader accepts.
type LimitError struct {
	What  string // "bytes", "files" or "depth"
	Limit int64
	Path  string // where the limit was passed
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("tree exceeds the limit of %d %s at %q", e.Limit, unit(e.What), e.Path)
}

func unit(what string) string {
	if what == "depth" {
		return "nested directories"
	}
	return what
}

// MismatchError reports a tree whose digest is not the expected one.
type MismatchError struct {
	Want, Got string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("digest is %s, want %s", e.Got, e.Want)
}
