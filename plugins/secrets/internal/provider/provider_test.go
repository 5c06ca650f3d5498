package provider

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
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

type lender struct{ closed int }

func (*lender) Configure(string, struct{}) error { return nil }

func (*lender) Fetch(context.Context, secrets.Call, []secrets.Ref) ([]secrets.Secret, error) {
	return nil, nil
}

func (*lender) Renew(context.Context, secrets.Call, string, time.Duration) (secrets.Lease, error) {
	return secrets.Lease{}, nil
}

func (*lender) Revoke(context.Context, secrets.Call, string) error { return nil }

func (l *lender) Close(context.Context) error { l.closed++; return nil }

func TestTheEndOfAProcessClosesItsProvider(t *testing.T) {
	var l lender
	p := Leasing("lender", "1", "lends", func(struct{}) (*lender, error) { return &l, nil })
	if err := p.Close(t.Context()); err != nil || l.closed != 0 {
		t.Errorf("before it was configured: %v, closed %d times", err, l.closed)
	}
	empty := []byte{0x80} // an object of msgpack
	if err := errors.Join(p.Config.Configure(t.Context(), config.Instance{}, empty), p.Close(t.Context())); err != nil || l.closed != 1 {
		t.Errorf("%v, closed %d times", err, l.closed)
	}
}
