package checkpoint

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// removeAll removes a directory of ours, however deep a program has made what is in it:
// os.Root.RemoveAll has a descriptor open for each level, and there are as many as the
// process may have for all that it does. What a directory holds is moved to the top
// instead, before the directory is removed.
func removeAll(at *os.Root, name string) error {
	top, err := at.OpenRoot(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer top.Close()
	moved := 0
	for {
		names, err := some(top, ".")
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return at.Remove(name)
		}
		for _, n := range names {
			if err := flatten(top, n, &moved); err != nil {
				return err
			}
		}
	}
}

// flatten removes a file, or an empty directory; what else a directory holds it moves
// beside it.
func flatten(top *os.Root, name string, moved *int) error {
	for {
		err := top.Remove(name)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		_ = top.Chmod(name, 0o700) // if that does not do, what follows says so
		names, rerr := some(top, name)
		if rerr != nil || len(names) == 0 {
			return errors.Join(err, rerr)
		}
		for _, n := range names {
			n = filepath.Join(name, n)
			if err := top.Remove(n); err == nil || errors.Is(err, fs.ErrNotExist) {
				continue
			}
			_ = top.Chmod(n, 0o700) // its ".." is written to
			*moved++
			if err := top.Rename(n, prefix+strconv.Itoa(*moved)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
}

// some gives some of the names in a directory, none if it is empty.
func some(top *os.Root, name string) ([]string, error) {
	f, err := top.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(1024)
	return names, ignoreEOF(err)
}
