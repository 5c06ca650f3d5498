package state

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A survey has every sandbox that has announced the step and not undone it, whether it
// lives or is owed; what was only begun otherwise is not on it.
func TestSurvey(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	for id, step := range map[string]string{idA: "network", idA2: "cgroup", idB: "network"} {
		d := create(t, r, id, "x"+id[len(id)-4:])
		if err := d.Announce(t.Context(), step, id); err != nil {
			t.Fatal(err)
		}
		if id == idB { // as after the death of its supervisor
			if err := d.Release(); err != nil {
				t.Fatal(err)
			}
		}
	}
	undone := create(t, r, NewID(), "undone")
	if err := errors.Join(undone.Announce(t.Context(), "network", ""), undone.Journal.Undone("network")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(r.Path(), "sandboxes", NewID()), 0o700); err != nil { // it has no journal yet
		t.Fatal(err)
	}
	var got map[string]Record
	see := func() error {
		return r.Survey(t.Context(), "network", func(all map[string]Record) error {
			got = all
			return nil
		})
	}
	if err := see(); err != nil || len(got) != 2 || string(got[idA].Data) != `"`+idA+`"` || string(got[idB].Data) != `"`+idB+`"` {
		t.Errorf("%v, %v", got, err)
	}
	path := filepath.Join(r.Path(), "sandboxes", idA2, journalName)
	for what, spoil := range map[string]func() error{
		"no record": func() error { return os.WriteFile(path, []byte("{\n"), 0o600) },
		"too long":  func() error { return os.Truncate(path, maxJournal+1) },
		"a FIFO":    func() error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
	} {
		was, err := os.ReadFile(path)
		if err := errors.Join(err, spoil()); err != nil {
			t.Fatal(err)
		}
		got = nil
		if err := see(); err == nil || got != nil {
			t.Errorf("%s: a journal that cannot be read is taken for an empty one: %v, %v", what, got, err)
		}
		if err := errors.Join(os.Remove(path), os.WriteFile(path, was, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// Nobody announces an effect during a survey, or it would not be on the list.
func TestSurveyHoldsUpAnnouncements(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	d, other := create(t, r, idA, "a"), create(t, r, idB, "b")
	announced := make(chan error, 1)
	err := r.Survey(t.Context(), "network", func(all map[string]Record) error {
		go func() { announced <- d.Announce(context.Background(), "network", "") }()
		soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := other.Announce(soon, "network", ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("announced during a survey: %v", err)
		}
		if left, err := d.Pending(); err != nil || len(left) > 0 {
			t.Errorf("written down during a survey: %v, %v", left, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-announced; err != nil {
		t.Errorf("after it: %v", err)
	}
}
