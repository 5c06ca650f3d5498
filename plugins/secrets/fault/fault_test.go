package fault

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
)

func TestAnErrorSaysWhereWhatAndTheRemedy(t *testing.T) {
	cause := errors.New("cause")
	err := In("db", New(NotFound, "make it", "read %q: %w", "x", cause))
	if err.Error() != `secret "db": read "x": cause; make it` || !errors.Is(err, cause) || Of(err) != NotFound {
		t.Errorf("error %v", err)
	}
	if err := Config("dirs[1]", "write it", "%q is bad", "x"); err.Error() != `dirs[1]: "x" is bad; write it` {
		t.Errorf("error %v", err)
	}
}

// One error may be told of two secrets.
func TestInLeavesTheErrorAlone(t *testing.T) {
	shared := New(NotFound, "", "none")
	if a, b := In("a", shared), In("b", shared); a.Error() != `secret "a": none` || b.Error() != `secret "b": none` || shared.Secret != "" {
		t.Errorf("%v, %v, %v", a, b, shared)
	}
}

func TestCodesOfOtherErrors(t *testing.T) {
	for code, err := range map[Code]error{
		DeadlineExceeded: fmt.Errorf("x: %w", context.DeadlineExceeded), Internal: errors.New("x"), Unavailable: fmt.Errorf("x: %w", New(Unavailable, "", "y")),
	} {
		if Of(err) != code || Of(In("a", err)) != code {
			t.Errorf("%v: %s, want %s", err, Of(err), code)
		}
	}
}

func TestPathTakesAnAttributeApart(t *testing.T) {
	for attr, want := range map[string][]any{
		"":                           nil,
		"path":                       {"path"},
		"tls.ca_file":                {"tls", "ca_file"},
		"dirs[12]":                   {"dirs", 12},
		`command["a.b[\"]"].argv[0]`: {"command", Key(`a.b["]`), "argv", 0},
		"[":                          {0},
	} {
		if got := (&Error{Attr: attr}).Path(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %#v, want %#v", attr, got, want)
		}
	}
}
