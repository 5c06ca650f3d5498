package vault

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

func withToken(t *testing.T, f *fake) Config {
	t.Helper()
	return Config{Address: f.URL, TLS: &TLS{CAFile: f.caFile(t)}, Token: &Token{File: write(t, "root")}}
}

func TestFailuresOfTheServerBecomeCodes(t *testing.T) {
	for name, c := range map[string]struct {
		with func(f *fake)
		code fault.Code
		text string
	}{
		"sealed":           {func(f *fake) { f.sealed = true }, fault.Unavailable, "vault operator unseal"},
		"broken":           {func(f *fake) { f.failures = slices.Repeat([]int{500}, 100) }, fault.Unavailable, "status 500: failure 500"},
		"replication lags": {func(f *fake) { f.failures = slices.Repeat([]int{412}, 100) }, fault.Unavailable, "status 412"},
		"quota":            {func(f *fake) { f.failures = slices.Repeat([]int{429}, 100) }, fault.ResourceExhausted, "try later"},
		"bad request":      {func(f *fake) { f.failures = []int{400} }, fault.FailedPrecondition, "status 400"},
		"gone":             {func(f *fake) { f.CloseClientConnections(); f.Listener.Close() }, fault.Unavailable, "connection refused"},
	} {
		f := newFake(t)
		p := provider(t, withToken(t, f))
		f.set(func() { c.with(f) })
		_, err := fetch(t, p, Instance{Path: "app/db?"})
		if err == nil || fault.Of(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: error %v (%s); want %s: %s", name, err, fault.Of(err), c.code, c.text)
		}
	}
}

func TestAPassingFailureIsRetried(t *testing.T) {
	f := newFake(t)
	f.failures = []int{500, 503, 429, 0}
	if got, err := fetch(t, provider(t, withToken(t, f)), Instance{Path: "app/db", Field: "user"}); err != nil || string(got[0].Value) != "bob" {
		t.Errorf("%v, %v", got, err)
	}
}

