package vault

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// server is what the tests of this file need of a Vault: they run against the fake
// and against a real one.
type server struct {
	address, caFile      string
	roleID               string
	secretID, jwt, token string // files
	renews               bool   // leases of leased/
	leases               func(t *testing.T) int
	alive                func(t *testing.T, token string) bool
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (f *fake) caFile(t *testing.T) string {
	t.Helper()
	return write(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})))
}

func (f *fake) server(t *testing.T) server {
	t.Helper()
	return server{
		address: f.URL, caFile: f.caFile(t), roleID: "rid", secretID: write(t, "sid-1\n"), jwt: write(t, "a.b.c"), token: write(t, "root\n"), renews: true,
		leases: func(*testing.T) (n int) { f.set(func() { n = len(f.leases) }); return n },
		alive:  func(_ *testing.T, token string) (ok bool) { f.set(func() { ok = f.alive(token) }); return ok },
	}
}

func onBoth(t *testing.T, test func(t *testing.T, s server)) {
	t.Run("fake", func(t *testing.T) { test(t, newFake(t).server(t)) })
	t.Run("real", func(t *testing.T) { test(t, realServer(t)) })
}

func (s server) config() Config {
	return Config{Address: s.address, TLS: &TLS{CAFile: s.caFile}, AppRole: &AppRole{RoleID: s.roleID, SecretIDFile: s.secretID}}
}

