package vault

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is the part of Vault's HTTP API that the provider uses, as a server of version
// 1.14 answers it. What it gives, refuses and forgets is told from the outside, by
// its fields.
type fake struct {
	*httptest.Server

	mu       sync.Mutex
	data     map[string]any // by namespace, a colon, and path: what a GET answers
	tokens   map[string]*fakeToken
	leases   map[string]string // to their tokens
	policy   []string          // prefixes of what tokens of a login may read
	secretID string
	jwt      string
	ttl      time.Duration
	batch    bool
	sealed   bool
	failures []int // statuses of the next answers
	delay    time.Duration
	log      []string
	made     int
}

type fakeToken struct {
	ends time.Time
	root bool
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{
		tokens: map[string]*fakeToken{"root": {ends: time.Now().Add(time.Hour), root: true}}, leases: make(map[string]string),
		policy: []string{"secret/data/app/", "kv/app/", "leased/app/", "sys/leases/"}, secretID: "sid-1", jwt: "a.b.c", ttl: time.Hour,
	}
	kv2 := func(version int, fields map[string]any) map[string]any {
		return map[string]any{"data": fields, "metadata": map[string]any{"version": version, "deletion_time": "", "destroyed": false, "custom_metadata": nil}}
	}
	f.data = map[string]any{
		":secret/data/app/db":           kv2(2, dbFields()),
		":secret/data/app/db?version=1": kv2(1, map[string]any{"value": "old"}),
		":secret/data/app/gone":         kv2(1, nil),
		":secret/data/other":            kv2(1, map[string]any{"value": "s3cret"}),
		":kv/app/db":                    map[string]any{"value": "one"},
		":leased/app/db":                map[string]any{"user": "u", "password": "p"},
		"team:secret/data/app/db":       kv2(1, map[string]any{"value": "team"}),
		"team/a:secret/data/app/db":     kv2(1, map[string]any{"value": "team a"}),
		"team/a:leased/app/db":          map[string]any{"user": "ua"},
	}
	f.Server = httptest.NewTLSServer(f)
	t.Cleanup(f.Close)
	return f
}

func dbFields() map[string]any {
	return map[string]any{"value": "p\"ä\n\u2028</>", "user": "bob", "port": 5432, "tls": map[string]any{"on": true}, "none": nil, "empty": ""}
}

// answerError is an error's body; a 404 has no words.
func answerError(w http.ResponseWriter, status int, words ...string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": append([]string{}, words...)})
}

func answerData(w http.ResponseWriter, status int, more map[string]any) {
	all := map[string]any{"request_id": "r", "lease_id": "", "renewable": false, "lease_duration": 0, "data": nil, "wrap_info": nil, "warnings": nil, "auth": nil}
	maps.Copy(all, more)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(all)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	delay := f.delay
	f.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	path, namespace := strings.TrimPrefix(r.URL.Path, "/v1/"), r.Header.Get("X-Vault-Namespace")
	f.log = append(f.log, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, path, namespace)))
	w.Header().Set("Content-Type", "application/json")
	if len(f.failures) > 0 {
		status := f.failures[0]
		f.failures = f.failures[1:]
		if status != 0 {
			answerError(w, status, fmt.Sprintf("failure %d", status))
			return
		}
	}
	body := make(map[string]any)
	_ = json.NewDecoder(r.Body).Decode(&body)
	switch token := r.Header.Get("X-Vault-Token"); {
	case f.sealed:
		answerError(w, http.StatusServiceUnavailable, "Vault is sealed")
	case r.Header.Get("X-Vault-Request") != "true":
		answerError(w, http.StatusPreconditionFailed, "missing required header X-Vault-Request") // require_request_header
	case r.Header.Get("X-Vault-Wrap-TTL") != "":
		answerData(w, http.StatusOK, map[string]any{"wrap_info": map[string]any{"token": "hvs.wrapped", "ttl": 60}})
	case strings.HasSuffix(path, "/login"):
		f.login(w, path, namespace, body)
	case !f.alive(token) || !f.allowed(token, path):
		answerError(w, http.StatusForbidden, "1 error occurred:\n\t* permission denied\n\n")
	case strings.HasPrefix(path, "auth/token/"):
		f.token(w, strings.TrimPrefix(path, "auth/token/"), token)
	case strings.HasPrefix(path, "sys/leases/"):
		f.lease(w, strings.TrimPrefix(path, "sys/leases/"), body, namespace)
	default:
		f.read(w, namespace+":"+path, token, r.URL.Query().Get("version"))
	}
}

