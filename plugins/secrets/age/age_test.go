package age

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

func write(t *testing.T, b []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func seal(t *testing.T, text string, armored bool, to ...age.Recipient) []byte {
	t.Helper()
	var out bytes.Buffer
	dst := io.WriteCloser(nopCloser{&out})
	if armored {
		dst = armor.NewWriter(&out)
	}
	w, err := age.Encrypt(dst, to...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func identity(t *testing.T) (*age.X25519Identity, string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id, write(t, []byte("# a comment\n"+id.String()+"\n"), 0o600)
}

func fetch(t *testing.T, c Config, i Instance, optional bool) (secrets.Secret, error) {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Configure("i", i); err != nil {
		t.Fatal(err)
	}
	got, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{{Name: "a", InstanceID: "i", Optional: optional}})
	if err != nil {
		return secrets.Secret{}, err
	}
	return got[0], nil
}

func TestFetchDecrypts(t *testing.T) {
	id, key := identity(t)
	_, other := identity(t)
	for _, armored := range []bool{false, true} {
		path := write(t, seal(t, "s3cret\n", armored, id.Recipient()), 0o644)
		for _, c := range []struct {
			c    Config
			i    Instance
			want string
		}{
			{Config{}, Instance{Path: path, Identity: key}, "s3cret\n"},
			{Config{}, Instance{Path: path, Identity: key, Trim: true}, "s3cret"},
			{Config{Identities: []string{other, key}}, Instance{Path: path}, "s3cret\n"},
			{Config{Identities: []string{other}, Dirs: []string{filepath.Dir(path), filepath.Dir(key)}}, Instance{Path: path, Identity: key}, "s3cret\n"},
		} {
			if s, err := fetch(t, c.c, c.i, false); err != nil || string(s.Value) != c.want {
				t.Errorf("armored %v: %q, %v", armored, s.Value, err)
			}
		}
	}
}

func sshKey(t *testing.T, key any, passphrase string) (ssh.PublicKey, string) {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer.PublicKey(), write(t, pem.EncodeToMemory(block), 0o600)
}

func TestFetchTakesSSHKeys(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, path := sshKey(t, ed, "")
	r, err := agessh.NewEd25519Recipient(pub)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := fetch(t, Config{}, Instance{Path: write(t, seal(t, "s3cret", false, r), 0o600), Identity: path}, false); err != nil || string(s.Value) != "s3cret" {
		t.Errorf("ed25519: %q, %v", s.Value, err)
	}
	_, locked := sshKey(t, ed, "open sesame")
	if _, err := fetch(t, Config{}, Instance{Path: write(t, seal(t, "s3cret", false, r), 0o600), Identity: locked}, false); fault.Of(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "has a passphrase") {
		t.Errorf("a key with a passphrase: %v", err)
	}
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pub, path = sshKey(t, long, "")
	rr, err := agessh.NewRSARecipient(pub)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := fetch(t, Config{}, Instance{Path: write(t, seal(t, "s3cret", true, rr), 0o600), Identity: path}, false); err != nil || string(s.Value) != "s3cret" {
		t.Errorf("rsa: %q, %v", s.Value, err)
	}
}

func TestFetchTellsWhatIsWrong(t *testing.T) {
	id, key := identity(t)
	other, otherKey := identity(t)
	whole := seal(t, "s3cret", false, id.Recipient())
	good := write(t, whole, 0o644)
	password, err := age.NewScryptRecipient("open sesame")
	if err != nil {
		t.Fatal(err)
	}
	password.SetWorkFactor(2)
	changed := bytes.Clone(whole)
	changed[len(changed)-1] ^= 1
	typo := strings.Replace(id.String(), "AGE-SECRET-KEY-1", "AGE-SECRET-KEY-I", 1)
	for name, c := range map[string]struct {
		i    Instance
		code fault.Code
		text string
	}{
		"for somebody else":        {Instance{Path: good, Identity: otherKey}, fault.PermissionDenied, "none of the 1 identities"},
		"with a password":          {Instance{Path: write(t, seal(t, "s3cret", false, password), 0o644), Identity: key}, fault.PermissionDenied, ""},
		"changed on the way":       {Instance{Path: write(t, changed, 0o644), Identity: key}, fault.FailedPrecondition, "encrypt it again"},
		"cut off":                  {Instance{Path: write(t, whole[:len(whole)-3], 0o644), Identity: key}, fault.FailedPrecondition, "encrypt it again"},
		"not encrypted":            {Instance{Path: write(t, []byte("s3cret\nand more\n"), 0o644), Identity: key}, fault.FailedPrecondition, "encrypt it again"},
		"replaceable":              {Instance{Path: write(t, whole, 0o666), Identity: key}, fault.PermissionDenied, "chmod 0644"},
		"too long":                 {Instance{Path: write(t, seal(t, strings.Repeat("s3cr", 1<<18+1), false, id.Recipient()), 0o644), Identity: key}, fault.FailedPrecondition, "longer than 1 MiB"},
		"identity with a mistake":  {Instance{Path: good, Identity: write(t, []byte(typo), 0o600)}, fault.FailedPrecondition, "holds no identity"},
		"identity open to all":     {Instance{Path: good, Identity: write(t, []byte(id.String()), 0o644)}, fault.PermissionDenied, "chmod 0600"},
		"identity missing":         {Instance{Path: good, Identity: key + "x"}, fault.FailedPrecondition, "age-keygen -o"},
		"identity of a broken pem": {Instance{Path: good, Identity: write(t, []byte("-----BEGIN OPENSSH PRIVATE KEY-----\ns3cret"), 0o600)}, fault.FailedPrecondition, "holds no identity"},
	} {
		s, err := fetch(t, Config{}, c.i, true)
		if fault.Of(err) != c.code || err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %q, error %v; want %s: %s", name, s.Value, err, c.code, c.text)
		}
		if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), id.String()[20:]) || strings.Contains(err.Error(), other.String()[20:])) {
			t.Errorf("%s: the error tells a secret: %v", name, err)
		}
	}
	if s, err := fetch(t, Config{}, Instance{Path: good + "x", Identity: key}, true); err != nil || !s.Absent {
		t.Errorf("absent: %+v, %v", s, err)
	}
}