func provider(t *testing.T, c Config) *Provider {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fetch gives a batch; names say whether a secret is optional by a question mark.
func fetch(t *testing.T, p *Provider, is ...Instance) ([]secrets.Secret, error) {
	t.Helper()
	var refs []secrets.Ref
	for n, i := range is {
		id := string(rune('a' + n))
		path, optional := strings.CutSuffix(i.Path, "?")
		i.Path = path
		if err := p.Configure(id, i); err != nil {
			t.Fatal(err)
		}
		refs = append(refs, secrets.Ref{Name: id, InstanceID: id, Optional: optional})
	}
	return p.Fetch(t.Context(), secrets.Call{}, refs)
}

func TestFetchReadsEveryEngine(t *testing.T) {
	onBoth(t, func(t *testing.T, s server) {
		got, err := fetch(
			t, provider(t, s.config()), Instance{Path: "app/db"}, Instance{Path: "app/db", Field: "user"}, Instance{Path: "app/db", Field: "port"},
			Instance{Path: "app/db", Field: "tls"}, Instance{Path: "app/db", Field: "empty"}, Instance{Path: "app/db", Version: 1},
			Instance{Engine: kv1, Mount: "kv", Path: "app/db"}, Instance{Engine: dynamic, Mount: "leased", Path: "app/db", Field: "password"},
			Instance{Path: "app/none?"}, Instance{Path: "app/gone?"}, Instance{Path: "app/db?", Field: "none"}, Instance{Path: "app/db?", Version: 77},
		)
		if err != nil {
			t.Fatal(err)
		}
		for n, want := range []string{dbFields()["value"].(string), "bob", "5432", `{"on":true}`, "", "old", "one", "p"} {
			if string(got[n].Value) != want || got[n].Absent {
				t.Errorf("%d: %q, want %q", n, got[n].Value, want)
			}
		}
		for n := 8; n < 12; n++ {
			if !got[n].Absent || len(got[n].Value) > 0 {
				t.Errorf("%d: %+v", n, got[n])
			}
		}
		for n, version := range map[int]string{0: "2", 5: "1", 6: "", 7: ""} {
			if got[n].Version != version {
				t.Errorf("%d: version %q, want %q", n, got[n].Version, version)
			}
		}
		if got[0].Lease != (secrets.Lease{}) || got[6].Lease != (secrets.Lease{}) || !got[6].NotAfter.IsZero() {
			t.Errorf("leases of what has none: %+v, %+v", got[0], got[6])
		}
		if l := got[7].Lease; l.ID == "" || !l.Renewable || l.Duration < time.Minute || time.Until(got[7].NotAfter) < time.Minute {
			t.Errorf("lease %+v until %s", l, got[7].NotAfter)
		}
	})
}

func TestLeasesAreRenewedAndRevoked(t *testing.T) {
	onBoth(t, func(t *testing.T, s server) {
		p := provider(t, s.config())
		before := s.leases(t)
		got, err := fetch(t, p, Instance{Engine: dynamic, Mount: "leased", Path: "app/db", Field: "user"}, Instance{Engine: dynamic, Mount: "leased", Path: "app/db", Field: "password"})
		if err != nil {
			t.Fatal(err)
		}
		if got[0].Lease.ID != got[1].Lease.ID || s.leases(t) != before+1 {
			t.Errorf("two fields of one answer: %+v, %+v, %d leases", got[0].Lease, got[1].Lease, s.leases(t)-before)
		}
		if s.renews {
			l, err := p.Renew(t.Context(), secrets.Call{}, got[0].Lease.ID, 90*time.Second+1)
			if err != nil || l.Duration != 91*time.Second || !l.Renewable || l.ID != got[0].Lease.ID {
				t.Errorf("renewed: %+v, %v", l, err)
			}
		}
		// Another process, with another token.
		other := provider(t, s.config())
		for range 2 {
			if err := other.Revoke(t.Context(), secrets.Call{}, got[0].Lease.ID); err != nil {
				t.Error(err)
			}
		}
		eventually(t, "the lease ends", func() bool { return s.leases(t) == before })
		if _, err := p.Renew(t.Context(), secrets.Call{}, got[0].Lease.ID, time.Minute); fault.Of(err) != fault.NotFound || !strings.Contains(err.Error(), "fetch the secret again") {
			t.Errorf("renewed what is gone: %v", err)
		}
	})
}

// What a supervisor leaves that was killed, another process takes back: it knows the
// id of the lease, and has no secret of that job.
func TestAFreshProcessTakesALeaseBackAndLogsOut(t *testing.T) {
	onBoth(t, func(t *testing.T, s server) {
		before := s.leases(t)
		got, err := fetch(t, provider(t, s.config()), Instance{Engine: dynamic, Mount: "leased", Path: "app/db", Field: "user"})
		if err != nil {
			t.Fatal(err)
		}
		fresh := provider(t, s.config())
		if s.renews {
			if _, err := fresh.Renew(t.Context(), secrets.Call{}, got[0].Lease.ID, time.Minute); err != nil {
				t.Error(err)
			}
		}
		for range 2 {
			if err := fresh.Revoke(t.Context(), secrets.Call{}, got[0].Lease.ID); err != nil {
				t.Error(err)
			}
		}
		token := fresh.s.auth.ClientToken
		if err := fresh.Close(t.Context()); err != nil {
			t.Error(err)
		}
		eventually(t, "the lease and the second token end", func() bool { return s.leases(t) == before && !s.alive(t, token) })
	})
}

func TestALeaseThatHasEndedKeepsNoToken(t *testing.T) {
	var l lent
	for name, ends := range map[string]time.Time{"": {}, "past": time.Now().Add(-time.Second)} {
		l.put(name, ends)
	}
	l.prolong("another's", time.Now().Add(time.Hour))
	if l.any() {
		t.Error("there is one")
	}
	l.prolong("past", time.Now().Add(time.Hour))
	if !l.any() {
		t.Error("it was prolonged")
	}
	l.drop("past")
	l.put("of its token's time", time.Time{})
	if !l.any() {
		t.Error("it has no end of its own")
	}
}

func TestATokenPastItsHalfIsRenewed(t *testing.T) {
	onBoth(t, func(t *testing.T, s server) {
		p := provider(t, s.config())
		if _, err := fetch(t, p, Instance{Path: "app/db"}); err != nil {
			t.Fatal(err)
		}
		token := p.s.auth.ClientToken
		p.s.issued = time.Now().Add(-40 * time.Minute)
		if _, err := fetch(t, p, Instance{Path: "app/db"}); err != nil {
			t.Fatal(err)
		}
		if p.s.auth.ClientToken != token || time.Since(p.s.issued) > time.Minute {
			t.Errorf("another token, or none renewed: issued %s ago", time.Since(p.s.issued))
		}
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 100 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("never: %s", what)
}

func TestAFailedBatchGivesItsLeasesBack(t *testing.T) {
	onBoth(t, func(t *testing.T, s server) {
		before := s.leases(t)
		got, err := fetch(t, provider(t, s.config()), Instance{Engine: dynamic, Mount: "leased", Path: "app/db", Field: "user"}, Instance{Path: "app/none"})
		if got != nil || fault.Of(err) != fault.NotFound || !strings.HasPrefix(err.Error(), `secret "b": read secret/data/app/none: status 404`) {
			t.Errorf("%v, %v", got, err)
		}
		eventually(t, "the lease ends", func() bool { return s.leases(t) == before })
	})
}

func TestEachLogin(t *testing.T) {
	onBoth(t, func(t *testing.T, s server) {
		base := Config{Address: s.address, TLS: &TLS{CAFile: s.caFile}}
		for name, c := range map[string]struct {
			with func(c *Config)
			code fault.Code
			text string
		}{
			"token":           {func(c *Config) { c.Token = &Token{File: s.token} }, "", ""},
			"approle":         {func(c *Config) { c.AppRole = &AppRole{RoleID: s.roleID, SecretIDFile: s.secretID} }, "", ""},
			"jwt":             {func(c *Config) { c.JWT = &JWT{Role: "app", File: s.jwt} }, "", ""},
			"wrong token":     {func(c *Config) { c.Token = &Token{File: write(t, "hvs.wr0ng")} }, fault.PermissionDenied, `"read" on secret/data/app/db`},
			"wrong secret id": {func(c *Config) { c.AppRole = &AppRole{RoleID: s.roleID, SecretIDFile: write(t, "wr0ng")} }, fault.PermissionDenied, "log in at auth/approle/login: status 400"},
			"wrong jwt":       {func(c *Config) { c.JWT = &JWT{Role: "app", File: write(t, "wr0ng.x.y")} }, fault.PermissionDenied, "log in at auth/jwt/login: status 400"},
			"no such method":  {func(c *Config) { c.JWT = &JWT{Mount: "jvt", Role: "app", File: s.jwt} }, fault.PermissionDenied, "log in at auth/jvt/login: status 403"},
			"no file":         {func(c *Config) { c.JWT = &JWT{Role: "app", File: s.jwt + "x"} }, fault.FailedPrecondition, "to log in with"},
			"empty file":      {func(c *Config) { c.Token = &Token{File: write(t, "\n")} }, fault.FailedPrecondition, "is empty"},
			"two words":       {func(c *Config) { c.Token = &Token{File: write(t, "wr0ng\nwords")} }, fault.FailedPrecondition, "more than one word"},
		} {
			conf := base
			c.with(&conf)
			got, err := fetch(t, provider(t, conf), Instance{Path: "app/db?", Field: "user"})
			if c.code == "" {
				if err != nil || string(got[0].Value) != "bob" {
					t.Errorf("%s: %v, %v", name, got, err)
				}
				continue
			}
			if err == nil || fault.Of(err) != c.code || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "wr0ng") {
				t.Errorf("%s: error %v; want %s: %s", name, err, c.code, c.text)
			}
		}
	})
}

func TestCloseRevokesATokenOfOurOwn(t *testing.T) {
	onBoth(t, func(t *testing.T, s server) {
		p, before := provider(t, s.config()), s.leases(t)
		if err := p.Close(t.Context()); err != nil {
			t.Errorf("closed before it logged in: %v", err)
		}
		lent, err := fetch(t, p, Instance{Engine: dynamic, Mount: "leased", Path: "app/db", Field: "user"})
		if err != nil {
			t.Fatal(err)
		}
		token := p.s.auth.ClientToken
		if err := p.Close(t.Context()); err != nil || !s.alive(t, token) || s.leases(t) != before+1 {
			t.Errorf("closed under a job that uses a lease: %v, token alive: %t, leases %d", err, s.alive(t, token), s.leases(t)-before)
		}
		if err := p.Revoke(t.Context(), secrets.Call{}, lent[0].Lease.ID); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := p.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		eventually(t, "token and lease end", func() bool { return !s.alive(t, token) && s.leases(t) == before })
		if got, err := fetch(t, p, Instance{Path: "app/db", Field: "user"}); err != nil || string(got[0].Value) != "bob" {
			t.Errorf("after it: %v, %v", got, err)
		}

		c := s.config()
		c.AppRole, c.Token = nil, &Token{File: s.token}
		p = provider(t, c)
		if _, err := fetch(t, p, Instance{Path: "app/db"}); err != nil {
			t.Error(err)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if b, _ := os.ReadFile(s.token); !s.alive(t, strings.TrimSpace(string(b))) {
			t.Error("revoked somebody else's token")
		}
	})
}

func TestRefusalsSayWhatIsMissing(t *testing.T) {
	onBoth(t, func(t *testing.T, s server) {
		for _, c := range []struct {
			i    Instance
			code fault.Code
			text string
		}{
			{Instance{Path: "other?"}, fault.PermissionDenied, `give a policy of the token "read" on secret/data/other`},
			{Instance{Path: "app/none"}, fault.NotFound, "see whether mount, path, engine and namespace are right"},
			{Instance{Path: "app/gone"}, fault.NotFound, "whether this version was deleted"},
			{Instance{Path: "app/db", Field: "nope"}, fault.NotFound, `has no field "nope"`},
			{Instance{Path: "data/app/db?", Engine: dynamic}, fault.NotFound, `secret/data/app/db has no field "value"`},
		} {
			c.i.Path = strings.TrimSuffix(c.i.Path, "?") + map[bool]string{true: "?"}[c.code == fault.PermissionDenied]
			if got, err := fetch(t, provider(t, s.config()), c.i); err == nil || fault.Of(err) != c.code || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%+v: %v, error %v; want %s: %s", c.i, got, err, c.code, c.text)
			}
		}
	})
}
