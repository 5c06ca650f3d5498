package rootfs

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fixture is a tree whose digest core/tree has as a golden vector.
func fixture(t *testing.T) string {
	t.Helper()
	root := t.TempDir() + "/root"
	for _, err := range []error{
		os.Mkdir(root, 0o755), os.Chmod(root, 0o755),
		os.WriteFile(root+"/f", []byte("abc"), 0o644), os.Chmod(root+"/f", 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const golden = "sha256:007a27eacb1703ab2f6d42a6e4c2d1444aa1d74192d46a9d876cb46d0654ae81"

func TestDigestPrintsTheJobFileValue(t *testing.T) {
	var out bytes.Buffer
	if err := Digest(&out, fixture(t), false); err != nil {
		t.Fatal(err)
	}
	if out.String() != golden+"\n" {
		t.Errorf("output %q, want %q", out.String(), golden+"\n")
	}
}

func TestDigestJSON(t *testing.T) {
	var out bytes.Buffer
	path := fixture(t)
	if err := Digest(&out, path, true); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v in %q", err, out.String())
	}
	seconds, ok := got["seconds"].(float64)
	if !ok || seconds <= 0 {
		t.Errorf("seconds = %v", got["seconds"])
	}
	delete(got, "seconds")
	want := map[string]any{"version": 1.0, "path": path, "digest": golden, "files": 1.0, "bytes": 3.0}
	if len(got) != len(want) {
		t.Errorf("fields %v, want %v", got, want)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s = %v, want %v", k, got[k], v)
		}
	}
}

func TestDigestFollowsALinkToTheRoot(t *testing.T) {
	path := fixture(t)
	if err := os.Symlink(path, path+"-current"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Digest(&out, path+"-current", false); err != nil || !strings.Contains(out.String(), golden) {
		t.Errorf("Digest = %v, %q", err, out.String())
	}
}

func TestDigestErrors(t *testing.T) {
	path := fixture(t)
	if err := unix.Mkfifo(path+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		want error
	}{
		{path + "/missing", os.ErrNotExist},
		{path + "/f", unix.ENOTDIR},
		{path + "/fifo", unix.ENOTDIR},
	} {
		err := Digest(io.Discard, tt.path, false)
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.path) {
			t.Errorf("Digest(%q) = %v, want %v that names it", tt.path, err, tt.want)
		}
	}
}

func TestDigestReportsTheWriter(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	for _, asJSON := range []bool{false, true} {
		if err := Digest(w, fixture(t), asJSON); !errors.Is(err, unix.EPIPE) {
			t.Errorf("Digest with JSON %v = %v, want EPIPE", asJSON, err)
		}
	}
}
