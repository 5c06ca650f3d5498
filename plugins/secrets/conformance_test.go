// Package secrets has the tests of the providers' programs against the contract of
// plugins, as processes.
package secrets

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/nucleus-runtime/nucleus/sdk/conformance"
	"github.com/nucleus-runtime/nucleus/sdk/plugintest"
)

// write makes a private file.
func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func secret(id string, v plugintest.Values) plugintest.Instance {
	return plugintest.Instance{Service: "secrets", ID: id, Config: v}
}

func missing(id string, v plugintest.Values) plugintest.Instance {
	i := secret(id, v)
	i.Missing = true
	return i
}

// conforms runs all rules. Those that are named may have nothing to look at.
func conforms(t *testing.T, c plugintest.Config, except ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		except = append(except, "base/other-user") // only root can be somebody else
	}
	for _, r := range plugintest.Run(t, c) {
		if r.Outcome == conformance.NotApplicable && !slices.Contains(except, r.Rule) {
			t.Error(r)
		}
	}
}

func TestFileConforms(t *testing.T) {
	dir := filepath.Dir(write(t, "token", "correct-horse"))
	other := write(t, "other", "battery-staple\n")
	conforms(t, plugintest.Config{
		Binary: plugintest.Build(t, "./cmd/local", "nucleus-plugin-file"),
		Plugin: plugintest.Values{"dirs": []string{dir, filepath.Dir(other)}},
		Instances: []plugintest.Instance{
			secret("token", plugintest.Values{"path": dir + "/token"}), secret("other", plugintest.Values{"path": other, "trim": true}),
			missing("gone", plugintest.Values{"path": dir + "/gone"}),
		},
	}, "secrets/revoke", "secrets/renew")
}

func TestEnvConforms(t *testing.T) {
	conforms(t, plugintest.Config{
		Binary: plugintest.Build(t, "./cmd/local", "nucleus-plugin-env"),
		Env:    []string{"DB=correct-horse", "API=battery-staple"},
		Plugin: plugintest.Values{"allow": []string{"DB", "API", "GONE"}},
		Instances: []plugintest.Instance{
			secret("db", plugintest.Values{"name": "DB"}), secret("api", plugintest.Values{"name": "API"}), missing("gone", plugintest.Values{"name": "GONE"}),
		},
	}, "secrets/revoke", "secrets/renew")
}

func TestExecConforms(t *testing.T) {
	path := write(t, "token", "correct-horse")
	conforms(t, plugintest.Config{
		Binary: plugintest.Build(t, "./cmd/local", "nucleus-plugin-exec"),
		Plugin: plugintest.Values{"command": map[string]any{
			"read": map[string]any{"argv": []string{"/bin/cat"}, "args": []string{"/[^.]+"}},
			// Long enough to be interrupted.
			"slow": map[string]any{"argv": []string{"/bin/sh", "-c", "sleep 0.1; cat " + write(t, "slow", "battery-staple")}},
		}},
		Instances: []plugintest.Instance{
			secret("token", plugintest.Values{"command": "read", "args": []string{path}}), secret("slow", plugintest.Values{"command": "slow"}),
		},
		Cycles: 20,
	}, "secrets/revoke", "secrets/renew", "secrets/optional")
}

func TestSystemdConforms(t *testing.T) {
	dir := filepath.Dir(write(t, "token", "correct-horse"))
	conforms(t, plugintest.Config{
		Binary:    plugintest.Build(t, "./cmd/local", "nucleus-plugin-systemd"),
		Plugin:    plugintest.Values{"directory": dir},
		Instances: []plugintest.Instance{secret("token", plugintest.Values{"name": "token"}), missing("gone", plugintest.Values{"name": "gone"})},
	}, "secrets/revoke", "secrets/renew")
}

func TestAgeConforms(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("correct-horse")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := write(t, "token.age", sealed.String())
	conforms(t, plugintest.Config{
		Binary:    plugintest.Build(t, "./cmd/nucleus-plugin-age", "nucleus-plugin-age"),
		Plugin:    plugintest.Values{"identities": []string{write(t, "key", id.String()+"\n")}},
		Instances: []plugintest.Instance{secret("token", plugintest.Values{"path": path}), missing("gone", plugintest.Values{"path": path + ".gone"})},
	}, "secrets/revoke", "secrets/renew")
}

func TestVaultConforms(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(vault))
	defer s.Close()
	conforms(t, plugintest.Config{
		Binary: plugintest.Build(t, "./cmd/nucleus-plugin-vault", "nucleus-plugin-vault"),
		Plugin: plugintest.Values{"address": s.URL, "token": map[string]any{"file": write(t, "token", "vault-token")}},
		Instances: []plugintest.Instance{
			secret("kept", plugintest.Values{"path": "app/db"}),
			secret("lent", plugintest.Values{"engine": "dynamic", "mount": "database", "path": "creds/app", "field": "password"}),
			missing("gone", plugintest.Values{"path": "app/gone"}),
		},
		Cycles: 100,
	})
}

// vault answers what little the suite asks for, as a server does. Its own package
// tests the provider against a real one.
func vault(w http.ResponseWriter, r *http.Request) {
	answer := func(code int, v map[string]any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
	switch path := strings.TrimPrefix(r.URL.Path, "/v1/"); {
	case r.Header.Get("X-Vault-Token") != "vault-token":
		answer(http.StatusForbidden, map[string]any{"errors": []string{"permission denied"}})
	case path == "secret/data/app/db":
		answer(http.StatusOK, map[string]any{"data": map[string]any{"data": map[string]any{"value": "correct-horse"}, "metadata": map[string]any{"version": 1}}})
	case path == "database/creds/app":
		answer(http.StatusOK, map[string]any{"lease_id": "database/creds/app/1", "lease_duration": 60, "renewable": true, "data": map[string]any{"password": "battery-staple"}})
	case path == "sys/leases/renew":
		answer(http.StatusBadRequest, map[string]any{"errors": []string{"lease not found"}})
	case path == "sys/leases/revoke":
		w.WriteHeader(http.StatusNoContent)
	default:
		answer(http.StatusNotFound, map[string]any{"errors": []string{}})
	}
}
