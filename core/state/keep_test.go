package state

import (
	"testing"
)

// A supervisor marks its sandbox as kept, then lets it go. A collector that looks at
// the mark before, and at the lock behind, must not take it for dead.
func TestKeptBesideACollector(t *testing.T) {
	r, err := Open(t.TempDir() + "/root")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 400 {
		d, err := r.Create(NewID(), "job", false)
		if err != nil {
			t.Fatal(err)
		}
		kept := make(chan error)
		go func() { kept <- d.Keep() }()
		for over := false; !over; {
			select {
			case err := <-kept:
				if err != nil {
					t.Fatal(err)
				}
				over = true
			default:
			}
			dead, err := r.Dead(true)
			if err != nil || len(dead) > 0 {
				t.Fatalf("%d dead, %v", len(dead), err)
			}
		}
		x, err := r.Find(d.ID)
		if err != nil || !x.Kept() {
			t.Fatalf("kept: %t, %v", err == nil && x.Kept(), err)
		}
		taken, err := r.Take(x)
		if err != nil {
			t.Fatal(err)
		}
		if err := taken.Remove(); err != nil {
			t.Fatal(err)
		}
	}
}
