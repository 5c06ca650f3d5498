package provider

import (
	"errors"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

func TestWireKeepsWhatTheCoreActsOn(t *testing.T) {
	got := errs.Of(wire(&fault.Error{Code: fault.Unavailable, Secret: "db", Err: errors.New("down"), RetryAfter: time.Second}))
	if got.Code != errs.Unavailable || got.RetryAfter != time.Second || got.Text != `secret "db": down` {
		t.Errorf("%+v", got)
	}
	got = errs.Of(wire(fault.Config(`command["pass"].argv[0]`, "write it in full", "%q is relative", "x")))
	if got.Code != errs.Config || len(got.Diagnostics) != 1 || got.Diagnostics[0].Path.String() != `command["pass"].argv[0]` {
		t.Errorf("%+v", got)
	}
	if wire(nil) != nil {
		t.Error("no error became one")
	}
	for code, want := range codes {
		if c := errs.Of(wire(&fault.Error{Code: code, Err: errors.New("x")})).Code; c != want {
			t.Errorf("%s: %s, want %s", code, c, want)
		}
	}
}
