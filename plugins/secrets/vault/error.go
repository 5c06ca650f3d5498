package vault

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
)

// failed makes an error of one of the client's. what says what was tried; policy is
// what a token needs for it.
func failed(ctx context.Context, what, policy string, err error) error {
	if re, ok := errors.AsType[*api.ResponseError](err); ok {
		return answered(what, policy, re)
	}
	if untrusted, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fault.New(fault.FailedPrecondition, "write ca_file or server_name in the tls block, or correct the address", "%s: the server is not who it should be: %w", what, untrusted.Err)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || ctx.Err() != nil {
		return fault.New(fault.DeadlineExceeded, "see whether the server is slow, or raise the timeout of the plugin's calls", "%s: no answer in time", what)
	}
	// It names the URL, which is in the configuration.
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err
	}
	e := fault.New(fault.Unavailable, "see whether the server runs and can be reached at the address", "%s: %w", what, err)
	e.RetryAfter = time.Second
	return e
}

// answered makes an error of what the server says. Its words are told if it is
// Vault that speaks, and not some proxy.
func answered(what, policy string, re *api.ResponseError) *fault.Error {
	said := ""
	if !re.RawError && len(re.Errors) > 0 {
		said = ": " + short(strings.Join(re.Errors, ", "))
	}
	e := fault.New(fault.FailedPrecondition, "", "%s: status %d%s", what, re.StatusCode, said)
	switch code := re.StatusCode; {
	case code == http.StatusForbidden, code == http.StatusUnauthorized:
		e.Code, e.Hint = fault.PermissionDenied, "give a policy of the token "+policy
	case code == http.StatusNotFound:
		e.Code, e.Hint = fault.NotFound, "see whether mount, path, engine and namespace are right, and whether this version was deleted"
	case code == http.StatusTooManyRequests:
		e.Code, e.Hint, e.RetryAfter = fault.ResourceExhausted, "a quota of the server is used up: try later", time.Second
	case code == http.StatusServiceUnavailable && strings.Contains(said, "sealed"):
		e.Code, e.Hint, e.RetryAfter = fault.Unavailable, "unseal the server: vault operator unseal", time.Second
	case code >= 500, code == http.StatusPreconditionFailed:
		e.Code, e.Hint, e.RetryAfter = fault.Unavailable, "see the server's log", time.Second
	case strings.Contains(said, "lease not found"), strings.Contains(said, "invalid lease"):
		e.Code, e.Hint = fault.NotFound, "it has ended: fetch the secret again"
	}
	return e
}

func short(s string) string {
	const most = 300
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.Join(strings.Fields(strings.ToValidUTF8(s, "")), " ")
}
