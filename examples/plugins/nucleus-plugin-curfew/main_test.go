package main

import (
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
)

func TestCurfew(t *testing.T) {
	for _, tc := range []struct {
		from, until, hour int
		veto              string
	}{
		{22, 6, 21, ""},
		{22, 6, 22, "there is a curfew until 06:00"},
		{22, 6, 0, "there is a curfew until 06:00"},
		{22, 6, 6, ""},
		{12, 13, 12, "there is a curfew until 13:00"},
		{12, 13, 13, ""},
		{12, 13, 11, ""},
	} {
		c := &curfew{now: func() time.Time { return time.Date(2026, 1, 1, tc.hour, 59, 0, 0, time.UTC) }}
		if err := c.Configure(t.Context(), config.Instance{}, operator{tc.from, tc.until}); err != nil {
			t.Fatal(err)
		}
		a, err := c.OnPhase(t.Context(), hooks.Call{}, hooks.Event{Boundary: hooks.PreNamespaces})
		if err != nil || a.Veto != tc.veto {
			t.Errorf("%+v: veto %q, %v", tc, a.Veto, err)
		}
		a, err = c.OnPhase(t.Context(), hooks.Call{}, hooks.Event{Boundary: hooks.PreSecurity})
		if err != nil || a.Veto != "" || a.Mutation.AddEnv["CURFEW"] == "" {
			t.Errorf("%+v: answer %+v, %v", tc, a, err)
		}
	}
}

func TestCurfewOfADayIsRefused(t *testing.T) {
	if err := (&curfew{}).Configure(t.Context(), config.Instance{}, operator{5, 5}); err == nil {
		t.Error("it was taken")
	}
}
