package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/safefile"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/wipe"
)

const (
	retries   = 4
	firstWait = 50 * time.Millisecond // doubled for each further one
	lastWait  = 400 * time.Millisecond
)

// newClient makes a client of exactly what is configured: api.NewClient reads
// VAULT_TOKEN, VAULT_NAMESPACE, VAULT_HEADERS and VAULT_WRAP_TTL behind our back.
func newClient(c Config) (*api.Client, *http.Transport, error) {
	conf, err := tlsConfig(c.TLS)
	if err != nil {
		return nil, nil, err
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 30 * time.Second, MaxIdleConnsPerHost: 4,
	}
	client, err := api.NewClient(&api.Config{
		Address: c.Address,
		HttpClient: &http.Client{
			Transport: transport,
			// The client follows a standby's redirect itself, once.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		MaxRetries: retries, MinRetryWait: firstWait, MaxRetryWait: lastWait,
		Backoff: func(first, last time.Duration, attempt int, _ *http.Response) time.Duration {
			return min(first<<attempt, last)
		},
		CheckRetry: retry,
	})
	if err != nil {
		return nil, nil, fault.New(fault.FailedPrecondition, "take VAULT_ variables out of env of the provider's plugin block", "make a client of Vault: %w", err)
	}
	client.SetToken("")
	client.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	client.SetWrappingLookupFunc(func(string, string) string { return "" })
	if c.Namespace != "" {
		client.SetNamespace(c.Namespace)
	}
	return client, transport, nil
}

// retry is the client's own policy, but that it does not sleep into the end of ctx:
// the caller shall hear what the server said, not that time ran out.
func retry(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if end, ok := ctx.Deadline(); ok && ctx.Err() == nil && time.Until(end) < lastWait+firstWait {
		return false, nil
	}
	return api.DefaultRetryPolicy(ctx, resp, err)
}

func tlsConfig(t *TLS) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if t == nil {
		return conf, nil
	}
	conf.ServerName = t.ServerName
	if t.CAFile != "" {
		pem, err := safefile.Read(t.CAFile, safefile.Rule{Forbid: safefile.Trusted})
		if err != nil {
			return nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.Config("tls.ca_file", "it is a PEM file with BEGIN CERTIFICATE", "%q holds no certificate", t.CAFile)
		}
	}
	if t.CertFile == "" {
		return conf, nil
	}
	cert, err := safefile.Read(t.CertFile, safefile.Rule{Forbid: safefile.Trusted})
	if err != nil {
		return nil, err
	}
	key, err := safefile.Read(t.KeyFile, safefile.Rule{Forbid: safefile.Private})
	if err != nil {
		return nil, err
	}
	defer wipe.Bytes(key)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		// Its own error is of the certificate or the key, and may quote either.
		return nil, fault.Config("tls.key_file", "both are PEM files, and the key is the certificate's", "%q is not the key of %q", t.KeyFile, t.CertFile)
	}
	conf.Certificates = []tls.Certificate{pair}
	return conf, nil
}
