package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

func TestParse(t *testing.T) {
	got, err := parse([]byte("# a comment\n\nA=1\r\n export B = two words \nC=\"a # b\"\nD=' x '\nE=\nF=a=b"))
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"A": "1", "B": "two words", "C": "a # b", "D": " x ", "E": "", "F": "a=b"} {
		if v, ok := got[key]; !ok || string(v) != want {
			t.Errorf("%s: %q, want %q", key, v, want)
		}
	}
	if len(got) != 6 {
		t.Errorf("%d values", len(got))
	}
}

func TestParseErrorsNameTheLineAndNoValue(t *testing.T) {
	for text, want := range map[string]string{
		"A=1\nhunter2":        "line 2 is not KEY=VALUE",
		"1A=hunter2":          "line 1 is not KEY=VALUE",
		"A=1\nA=hunter2":      "line 2 has a key that was there before",
		"A=\"hunter2":         "line 1 has a quote that nothing closes",
		"A='":                 "line 1 has a quote that nothing closes",
		"hunter2\n=hunter2\n": "line 1 is not KEY=VALUE\nline 2 is not KEY=VALUE",
	} {
		_, err := parse([]byte(text))
		if err == nil || err.Error() != want {
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
	}
}

func TestFetch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "env")
	write := func(mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte("A=1\nB=2\n"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write(0o600)
	p := &provider{keys: map[string]string{}}
	if err := p.configure(t.Context(), config.Instance{}, operator{Path: path}); err != nil {
		t.Fatal(err)
	}
	for id, key := range map[string]string{"a": "A", "b": "B", "none": "C"} {
		if err := p.configureSecret(t.Context(), config.Instance{ID: id}, instance{Key: key}); err != nil {
			t.Fatal(err)
		}
	}
	ref := func(id string) secrets.Ref { return secrets.Ref{Name: id, InstanceID: id} }

	got, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{ref("b"), ref("a"), {Name: "none", InstanceID: "none", Optional: true}})
	if err != nil || len(got) != 3 || string(got[0].Value) != "2" || string(got[1].Value) != "1" || !got[2].Absent {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{ref("a"), ref("none")}); errs.Of(err).Code != errs.NotFound {
		t.Errorf("a key that is not there: %v", err)
	}
	write(0o644)
	if _, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{ref("a")}); errs.Of(err).Code != errs.Denied || !strings.Contains(err.Error(), "chmod go=") {
		t.Errorf("a file that others can read: %v", err)
	}
}
