// Package errs is how a plugin says what went wrong, so that the core knows what
// to do about it: show a line of the user's configuration, try again, clean up
// what was left. It is plain Go; how an error travels is the business of
// sdk/plugin. The text is for people and is never parsed.
package errs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Code is what the core acts on.
type Code uint8

// The codes.
const (
	Unset         Code = iota // says nothing: a wrapped error may, else Internal
	Internal                  // the plugin is broken
	Config                    // the user's configuration is wrong, or the request is
	NotFound                  // it is not there; no error where something is to be removed
	Exists                    // same name, other owner
	Precondition              // the host lacks something
	Exhausted                 // no more of it, for now
	Unavailable               // what the plugin talks to is down
	Aborted                   // lost a race; may be tried again at once
	Denied                    // not allowed
	Unimplemented             // no such call
	Deadline                  // the outcome is not known
	Canceled                  // the caller did not wait
)

var codes = [...]string{
	"unset", "internal", "config", "not found", "exists", "precondition", "exhausted", "unavailable", "aborted", "denied",
	"unimplemented", "deadline", "canceled",
}

func (c Code) String() string {
	if int(c) < len(codes) {
		return codes[c]
	}
	return "unknown"
}

// Retryable tells whether the same request may succeed later.
func (c Code) Retryable() bool {
	return c == Exhausted || c == Unavailable || c == Aborted
}

// Severity of a Diagnostic.
type Severity uint8

// The severities.
const (
	Fault Severity = iota
	Warning
)

// Diagnostic is one thing about a configuration.
type Diagnostic struct {
	Severity Severity
	Summary  string
	Detail   string // what to write instead
	Path     Steps
}

// Panic is what a plugin's code died of.
type Panic struct {
	Message string
	Stack   string
}

// Error is an error with what the core needs to know. Its fields add up along a
// chain of wrapped errors: see Of.
type Error struct {
	Code        Code
	Text        string // "" for that of Err
	Err         error
	Reason      string // UPPER_SNAKE, stable and documented by the plugin
	Domain      string // the plugin's name; set on the way
	Metadata    map[string]string
	Diagnostics []Diagnostic
	RetryAfter  time.Duration
	Leaked      []string // what a failed teardown left
	Panic       *Panic
}

func (e *Error) Error() string {
	switch {
	case e.Text != "":
		return e.Text
	case e.Err != nil:
		return e.Err.Error()
	case len(e.Diagnostics) > 0:
		// The others have their own place to be shown.
		if n := len(e.Diagnostics); n > 1 {
			return fmt.Sprintf("%s (and %d more)", e.Diagnostics[0].text(), n-1)
		}
		return e.Diagnostics[0].text()
	default:
		return e.Code.String()
	}
}

func (e *Error) Unwrap() error { return e.Err }

func (d Diagnostic) text() string {
	if len(d.Path) == 0 {
		return d.Summary
	}
	return d.Path.String() + ": " + d.Summary
}

// ConfigErrorf says that a part of the configuration is wrong. Several can be
// given at once with errors.Join; all are shown.
func ConfigErrorf(path Steps, format string, args ...any) error {
	return &Error{Code: Config, Diagnostics: []Diagnostic{{Summary: fmt.Sprintf(format, args...), Path: path}}}
}

// ConfigWarnf is as ConfigErrorf, but does not refuse the configuration.
func ConfigWarnf(path Steps, format string, args ...any) error {
	return &Error{Code: Config, Diagnostics: []Diagnostic{{Severity: Warning, Summary: fmt.Sprintf(format, args...), Path: path}}}
}

// NotFoundf says that an object is not there.
func NotFoundf(format string, args ...any) error { return coded(NotFound, format, args) }

// Existsf says that a name is taken by another owner.
func Existsf(format string, args ...any) error { return coded(Exists, format, args) }

// Preconditionf says that the host lacks something: a module, a program, a setting.
func Preconditionf(format string, args ...any) error { return coded(Precondition, format, args) }

// Deniedf says that something is not allowed.
func Deniedf(format string, args ...any) error { return coded(Denied, format, args) }

// Abortedf says that a race was lost.
func Abortedf(format string, args ...any) error { return coded(Aborted, format, args) }

func coded(c Code, format string, args []any) error {
	return &Error{Code: c, Err: fmt.Errorf(format, args...)}
}

// Retry says that what the plugin talks to is down, and when to try again.
func Retry(err error, delay time.Duration) error {
	if err == nil {
		return nil
	}
	return &Error{Code: Unavailable, Err: err, RetryAfter: delay}
}

// Exhaust says that a pool is empty or a quota used up, and when to try again.
func Exhaust(err error, delay time.Duration) error {
	if err == nil {
		return nil
	}
	return &Error{Code: Exhausted, Err: err, RetryAfter: delay}
}

// Residue says what a failed teardown left.
func Residue(err error, names ...string) error {
	if err == nil {
		return nil
	}
	return &Error{Err: err, Leaked: names}
}

// Because gives an error a stable name that a program may act on, with values.
func Because(err error, reason string, metadata map[string]string) error {
	if err == nil {
		return nil
	}
	return &Error{Err: err, Reason: reason, Metadata: metadata}
}

// Of adds up an error and what it wraps. The outermost code, reason and delay
// count; diagnostics and leftovers of all are kept. The sum wraps nothing, or they
// would be counted twice when it is added up again.
func Of(err error) *Error {
	if err == nil {
		return nil
	}
	sum := &Error{Text: err.Error()}
	sum.add(err)
	if sum.Code == Unset {
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			sum.Code = Deadline
		case errors.Is(err, context.Canceled):
			sum.Code = Canceled
		default:
			sum.Code = Internal
		}
	}
	return sum
}

func (e *Error) add(err error) {
	// Chains are walked by hand: errors.As stops at the first match, and every
	// layer may have something to add.
	if o, ok := err.(*Error); ok { //nolint:errorlint // each layer of the chain is looked at in turn
		if e.Code == Unset {
			e.Code = o.Code
		}
		if e.Reason == "" {
			e.Reason, e.Domain, e.Metadata = o.Reason, o.Domain, o.Metadata
		}
		if e.RetryAfter == 0 {
			e.RetryAfter = o.RetryAfter
		}
		if e.Panic == nil {
			e.Panic = o.Panic
		}
		e.Diagnostics = append(e.Diagnostics, o.Diagnostics...)
		e.Leaked = append(e.Leaked, o.Leaked...)
	}
	switch w := err.(type) { //nolint:errorlint // as above
	case interface{ Unwrap() error }:
		if in := w.Unwrap(); in != nil {
			e.add(in)
		}
	case interface{ Unwrap() []error }:
		for _, in := range w.Unwrap() {
			e.add(in)
		}
	}
}

// CodeOf is the Code that the core will act on.
func CodeOf(err error) Code {
	if err == nil {
		return Unset
	}
	return Of(err).Code
}

// Warnings gives an error's diagnostics if it consists of warnings alone.
func Warnings(err error) ([]Diagnostic, bool) {
	if err == nil {
		return nil, true
	}
	e := Of(err)
	if e.Code != Config || len(e.Diagnostics) == 0 {
		return nil, false
	}
	faulty := slices.ContainsFunc(e.Diagnostics, func(d Diagnostic) bool { return d.Severity != Warning })
	return e.Diagnostics, !faulty
}
