package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
)

func pool(t *testing.T, n int) *seats {
	t.Helper()
	s := &seats{}
	if err := s.Configure(t.Context(), config.Instance{}, operator{t.TempDir(), n}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *seats) at(t *testing.T, b hooks.Boundary, id string) string {
	t.Helper()
	a, err := s.OnPhase(t.Context(), hooks.Call{SandboxID: id}, hooks.Event{Boundary: b})
	if err != nil {
		t.Error(err)
	}
	return a.Veto
}

func TestSeatsAreTakenAndGivenBack(t *testing.T) {
	s := pool(t, 2)
	for i, step := range []struct {
		at   hooks.Boundary
		id   string
		veto bool
	}{
		{hooks.Cleanup, "a", false}, // nothing came before
		{hooks.PreNamespaces, "a", false},
		{hooks.PreNamespaces, "a", false}, // once more
		{hooks.PreNamespaces, "b", false},
		{hooks.PreNamespaces, "c", true},
		{hooks.Cleanup, "c", false},
		{hooks.Cleanup, "a", false},
		{hooks.Cleanup, "a", false},
		{hooks.PreNamespaces, "c", false},
		{hooks.PreNamespaces, "a", true},
	} {
		if veto := s.at(t, step.at, step.id); (veto != "") != step.veto || veto != "" && !strings.Contains(veto, "all seats are taken: 2") {
			t.Errorf("step %d: veto %q", i, veto)
		}
	}
}

func TestTheLastSeatIsTakenOnce(t *testing.T) {
	s := pool(t, 3)
	var got atomic.Int32
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if s.at(t, hooks.PreNamespaces, fmt.Sprint(i)) == "" {
				got.Add(1)
			}
		})
	}
	all.Wait()
	if left, err := os.ReadDir(s.pool.Dir); err != nil || got.Load() != 3 || len(left) != 3 {
		t.Errorf("%d have a seat, %d files, %v", got.Load(), len(left), err)
	}
}

func TestSeatsNeedADirectory(t *testing.T) {
	if err := (&seats{}).Configure(t.Context(), config.Instance{}, operator{"/nowhere", 1}); err == nil {
		t.Error("it was taken")
	}
}
