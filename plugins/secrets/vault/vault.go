package vault

import (
	"context"
	"strings"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/batch"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/wipe"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// Provider reads from a server.
type Provider struct {
	s         *session
	idle      func()
	instances batch.Instances[target]
	lent      lent
}

var (
	_ secrets.Provider = (*Provider)(nil)
	_ secrets.Renewer  = (*Provider)(nil)
	_ secrets.Revoker  = (*Provider)(nil)
)

// New makes a provider. It speaks to the server only once something is fetched.
func New(c Config) (*Provider, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	client, transport, err := newClient(c)
	if err != nil {
		return nil, err
	}
	return &Provider{s: &session{c: c, client: client}, idle: transport.CloseIdleConnections}, nil
}

// Configure sets where a secret is.
func (p *Provider) Configure(id string, i Instance) error {
	t, err := p.s.c.target(i)
	if err != nil {
		return err
	}
	p.instances.Put(id, t)
	return nil
}

// undone is how long taking back the leases of a batch that failed may take.
const undone = 5 * time.Second

// Fetch reads each location once, however many of its fields are wanted. When it
// fails, the leases that it took until then are given back.
func (p *Provider) Fetch(ctx context.Context, _ secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
	got := make(map[location]*answer)
	defer func() {
		for _, a := range got {
			a.wipe()
		}
	}()
	ss, err := batch.Fetch(ctx, refs, func(ref secrets.Ref) (secrets.Secret, error) {
		t, err := p.instances.Get(ref)
		if err != nil {
			return secrets.Secret{}, err
		}
		a, ok := got[t.at]
		if !ok {
			a = p.read(ctx, t.at)
			got[t.at] = a
		}
		return a.secret(t)
	})
	if err != nil {
		p.giveBack(ctx, got)
		return nil, err
	}
	for _, a := range got {
		p.lent.put(a.lease.ID, a.ends)
	}
	return ss, nil
}

func (p *Provider) giveBack(ctx context.Context, got map[location]*answer) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undone)
	defer cancel()
	for _, a := range got {
		if a.lease.ID != "" {
			// One that cannot be given back ends with its own time, or with the token.
			_ = p.Revoke(ctx, secrets.Call{}, a.lease.ID)
		}
	}
}

func (p *Provider) read(ctx context.Context, at location) *answer {
	a, err := p.get(ctx, at)
	if fault.Of(err) == fault.PermissionDenied && p.s.again(ctx) {
		a, err = p.get(ctx, at)
	}
	if err != nil {
		return &answer{err: err}
	}
	return a
}

func (p *Provider) get(ctx context.Context, at location) (*answer, error) {
	client, err := p.s.in(ctx, at.namespace)
	if err != nil {
		return nil, err
	}
	var params map[string][]string
	if at.version != "" {
		params = map[string][]string{"version": {at.version}}
	}
	what := "read " + at.path
	// Raw, since the client's own reading makes strings of values, which nobody can overwrite.
	resp, err := client.Logical().ReadRawWithDataWithContext(ctx, at.path, params)
	if resp != nil && resp.Body != nil {
		defer resp.Body.Close()
	}
	if err != nil {
		return nil, failed(ctx, what, `"read" on `+at.path, err)
	}
	body, err := wipe.Read(resp.Body, answerLimit)
	if err != nil {
		return nil, failed(ctx, what, "", err)
	}
	defer wipe.Bytes(body)
	return parse(at, body)
}

// Renew prolongs a lease.
func (p *Provider) Renew(ctx context.Context, _ secrets.Call, leaseID string, increment time.Duration) (secrets.Lease, error) {
	namespace, id := splitLease(leaseID)
	client, err := p.s.in(ctx, namespace)
	if err != nil {
		return secrets.Lease{}, err
	}
	// Up to a whole second: zero would ask for the default.
	got, err := client.Sys().RenewWithContext(ctx, id, int((increment+time.Second-1)/time.Second))
	if err != nil {
		return secrets.Lease{}, failed(ctx, "renew a lease", `"update" on sys/leases/renew`, err)
	}
	if got == nil {
		return secrets.Lease{}, fault.New(fault.Unavailable, "see the server's log", "renew a lease: there is none in the answer")
	}
	l := secrets.Lease{ID: leaseID, Duration: time.Duration(got.LeaseDuration) * time.Second, Renewable: got.Renewable}
	p.lent.prolong(leaseID, time.Now().Add(l.Duration))
	return l, nil
}

// Revoke ends a lease.
func (p *Provider) Revoke(ctx context.Context, _ secrets.Call, leaseID string) error {
	namespace, id := splitLease(leaseID)
	client, err := p.s.in(ctx, namespace)
	if err != nil {
		return err
	}
	err = client.Sys().RevokeWithContext(ctx, id)
	if err == nil {
		p.lent.drop(leaseID)
		return nil
	}
	if err = failed(ctx, "revoke a lease", `"update" on sys/leases/revoke`, err); fault.Of(err) == fault.NotFound {
		p.lent.drop(leaseID)
		return nil
	}
	return err
}

// Close logs out: a token of our own is revoked, unless a lease that was taken with
// it is still lent. Vault would end that too, under the job that uses it.
func (p *Provider) Close(ctx context.Context) error {
	defer p.idle()
	if p.lent.any() {
		return nil
	}
	return p.s.end(ctx)
}

// A lease is renewed and revoked in the namespace where it was taken, perhaps by
// another process: its id for the core tells which.
func joinLease(namespace, id string) string {
	if id == "" || namespace == "" {
		return id
	}
	return "@" + namespace + "@" + id
}

func splitLease(id string) (namespace, lease string) {
	rest, ok := strings.CutPrefix(id, "@")
	if !ok {
		return "", id
	}
	namespace, lease, _ = strings.Cut(rest, "@")
	return namespace, lease
}