// An identity that the operator's part has read is not the job's to use by its path.
func TestDirsHoldForTheIdentitiesOfJobs(t *testing.T) {
	id, key := identity(t)
	path := write(t, seal(t, "s3cret", false, id.Recipient()), 0o600)
	p, err := New(Config{Identities: []string{key}, Dirs: []string{filepath.Dir(path)}})
	if err != nil {
		t.Fatal(err)
	}
	for name, i := range map[string]Instance{"operator": {Path: path}, "job": {Path: path, Identity: key}} {
		if err := p.Configure(name, i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{{Name: "a", InstanceID: "operator"}, {Name: "b", InstanceID: "operator"}}); err != nil {
		t.Error(err)
	}
	if _, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{{Name: "a", InstanceID: "operator"}, {Name: "b", InstanceID: "job"}}); fault.Of(err) != fault.PermissionDenied {
		t.Errorf("error %v", err)
	}
}

func TestConfigurationsAreChecked(t *testing.T) {
	for _, c := range []Config{{Identities: []string{"a"}}, {Dirs: []string{"a"}}} {
		if _, err := New(c); fault.Of(err) != fault.InvalidArgument {
			t.Errorf("%+v: %v", c, err)
		}
	}
	p, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []Instance{{Path: "a", Identity: "/k"}, {Path: "/a", Identity: "k"}, {Path: "/a"}} {
		if err := p.Configure("i", i); fault.Of(err) != fault.InvalidArgument {
			t.Errorf("%+v: %v", i, err)
		}
	}
}
