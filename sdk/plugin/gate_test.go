package plugin

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		var mu sync.Mutex
		var order []string
		so := func() string {
			mu.Lock()
			defer mu.Unlock()
			return strings.Join(order, " ")
		}
		enter := func(name string, alone bool) func() {
			leave, err := g.enter(t.Context(), alone)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			order = append(order, name)
			return leave
		}
		first, second := enter("first", false), enter("second", false)
		go func() {
			leave := enter("alone", true)
			time.Sleep(time.Second)
			leave()
		}()
		synctest.Wait()
		// Who comes later waits for the one who wants to be alone.
		go func() { enter("late", false)() }()
		synctest.Wait()
		late, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.enter(late, false); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		first()
		synctest.Wait()
		if got := so(); got != "first second" {
			t.Fatalf("beside the second: %q", got)
		}
		second()
		synctest.Wait()
		if got := so(); got != "first second alone" {
			t.Fatalf("got %q", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := so(); got != "first second alone late" {
			t.Fatalf("got %q", got)
		}
		enter("again", true)()
	})
}

func TestGateForgetsWhoGaveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		first, err := g.enter(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() {
			if _, err := g.enter(short, true); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		}()
		synctest.Wait()
		// It waits behind one who gives up, and for nobody else.
		second, err := g.enter(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		first()
		second()
	})
}

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q turns
		leave, err := q.enter(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		other, err := q.enter(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		other()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := q.enter(short, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		time.AfterFunc(time.Second, leave)
		for range 2 {
			again, err := q.enter(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			again()
		}
		if len(q.held) != 0 {
			t.Errorf("held: %v", q.held)
		}
	})
}
