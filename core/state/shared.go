package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Update changes a file of the root that belongs to no sandbox alone, while nobody else
// does: what it has is read into v, change changes that, and save writes it back. A missing
// file leaves v as it is; a v that is null in JSON removes it.
func (r *Root) Update(name string, v any, change func(save func() error) error) error {
	path := filepath.Join(r.path, name)
	return r.locked(func() error {
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil {
			if err := json.Unmarshal(b, v); err != nil {
				return fmt.Errorf("%q: %w", path, err)
			}
		}
		return change(func() error {
			if b, err := json.Marshal(v); err == nil && string(b) == "null" {
				return os.Remove(path)
			}
			return writeJSON(r.path, name, v)
		})
	})
}
