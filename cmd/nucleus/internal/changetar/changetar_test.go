package changetar_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/cmd/nucleus/internal/changetar"
	"github.com/nucleus-runtime/nucleus/core/changes"
)

func TestArchive(t *testing.T) {
	var b bytes.Buffer
	w := changetar.New(&b)
	for _, e := range []*changes.Entry{
		{Change: changes.Deleted, Type: changes.None, Path: "/ws/gone"},
		{Change: changes.Added, Type: changes.Directory, Mode: 0o3777, Path: "/ws/dir", Replaced: true},
		{Change: changes.Added, Type: changes.File, Mode: 0o6755, Path: "/ws/tool", Size: 3, UID: 12, GID: 34},
		{Change: changes.Added, Type: changes.Hardlink, Mode: 0o6755, Path: "/ws/z", Target: "/ws/tool"},
		{Change: changes.Modified, Type: changes.Symlink, Mode: 0o777, Path: "/ws/link", Target: "../../etc/passwd"},
		{Change: changes.Added, Type: changes.Other, Mode: 0o600, Path: "/ws/.wh.tool"},
	} {
		if err := w.Add(e, strings.NewReader("abc")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w.Left != 1 {
		t.Errorf("left out %d, want 1", w.Left)
	}
	want := []string{
		"0 ws/.wh.gone 600 0:0 ", "5 ws/dir/ 1777 0:0 ", "0 ws/dir/.wh..wh..opq 600 0:0 ", "0 ws/tool 755 12:34 ",
		"1 ws/z 755 0:0 ws/tool", "2 ws/link 777 0:0 ../../etc/passwd",
	}
	var got []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%c %s %o %d:%d %s", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid, h.Linkname))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
