package vault

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/safefile"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/wipe"
)

// session is the provider's standing with the server. Leases end with the token that
// they were taken with, so a token is kept and renewed as long as it can be.
type session struct {
	c      Config
	client *api.Client

	mu     sync.Mutex
	auth   *api.SecretAuth // of a login of ours
	issued time.Time       // when that began to count
}

// in gives a client that is logged in, of a namespace below the operator's.
func (s *session) in(ctx context.Context, namespace string) (*api.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.current(ctx); err != nil {
		return nil, err
	}
	return s.below(namespace), nil
}

func (s *session) below(namespace string) *api.Client {
	if namespace == "" {
		return s.client
	}
	if s.c.Namespace != "" {
		namespace = s.c.Namespace + "/" + namespace
	}
	return s.client.WithNamespace(namespace)
}

// current sees to it that the token has some life before it.
func (s *session) current(ctx context.Context) error {
	if s.c.Token != nil {
		token, err := credential(s.c.Token.File)
		if err != nil {
			return err
		}
		s.client.SetToken(token)
		return nil
	}
	if s.auth != nil {
		whole := time.Duration(s.auth.LeaseDuration) * time.Second
		left := time.Until(s.issued.Add(whole))
		if whole == 0 || left > whole/2 {
			return nil
		}
		if s.auth.Renewable && left > 0 && s.renew(ctx) == nil {
			return nil
		}
		if left > whole/10 {
			return nil // the last word of a token at its maximal age, whose leases live on
		}
	}
	return s.login(ctx)
}

func (s *session) renew(ctx context.Context) error {
	began := time.Now()
	got, err := s.client.Auth().Token().RenewSelfWithContext(ctx, 0)
	if err != nil {
		return err
	}
	if got == nil || got.Auth == nil {
		return fault.New(fault.Unavailable, "see the server's log", "renew the token: there is none in the answer")
	}
	s.auth, s.issued = got.Auth, began
	return nil
}

func (s *session) login(ctx context.Context) error {
	var path, file, key string
	body := make(map[string]any)
	mount := func(m, otherwise string) string {
		if m == "" {
			m = otherwise
		}
		return "auth/" + m + "/login"
	}
	if a := s.c.AppRole; a != nil {
		path, file, key, body["role_id"] = mount(a.Mount, "approle"), a.SecretIDFile, "secret_id", a.RoleID
	} else {
		path, file, key, body["role"] = mount(s.c.JWT.Mount, "jwt"), s.c.JWT.File, "jwt", s.c.JWT.Role
	}
	word, err := credential(file)
	if err != nil {
		return err
	}
	body[key] = word
	s.client.SetToken("") // a stale one would be refused before the login is looked at
	s.auth = nil
	began := time.Now()
	got, err := s.client.Logical().WriteWithContext(ctx, path, body)
	if err != nil {
		return refusedLogin(ctx, path, file, err)
	}
	if got == nil || got.Auth == nil || got.Auth.ClientToken == "" {
		return fault.New(fault.FailedPrecondition, "log in without a second factor", "log in at %s: there is no token in the answer", path)
	}
	s.auth, s.issued = got.Auth, began
	s.client.SetToken(got.Auth.ClientToken)
	return nil
}

// refusedLogin tells of credentials what answered tells of policies: a wrong one is
// refused with status 400.
func refusedLogin(ctx context.Context, path, file string, err error) error {
	what := "log in at " + path
	re, ok := errors.AsType[*api.ResponseError](err)
	if !ok {
		return failed(ctx, what, "", err)
	}
	e := answered(what, "", re)
	switch e.Code {
	case fault.FailedPrecondition, fault.PermissionDenied:
		e.Code, e.Hint = fault.PermissionDenied, "see whether the role and what is in "+file+" are right and have not expired"
	case fault.NotFound:
		e.Code, e.Hint = fault.FailedPrecondition, "see whether the method is enabled at this mount and namespace"
	}
	return e
}

// credential reads a file that proves who we are. Its absence is not that of a secret,
// which might be optional.
func credential(path string) (string, error) {
	b, err := safefile.Read(path, safefile.Rule{Forbid: safefile.Private})
	if fault.Of(err) == fault.NotFound {
		return "", fault.New(fault.FailedPrecondition, "write it, or correct the host configuration", "there is no file %q to log in with", path)
	}
	if err != nil {
		return "", err
	}
	defer wipe.Bytes(b)
	word := string(bytes.TrimSpace(b))
	if word == "" {
		return "", fault.New(fault.FailedPrecondition, "write it again", "%q is empty", path)
	}
	for _, r := range word {
		if r <= ' ' || r > '~' {
			return "", fault.New(fault.FailedPrecondition, "it holds the token or secret id and nothing else", "%q holds more than one word", path)
		}
	}
	return word, nil
}

// again logs in once more, if the token that was refused is dead: it was revoked, or
// the server lost it. A living one lacks a policy, and leases may hang on it.
func (s *session) again(ctx context.Context) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.auth == nil {
		return false
	}
	if _, err := s.client.Auth().Token().LookupSelfWithContext(ctx); fault.Of(failed(ctx, "", "", errOr(err))) != fault.PermissionDenied {
		return false
	}
	return s.login(ctx) == nil
}

func errOr(err error) error {
	if err == nil {
		return &api.ResponseError{StatusCode: http.StatusOK}
	}
	return err
}

// end revokes a token of ours, and with it what leases are left.
func (s *session) end(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	auth := s.auth
	s.auth = nil
	if auth == nil {
		return nil
	}
	var err error
	// A batch token is kept nowhere: there is nothing to revoke.
	if !strings.HasPrefix(auth.ClientToken, "hvb.") {
		err = s.client.Auth().Token().RevokeSelfWithContext(ctx, "")
	}
	s.client.SetToken("")
	if err == nil {
		return nil
	}
	err = failed(ctx, "revoke the provider's token", `"update" on auth/token/revoke-self`, err)
	if fault.Of(err) == fault.PermissionDenied { // dead already
		return nil
	}
	return err
}
