// Package fault owns the errors of the secrets providers: a code for the core to
// branch on, and a text for the user, which never has a secret value in it.
package fault

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Code says what the core can do about an error. The names are those of the wire.
type Code string

// The codes.
const (
	InvalidArgument    Code = "INVALID_ARGUMENT"    // the configuration is wrong
	NotFound           Code = "NOT_FOUND"           // there is no such secret
	PermissionDenied   Code = "PERMISSION_DENIED"   // the operator or the backend says no
	FailedPrecondition Code = "FAILED_PRECONDITION" // the host or the backend is not set up for it
	ResourceExhausted  Code = "RESOURCE_EXHAUSTED"  // a quota: later
	Unavailable        Code = "UNAVAILABLE"         // the backend is down: soon
	DeadlineExceeded   Code = "DEADLINE_EXCEEDED"   // the outcome is unknown
	Internal           Code = "INTERNAL"
)

// Error is what a provider answers instead of secrets.
type Error struct {
	Code       Code
	Secret     string // name of the ref, when one is to blame
	Attr       string // part of the configuration, when one is to blame: command["pass"].argv[0]
	Err        error
	Hint       string
	RetryAfter time.Duration // of Unavailable and ResourceExhausted; zero: not known
}

func (e *Error) Error() string {
	s := e.Err.Error()
	if e.Attr != "" {
		s = e.Attr + ": " + s
	}
	if e.Secret != "" {
		s = fmt.Sprintf("secret %q: %s", e.Secret, s)
	}
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// New makes an error with its remedy.
func New(code Code, hint, format string, args ...any) *Error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...), Hint: hint}
}

// Config makes an error of one attribute of a configuration.
func Config(attr, hint, format string, args ...any) *Error {
	return &Error{Code: InvalidArgument, Attr: attr, Err: fmt.Errorf(format, args...), Hint: hint}
}

// Key is a step of a path to what has this label.
type Key string

// Path takes Attr apart: its names, the numbers of elements, and Keys.
func (e *Error) Path() []any {
	var steps []any
	for rest := e.Attr; rest != ""; {
		switch quoted, err := strconv.QuotedPrefix(rest[1:]); {
		case rest[0] == '[' && err == nil:
			key, _ := strconv.Unquote(quoted)
			steps, rest = append(steps, Key(key)), rest[1+len(quoted):]
		case rest[0] == '[':
			n := 0
			for rest = rest[1:]; rest != "" && rest[0] >= '0' && rest[0] <= '9'; rest = rest[1:] {
				n = 10*n + int(rest[0]-'0')
			}
			steps = append(steps, n)
		default:
			end := strings.IndexAny(rest+".", ".[")
			steps, rest = append(steps, rest[:end]), rest[end:]
		}
		rest = strings.TrimPrefix(strings.TrimPrefix(rest, "]"), ".")
	}
	return steps
}

// Of gives the code of an error: Internal for one that has none.
func Of(err error) Code {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return DeadlineExceeded
	}
	return Internal
}

// In names the secret that an error is about. The error is a copy: one read that
// failed may be told of several secrets.
func In(secret string, err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return &Error{Code: Of(err), Secret: secret, Err: err}
	}
	named := *e
	named.Secret = secret
	return &named
}
