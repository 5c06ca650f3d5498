package vault

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// realServer starts Vault's own server: the program that NUCLEUS_VAULT names, or
// the one on PATH.
func realServer(t *testing.T) server {
	t.Helper()
	program := os.Getenv("NUCLEUS_VAULT")
	if program == "" {
		found, err := exec.LookPath("vault")
		if err != nil {
			t.Skip("no vault on PATH, and NUCLEUS_VAULT names none: README.md says how to build one") //nolint:forbidigo // testutil is of another module
		}
		program = found
	}
	dir, address := t.TempDir(), freePort(t)
	cmd := exec.Command(program, "server", "-dev", "-dev-tls", "-dev-tls-cert-dir="+dir, "-dev-root-token-id=root", "-dev-no-store-token", "-dev-listen-address="+address)
	cmd.Env = []string{"HOME=" + dir, "PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	// The death signal follows the thread (golang#27505).
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Log(out.String())
		}
	})
	s := server{address: "https://" + address, caFile: filepath.Join(dir, "vault-ca.pem"), token: write(t, "root")}
	root := rootClient(t, &s, ended)
	setUp(t, root, &s)
	return s
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func rootClient(t *testing.T, s *server, ended <-chan struct{}) *api.Client {
	t.Helper()
	for range 600 {
		select {
		case <-ended:
			t.Fatal("the server ended")
		case <-time.After(100 * time.Millisecond):
		}
		if _, err := os.Stat(s.caFile); err != nil {
			continue
		}
		c, _, err := newClient(Config{Address: s.address, TLS: &TLS{CAFile: s.caFile}})
		if err != nil {
			continue
		}
		c.SetToken("root")
		// The engine of secret/ is upgraded in the background, after the server listens.
		if _, err := c.Logical().Write("secret/data/app/db", map[string]any{"data": map[string]any{"value": "old"}}); err == nil {
			return c
		}
	}
	t.Fatal("the server does not answer")
	return nil
}

func setUp(t *testing.T, root *api.Client, s *server) {
	t.Helper()
	key, jwt := signedJWT(t)
	s.jwt = write(t, jwt)
	data := func(fields map[string]any) map[string]any { return map[string]any{"data": fields} }
	for _, step := range []struct {
		path string
		body map[string]any
	}{
		{"secret/data/app/db", data(dbFields())},
		{"secret/data/app/gone", data(map[string]any{"value": "x"})},
		{"secret/delete/app/gone", map[string]any{"versions": []int{1}}},
		{"secret/data/other", data(map[string]any{"value": "s3cret"})},
		{"sys/mounts/kv", map[string]any{"type": "kv", "options": map[string]string{"version": "1"}}},
		{"kv/app/db", map[string]any{"value": "one"}},
		{"sys/mounts/leased", map[string]any{"type": "kv", "options": map[string]string{"version": "1", "leased_passthrough": "true"}}},
		{"leased/app/db", map[string]any{"user": "u", "password": "p", "ttl": "10m"}},
		{"sys/policies/acl/app", map[string]any{"policy": `
			path "secret/data/app/*" { capabilities = ["read"] }
			path "kv/app/*" { capabilities = ["read"] }
			path "leased/app/*" { capabilities = ["read"] }
			path "sys/leases/renew" { capabilities = ["update"] }
			path "sys/leases/revoke" { capabilities = ["update"] }`}},
		{"sys/auth/approle", map[string]any{"type": "approle"}},
		{"auth/approle/role/app", map[string]any{"token_policies": "app", "token_ttl": "1h"}},
		{"sys/auth/jwt", map[string]any{"type": "jwt"}},
		{"auth/jwt/config", map[string]any{"jwt_validation_pubkeys": []string{key}}},
		{"auth/jwt/role/app", map[string]any{"role_type": "jwt", "user_claim": "sub", "bound_audiences": "nucleus", "token_policies": "app", "token_ttl": "1h"}},
	} {
		if _, err := root.Logical().Write(step.path, step.body); err != nil {
			t.Fatalf("%s: %v", step.path, err)
		}
	}
	role, err := root.Logical().Read("auth/approle/role/app/role-id")
	if err != nil {
		t.Fatal(err)
	}
	secret, err := root.Logical().Write("auth/approle/role/app/secret-id", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.roleID, s.secretID = role.Data["role_id"].(string), write(t, secret.Data["secret_id"].(string))
	s.leases = func(t *testing.T) int {
		t.Helper()
		list, err := root.Logical().List("sys/leases/lookup/leased/app/db")
		if err != nil {
			t.Fatal(err)
		}
		if list == nil {
			return 0
		}
		return len(list.Data["keys"].([]any))
	}
	s.alive = func(_ *testing.T, token string) bool {
		_, err := root.Auth().Token().Lookup(token)
		return err == nil
	}
}

// signedJWT gives a public key as PEM, and a token that it verifies (RFC 7518, ES256).
func signedJWT(t *testing.T) (key, token string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	token = part(map[string]string{"alg": "ES256", "typ": "JWT"}) + "." +
		part(map[string]any{"sub": "job", "aud": "nucleus", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix()})
	sum := sha256.Sum256([]byte(token))
	r, s, err := ecdsa.Sign(rand.Reader, k, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})), token + "." + base64.RawURLEncoding.EncodeToString(sig)
}