// The end of ctx must not hide what the server said.
func TestRetriesLeaveTheReasonTold(t *testing.T) {
	f := newFake(t)
	f.sealed = true
	p := provider(t, withToken(t, f))
	if err := p.Configure("a", Instance{Path: "app/db"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 550*time.Millisecond)
	defer cancel()
	_, err := p.Fetch(ctx, secrets.Call{}, []secrets.Ref{{Name: "a", InstanceID: "a"}})
	if fault.Of(err) != fault.Unavailable || ctx.Err() != nil {
		t.Errorf("error %v, %v", err, ctx.Err())
	}
}

func TestASlowServerIsLeftInTime(t *testing.T) {
	f := newFake(t)
	f.delay = time.Minute
	p := provider(t, withToken(t, f))
	if err := p.Configure("a", Instance{Path: "app/db"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := p.Fetch(ctx, secrets.Call{}, []secrets.Ref{{Name: "a", InstanceID: "a"}})
	if fault.Of(err) != fault.DeadlineExceeded || time.Since(began) > 10*time.Second {
		t.Errorf("error %v after %s", err, time.Since(began))
	}
}

func TestWhatIsNotVaultIsNotQuoted(t *testing.T) {
	for name, answer := range map[string]func(w http.ResponseWriter){
		"html":       func(w http.ResponseWriter) { _, _ = w.Write([]byte("<html>s3cret")) },
		"html error": func(w http.ResponseWriter) { w.WriteHeader(400); _, _ = w.Write([]byte("<html>s3cret")) },
		"no data":    func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"data":"s3cret"}`)) },
		"other json": func(w http.ResponseWriter) { _, _ = w.Write([]byte(`["s3cret"]`)) },
		"not kv2":    func(w http.ResponseWriter) { _, _ = w.Write([]byte(`{"data":{"value":"s3cret"}}`)) },
		"endless":    func(w http.ResponseWriter) { _, _ = w.Write(bytes.Repeat([]byte("s3cret"), answerLimit/6+1)) },
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
		_, err := fetch(t, provider(t, Config{Address: s.URL, Token: &Token{File: write(t, "root")}}), Instance{Path: "app/db?"})
		s.Close()
		if err == nil || strings.Contains(err.Error(), "s3cret") || fault.Of(err) == fault.NotFound {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestTheServerMustBeWhoItSays(t *testing.T) {
	f := newFake(t)
	other := newFake(t)
	for name, c := range map[string]struct {
		tls  *TLS
		text string
	}{
		"unknown authority": {nil, "unknown authority"},
		"wrong name":        {&TLS{CAFile: f.caFile(t), ServerName: "vault.example.org"}, "vault.example.org"},
		"right name":        {&TLS{CAFile: f.caFile(t), ServerName: "example.com"}, ""},
	} {
		conf := withToken(t, f)
		conf.TLS = c.tls
		_, err := fetch(t, provider(t, conf), Instance{Path: "app/db?"})
		if c.text == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if fault.Of(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "write ca_file or server_name") {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if log := append(f.asked(), other.asked()...); len(log) != 1 {
		t.Errorf("asked %q", log)
	}
}

func TestTheClientHasACertificate(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	f := newFake(t)
	strict := httptest.NewUnstartedServer(f)
	strict.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	strict.StartTLS()
	defer strict.Close()
	c := withToken(t, f)
	c.Address = strict.URL
	if _, err := fetch(t, provider(t, c), Instance{Path: "app/db"}); err == nil {
		t.Error("served without a certificate")
	}
	c.TLS.CertFile = write(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	c.TLS.KeyFile = write(t, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	if _, err := fetch(t, provider(t, c), Instance{Path: "app/db"}); err != nil {
		t.Error(err)
	}
	c.TLS.KeyFile = write(t, "s3cret")
	if _, err := New(c); fault.Of(err) != fault.InvalidArgument || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("error %v", err)
	}
}

func TestATokenIsRenewedAndReplaced(t *testing.T) {
	f := newFake(t)
	s := f.server(t)
	p := provider(t, s.config())
	step := func(what string, want ...string) {
		t.Helper()
		if _, err := fetch(t, p, Instance{Path: "app/db", Field: "user"}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if log := f.asked(); !slices.Equal(log, want) {
			t.Errorf("%s: asked %q, want %q", what, log, want)
		}
	}
	const login, read, renew, look = "PUT auth/approle/login", "GET secret/data/app/db", "PUT auth/token/renew-self", "GET auth/token/lookup-self"
	step("first", login, read)
	step("with a token", read)
	p.s.issued = time.Now().Add(-40 * time.Minute)
	step("past its half", renew, read)
	p.s.issued = time.Now().Add(-2 * time.Hour)
	step("past its end", login, read)
	f.set(func() { clear(f.tokens) })
	step("revoked", read, look, login, read)
	p.s.issued = time.Now().Add(-40 * time.Minute)
	f.set(func() { f.failures = []int{403} })
	step("not renewed", renew, read)
	p.s.issued = time.Now().Add(-58 * time.Minute)
	f.set(func() { f.failures = []int{403} })
	step("not renewed, near its end", renew, login, read)
}

// A new token instead of one that lacks a policy would lose the leases of the old.
func TestADenialKeepsTheToken(t *testing.T) {
	f := newFake(t)
	s := f.server(t)
	p := provider(t, s.config())
	if _, err := fetch(t, p, Instance{Path: "other"}); fault.Of(err) != fault.PermissionDenied {
		t.Errorf("error %v", err)
	}
	if log := f.asked(); slices.Index(log[1:], log[0]) >= 0 {
		t.Errorf("logged in twice: %q", log)
	}
}

func TestABatchTokenIsNotRevoked(t *testing.T) {
	f := newFake(t)
	f.batch = true
	s := f.server(t)
	p := provider(t, s.config())
	if _, err := fetch(t, p, Instance{Path: "app/db"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(t.Context()); err != nil || slices.Contains(f.asked(), "PUT auth/token/revoke-self") {
		t.Errorf("closed: %v", err)
	}
}

func TestCloseTellsThatTheTokenLives(t *testing.T) {
	f := newFake(t)
	s := f.server(t)
	p := provider(t, s.config())
	if _, err := fetch(t, p, Instance{Path: "app/db"}); err != nil {
		t.Fatal(err)
	}
	f.set(func() { f.sealed = true })
	if err := p.Close(t.Context()); fault.Of(err) != fault.Unavailable {
		t.Errorf("error %v", err)
	}
}

func TestNamespaces(t *testing.T) {
	f := newFake(t)
	s := f.server(t)
	c := s.config()
	c.Namespace = "team"
	p := provider(t, c)
	got, err := fetch(t, p, Instance{Path: "app/db"}, Instance{Path: "app/db", Namespace: "a"}, Instance{Engine: dynamic, Mount: "leased", Path: "app/db", Field: "user", Namespace: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if string(got[0].Value) != "team" || string(got[1].Value) != "team a" {
		t.Errorf("%q, %q", got[0].Value, got[1].Value)
	}
	if log := f.asked(); log[0] != "PUT auth/approle/login team" || log[1] != "GET secret/data/app/db team" || log[2] != "GET secret/data/app/db team/a" {
		t.Errorf("asked %q", log)
	}
	if _, err := provider(t, c).Renew(t.Context(), secrets.Call{}, got[2].Lease.ID, time.Minute); err != nil {
		t.Error(err)
	}
	if err := p.Revoke(t.Context(), secrets.Call{}, got[2].Lease.ID); err != nil || s.leases(t) != 0 {
		t.Errorf("%v, %d leases", err, s.leases(t))
	}
}

// Variables for Vault's command line are not the operator's configuration.
func TestTheEnvironmentSaysNothing(t *testing.T) {
	for k, v := range map[string]string{
		"VAULT_TOKEN": "root", "VAULT_NAMESPACE": "team", "VAULT_HEADERS": `{"A":"b"}`, "VAULT_ADDR": "https://192.0.2.1", "VAULT_SKIP_VERIFY": "1",
		"VAULT_WRAP_TTL": "60", "VAULT_MAX_RETRIES": "0",
	} {
		t.Setenv(k, v)
	}
	f := newFake(t)
	s := f.server(t)
	if got, err := fetch(t, provider(t, s.config()), Instance{Path: "app/db", Field: "user"}); err != nil || string(got[0].Value) != "bob" {
		t.Errorf("%v, %v", got, err)
	}
	c := s.config()
	if client, _, err := newClient(c); err != nil || client.Token() != "" || client.Namespace() != "" || client.Headers().Get("A") != "" {
		t.Errorf("client of the environment: %v", err)
	}
	c.TLS = nil
	if _, err := fetch(t, provider(t, c), Instance{Path: "app/db"}); fault.Of(err) != fault.FailedPrecondition {
		t.Errorf("unverified: %v", err)
	}
}

func TestAnswersAreOverwritten(t *testing.T) {
	a, err := parse(location{engine: kv2}, []byte(`{"data":{"data":{"value":"s3cr\u0065t","n":5},"metadata":{"version":1}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a field may be asked for twice
		if s, err := a.secret(target{field: "value"}); err != nil || string(s.Value) != "s3cret" {
			t.Errorf("%q, %v", s.Value, err)
		}
	}
	value := a.fields["value"]
	a.wipe()
	if !bytes.Equal(value, make([]byte, len(value))) {
		t.Errorf("left %q", value)
	}
	b := []byte("s3cret and more")
	var v text
	if err := v.UnmarshalText(b[:6]); err != nil || string(v) != "s3cret" || string(b) != "\x00\x00\x00\x00\x00\x00 and more" {
		t.Errorf("%q of %q, %v", v, b, err)
	}
}

func TestAFreePortIsRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	p := provider(t, Config{Address: "http://" + l.Addr().String(), Token: &Token{File: write(t, "root")}})
	if err := p.Configure("a", Instance{Path: "app/db"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := p.Fetch(ctx, secrets.Call{}, []secrets.Ref{{Name: "a", InstanceID: "a"}}); fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %v", err)
	}
}

func TestManyFetchAtOnce(t *testing.T) {
	f := newFake(t)
	s := f.server(t)
	c := s.config()
	c.Namespace = "team"
	p := provider(t, c)
	for id, i := range map[string]Instance{"a": {Path: "app/db"}, "b": {Path: "app/db", Namespace: "a"}} {
		if err := p.Configure(id, i); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			got, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{{Name: "a", InstanceID: "a"}, {Name: "b", InstanceID: "b"}})
			if err != nil || string(got[0].Value) != "team" || string(got[1].Value) != "team a" {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	wg.Wait()
	if logins := slices.DeleteFunc(f.asked(), func(r string) bool { return !strings.Contains(r, "login") }); len(logins) != 1 {
		t.Errorf("logged in %d times", len(logins))
	}
}
