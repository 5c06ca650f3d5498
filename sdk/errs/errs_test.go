package errs_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

func TestErrorsAddUp(t *testing.T) {
	down := errors.New("connection refused")
	for _, tc := range []struct {
		name  string
		err   error
		code  errs.Code
		text  string
		check func(e *errs.Error) bool
	}{
		{"a plain error is the plugin's fault", down, errs.Internal, "connection refused", nil},
		{"a deadline leaves the outcome open", fmt.Errorf("asking: %w", context.DeadlineExceeded), errs.Deadline, "asking: context deadline exceeded", nil},
		{"a canceled call", context.Canceled, errs.Canceled, "context canceled", nil},
		{"a retry keeps its delay through wrapping", fmt.Errorf("lease: %w", errs.Retry(down, time.Second)), errs.Unavailable, "lease: connection refused", func(e *errs.Error) bool { return e.RetryAfter == time.Second }},
		{"the outermost code counts", errs.Exhaust(errs.NotFoundf("no %s", "x"), time.Second), errs.Exhausted, "no x", nil},
		{"a residue keeps the code below it", errs.Residue(errs.Retry(down, time.Second), "veth7"), errs.Unavailable, "connection refused", func(e *errs.Error) bool { return reflect.DeepEqual(e.Leaked, []string{"veth7"}) }},
		{"residues are joined", errors.Join(errs.Residue(down, "a"), errs.Residue(down, "b")), errs.Internal, "connection refused\nconnection refused", func(e *errs.Error) bool { return reflect.DeepEqual(e.Leaked, []string{"a", "b"}) }},
		{"a reason adds no code", errs.Because(errs.Deniedf("no"), "TOKEN_EXPIRED", map[string]string{"age": "3d"}), errs.Denied, "no", func(e *errs.Error) bool { return e.Reason == "TOKEN_EXPIRED" && e.Metadata["age"] == "3d" }},
		{"a configuration error names its path", errs.ConfigErrorf(errs.Path("route", 0, "dst"), "not a CIDR: %q", "x"), errs.Config, `route[0].dst: not a CIDR: "x"`, nil},
		{
			"several configuration errors are all kept",
			errors.Join(errs.ConfigErrorf(errs.Path("a"), "bad"), errs.ConfigErrorf(errs.Path("b"), "worse")), errs.Config, "a: bad\nb: worse",
			func(e *errs.Error) bool { return len(e.Diagnostics) == 2 },
		},
		{
			"one error with several diagnostics is one line",
			&errs.Error{Code: errs.Config, Diagnostics: []errs.Diagnostic{{Summary: "bad", Path: errs.Path("a")}, {Summary: "worse"}}}, errs.Config, "a: bad (and 1 more)", nil,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := errs.Of(errs.Of(tc.err)) // twice: the sum of a sum is the same
			if e.Code != tc.code || e.Error() != tc.text {
				t.Errorf("got %v %q, want %v %q", e.Code, e.Error(), tc.code, tc.text)
			}
			if tc.check != nil && !tc.check(e) {
				t.Errorf("fields: %+v", e)
			}
		})
	}
}

func TestNoErrorStaysNone(t *testing.T) {
	for _, err := range []error{errs.Retry(nil, 1), errs.Exhaust(nil, 1), errs.Residue(nil, "x"), errs.Because(nil, "X", nil)} {
		if err != nil {
			t.Errorf("an error was made of none: %v", err)
		}
	}
	if errs.Of(nil) != nil {
		t.Error("Of(nil) is not nil")
	}
}

func TestWarningsAloneRefuseNothing(t *testing.T) {
	warn := errs.ConfigWarnf(errs.Path("a"), "old")
	for _, tc := range []struct {
		name string
		err  error
		n    int
		ok   bool
	}{
		{"nothing", nil, 0, true},
		{"a warning", warn, 1, true},
		{"a warning and an error", errors.Join(warn, errs.ConfigErrorf(nil, "bad")), 2, false},
		{"another error", errors.New("x"), 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ds, ok := errs.Warnings(tc.err)
			if len(ds) != tc.n || ok != tc.ok {
				t.Errorf("got %d, %v; want %d, %v", len(ds), ok, tc.n, tc.ok)
			}
		})
	}
}

func TestPathsReadAsWritten(t *testing.T) {
	for want, p := range map[string]errs.Steps{
		"mtu":             errs.Path("mtu"),
		"route[0].dst":    errs.Path("route", 0, "dst"),
		`env["A"]`:        errs.Path("env", errs.MapKey("A")),
		`rule["x"].allow`: errs.Path("rule", errs.MapKey("x"), "allow"),
	} {
		if got := p.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
