package systemd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

func fetch(t *testing.T, c Config, ref secrets.Ref) (secrets.Secret, error) {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Configure("i", Instance{Name: ref.Name}); err != nil {
		t.Fatal(err)
	}
	ref.InstanceID = "i"
	got, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{ref})
	if err != nil {
		return secrets.Secret{}, err
	}
	return got[0], nil
}

func TestFetchReadsCredentials(t *testing.T) {
	named, other := t.TempDir(), t.TempDir()
	// 0440 is what a credential with an ACL shows.
	for dir, text := range map[string]string{named: "named\n", other: "other\n"} {
		if err := os.WriteFile(filepath.Join(dir, "db pass"), []byte(text), 0o440); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", named)
	if s, err := fetch(t, Config{}, secrets.Ref{Name: "db pass"}); err != nil || string(s.Value) != "named\n" {
		t.Errorf("of the variable: %q, %v", s.Value, err)
	}
	if s, err := fetch(t, Config{Directory: other}, secrets.Ref{Name: "db pass"}); err != nil || string(s.Value) != "other\n" {
		t.Errorf("of the directory: %q, %v", s.Value, err)
	}
	if s, err := fetch(t, Config{}, secrets.Ref{Name: "none", Optional: true}); err != nil || !s.Absent {
		t.Errorf("absent: %+v, %v", s, err)
	}
	if _, err := fetch(t, Config{}, secrets.Ref{Name: "none"}); fault.Of(err) != fault.NotFound {
		t.Errorf("error %v", err)
	}
}

func TestFetchRefusesALinkAndAnOpenFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "open"), []byte("s3cret"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "private"), []byte("s3cret"), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("private", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for name, code := range map[string]fault.Code{"open": fault.PermissionDenied, "link": fault.FailedPrecondition} {
		if s, err := fetch(t, Config{Directory: dir}, secrets.Ref{Name: name, Optional: true}); fault.Of(err) != code {
			t.Errorf("%s: %q, %v", name, s.Value, err)
		}
	}
}

func TestNamesAreChecked(t *testing.T) {
	p, err := New(Config{Directory: "/run/credentials/x"})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "../a", "a:b", "a\nb", "ä", strings.Repeat("x", 256)} {
		if err := p.Configure("i", Instance{Name: name}); fault.Of(err) != fault.InvalidArgument {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := p.Configure("i", Instance{Name: strings.Repeat("x", 255)}); err != nil {
		t.Error(err)
	}
}

func TestTheDirectoryMustBeKnown(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := New(Config{}); fault.Of(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "LoadCredential=") {
		t.Errorf("error %v", err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "credentials")
	if _, err := New(Config{}); fault.Of(err) != fault.InvalidArgument || !strings.HasPrefix(err.Error(), "CREDENTIALS_DIRECTORY: ") {
		t.Errorf("error %v", err)
	}
}
