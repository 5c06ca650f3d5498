package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// A file is put aside when it is full, and a reader that is at it goes on with the
// next without losing or doubling anything.
func TestFileIsBoundedAndReadOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var want, got bytes.Buffer
	pad := bytes.Repeat([]byte("x"), 4000)
	for i := range 3500 { // more than three files
		line := fmt.Appendf(nil, "%d %s\n", i, pad)
		want.Write(line)
		if _, err := f.Write(line); err != nil {
			t.Fatal(err)
		}
		if i%100 != 0 {
			continue
		}
		if _, err := io.Copy(&got, r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.Copy(&got, r); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("%d bytes were read, other than the %d that were written", got.Len(), want.Len())
	}
	var sum int64
	for _, p := range []string{path, path + OldSuffix} {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		sum += st.Size()
	}
	if sum > 2*maxFile {
		t.Errorf("%d bytes are kept, want at most %d", sum, 2*maxFile)
	}
	if _, err := os.Stat(path + OldSuffix + OldSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a third file: %v", err)
	}
}