func (f *fake) alive(token string) bool {
	t := f.tokens[token]
	return t != nil && time.Now().Before(t.ends)
}

func (f *fake) allowed(token, path string) bool {
	ok := f.tokens[token].root || strings.HasPrefix(path, "auth/token/")
	for _, prefix := range f.policy {
		ok = ok || strings.HasPrefix(path, prefix)
	}
	return ok
}

func (f *fake) login(w http.ResponseWriter, path, namespace string, body map[string]any) {
	switch {
	case namespace != "" && namespace != "team":
		answerError(w, http.StatusNotFound)
		return
	case path == "auth/approle/login" && (body["role_id"] != "rid" || body["secret_id"] != f.secretID):
		answerError(w, http.StatusBadRequest, "invalid role or secret ID")
		return
	case path == "auth/jwt/login" && (body["role"] != "app" || body["jwt"] != f.jwt):
		answerError(w, http.StatusBadRequest, "error validating token: invalid signature")
		return
	case path != "auth/approle/login" && path != "auth/jwt/login":
		answerError(w, http.StatusForbidden, "permission denied")
		return
	}
	f.made++
	token := fmt.Sprintf("hvs.%d", f.made)
	if f.batch {
		token = fmt.Sprintf("hvb.%d", f.made)
	}
	f.tokens[token] = &fakeToken{ends: time.Now().Add(f.ttl)}
	answerData(w, http.StatusOK, f.auth(token))
}

func (f *fake) auth(token string) map[string]any {
	return map[string]any{"auth": map[string]any{"client_token": token, "lease_duration": int(f.ttl / time.Second), "renewable": !f.batch, "policies": []string{"app"}}}
}

func (f *fake) token(w http.ResponseWriter, verb, token string) {
	switch verb {
	case "lookup-self":
		answerData(w, http.StatusOK, map[string]any{"data": map[string]any{"id": token}})
	case "renew-self":
		f.tokens[token].ends = time.Now().Add(f.ttl)
		answerData(w, http.StatusOK, f.auth(token))
	case "revoke-self":
		if strings.HasPrefix(token, "hvb.") {
			answerError(w, http.StatusBadRequest, "batch tokens cannot be revoked")
			return
		}
		delete(f.tokens, token)
		maps.DeleteFunc(f.leases, func(_, of string) bool { return of == token })
		w.WriteHeader(http.StatusNoContent)
	default:
		answerError(w, http.StatusNotFound)
	}
}

func (f *fake) lease(w http.ResponseWriter, verb string, body map[string]any, namespace string) {
	id, _ := body["lease_id"].(string)
	// A namespace other than the root's is part of the lease's id.
	_, known := f.leases[id]
	known = known && (namespace == "") == !strings.Contains(id, ".ns-") && (namespace == "" || strings.HasSuffix(id, ".ns-"+namespace))
	switch {
	case verb == "revoke":
		if known {
			delete(f.leases, id)
		}
		w.WriteHeader(http.StatusNoContent)
	case !known:
		answerError(w, http.StatusBadRequest, "lease not found")
	default:
		d, _ := body["increment"].(float64)
		answerData(w, http.StatusOK, map[string]any{"lease_id": id, "lease_duration": int(min(d, 3600)), "renewable": true})
	}
}

func (f *fake) read(w http.ResponseWriter, at, token, version string) {
	if version != "" {
		at += "?version=" + version
	}
	data, ok := f.data[at]
	switch {
	case !ok:
		answerError(w, http.StatusNotFound)
	case strings.HasSuffix(at, "app/gone"):
		answerData(w, http.StatusNotFound, map[string]any{"data": data})
	case strings.Contains(at, ":leased/"):
		f.made++
		id := fmt.Sprintf("leased/app/db/%d", f.made)
		if namespace, _, _ := strings.Cut(at, ":"); namespace != "" {
			id += ".ns-" + namespace
		}
		f.leases[id] = token
		answerData(w, http.StatusOK, map[string]any{"lease_id": id, "lease_duration": 600, "renewable": true, "data": data})
	case strings.Contains(at, ":kv/"):
		answerData(w, http.StatusOK, map[string]any{"lease_duration": 2764800, "data": data})
	default:
		answerData(w, http.StatusOK, map[string]any{"data": data})
	}
}

// set changes the server between requests.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// asked gives and forgets the requests so far.
func (f *fake) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	log := f.log
	f.log = nil
	return log
}
