package state

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestUpdatesOfARootFollowEachOther(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "state"))
	path := filepath.Join(r.Path(), "numbers.json")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				var n []int
				if err := r.Update("numbers.json", &n, func(save func() error) error {
					n = append(n, len(n))
					return save()
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var n []int
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	if err != nil || len(n) != 160 {
		t.Errorf("%d numbers, %v; want 160", len(n), err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", st, err)
	}
	if err := r.Update("numbers.json", &n, func(save func() error) error { n = nil; return save() }); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("nothing is left, and its file is there: %v", err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Update("numbers.json", &n, func(func() error) error { t.Error("changed"); return nil }); err == nil {
		t.Error("a file that cannot be read is taken for an empty one")
	}
}
