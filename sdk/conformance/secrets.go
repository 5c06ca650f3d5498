package conformance

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

func secretsSuite() suite {
	return suite{name: "secrets", service: manifest.Secrets, verbs: secretsVerbs, learn: learnFetch, rules: []Rule{
		{"secrets/fetch", "Fetch gives as many values as were asked for, in their order and with their names", "answer ref by ref, and fail as a whole", configured, fetches},
		{"secrets/repeat", "the same request_id gets the same bytes, also when both come at once", "keep answers by request_id for as long as a host may ask again", configured, repeatedFetch},
		{"secrets/unknown-instance", "Fetch for an instance that was not configured gives an error that says so", "answer INVALID_ARGUMENT or NOT_FOUND, and give no value", configured, unknownInstance},
		{"secrets/optional", "an optional secret that is not there is absent; one that is required is NOT_FOUND", "set absent where the ref is optional, and answer NOT_FOUND where it is not", configured, optional},
		{"secrets/confidential", "no value is in an error, on standard error, or in the arguments or environment of a process", "say where a secret is, and never what; hand it to a child through a pipe", configured, confidential},
		{"secrets/undumpable", "the process is not dumpable: no core file, and no look into it for other processes of its user", "prctl(PR_SET_DUMPABLE, 0) as the first act", running, undumpable},
		{"secrets/revoke", "with feature secrets.revoke: Revoke succeeds twice, of a lease that never was, and in a new process", "take a lease that is gone for revoked", configured, revokes},
		{"secrets/renew", "with feature secrets.renew: Renew of a lease that never was gives an error that says so", "answer NOT_FOUND", configured, renews},
	}}
}

const noLease = "no/such/lease/0123456789abcdef"

// learnFetch tries whether the values can be had at all.
func learnFetch(ctx context.Context, k *Checker, p *process) {
	if refs := k.refs(); len(refs) > 0 {
		_, k.known.fetch = p.fetch(ctx, k.id(), refs...)
	}
}

func secretsVerbs(k *Checker) []verb {
	var out []verb
	if refs := k.refs(); len(refs) > 0 && k.known.fetch == nil {
		out = append(out, verb{"Fetch", false, func(ctx context.Context, p *process, id string) error {
			_, err := p.secrets.Fetch(ctx, &pluginv1.FetchRequest{Call: call(id), Refs: refs})
			return err
		}})
	}
	if k.feature(secrets.FeatureRevoke) {
		out = append(out, verb{"Revoke", true, func(ctx context.Context, p *process, id string) error {
			_, err := p.secrets.Revoke(ctx, &pluginv1.RevokeRequest{Call: k.callOf(id), LeaseId: noLease})
			return err
		}})
	}
	return out
}

func (k *Checker) feature(name string) bool {
	return slices.Contains(k.known.info.GetFeatures(), name)
}

// refs are of all instances whose secret exists.
func (k *Checker) refs() []*pluginv1.SecretRef {
	var out []*pluginv1.SecretRef
	for _, i := range k.instances(manifest.Secrets) {
		if !i.Missing {
			out = append(out, &pluginv1.SecretRef{Name: i.ID, InstanceId: i.instance()})
		}
	}
	return out
}

// callOf is a call about a lease, with the instance whose it is.
func (k *Checker) callOf(id string) *pluginv1.Call {
	c := call(id)
	if refs := k.refs(); len(refs) > 0 {
		c.InstanceId = refs[0].GetInstanceId()
	}
	return c
}

// withRefs starts a process with secrets to ask for.
func (k *Checker) withRefs(ctx context.Context) (*process, []*pluginv1.SecretRef, error) {
	refs := k.refs()
	if len(refs) == 0 {
		return nil, nil, skip(`no instance was given: write instance "secrets" "NAME" { … }`)
	}
	if k.known.fetch != nil {
		return nil, nil, skip("Fetch fails: see secrets/fetch")
	}
	p, err := k.ready(ctx, launch{})
	return p, refs, err
}

func (p *process) fetch(ctx context.Context, id string, refs ...*pluginv1.SecretRef) (r *pluginv1.FetchResponse, err error) {
	err = within(ctx, func(ctx context.Context) error {
		r, err = p.secrets.Fetch(ctx, &pluginv1.FetchRequest{Call: call(id), Refs: refs})
		return err
	})
	return r, err
}

func fetches(ctx context.Context, k *Checker) error {
	if err := k.known.fetch; err != nil {
		return &fault{tell(err), "give the suite secrets that this user can read, or mend Fetch"}
	}
	p, refs, err := k.withRefs(ctx)
	if err != nil {
		return err
	}
	defer p.close()
	turned := slices.Clone(refs)
	slices.Reverse(turned)
	values := map[string][]byte{}
	for what, asked := range map[string][]*pluginv1.SecretRef{
		"all": refs, "all, the other way round": turned, "the first, twice": {refs[0], refs[0]}, "none": nil,
	} {
		r, err := p.fetch(ctx, k.id(), asked...)
		if err != nil {
			return broken("%s: %s", what, tell(err))
		}
		if len(r.GetSecrets()) != len(asked) {
			return broken("%s: %d were asked for, and %d came", what, len(asked), len(r.GetSecrets()))
		}
		for i, s := range r.GetSecrets() {
			if s.GetName() != asked[i].GetName() || s.GetAbsent() {
				return broken("%s: %q was asked for in place %d, and %q came (absent: %v)", what, asked[i].GetName(), i, s.GetName(), s.GetAbsent())
			}
			// A lease is made for each request: its values differ.
			if v, ok := values[s.GetName()]; ok && s.GetLeaseId() == "" && !bytes.Equal(v, s.GetValue()) {
				return broken("%s: %q has another value than in another place", what, s.GetName())
			}
			values[s.GetName()] = s.GetValue()
		}
	}
	return nil
}

func repeatedFetch(ctx context.Context, k *Checker) error {
	p, refs, err := k.withRefs(ctx)
	if err != nil {
		return err
	}
	defer p.close()
	return repeated(k, func(id string) (proto.Message, error) { return p.fetch(ctx, id, refs...) })
}

// repeated makes a request twice one after the other, and another twice at once.
func repeated(k *Checker, ask func(id string) (proto.Message, error)) error {
	type answer struct {
		b   []byte
		err error
	}
	one := func(id string) (a answer) {
		m, err := ask(id)
		if err != nil {
			return answer{err: broken("%s", tell(err))}
		}
		a.b, a.err = proto.MarshalOptions{Deterministic: true}.Marshal(m)
		return a
	}
	id := k.id()
	a, b := one(id), one(id)
	if a.err != nil || b.err != nil {
		return errors.Join(a.err, b.err)
	}
	if !bytes.Equal(a.b, b.b) {
		return broken("the second answer differs from the first")
	}
	id = k.id()
	ch := make(chan answer, 2)
	for range 2 {
		go func() { ch <- one(id) }()
	}
	a, b = <-ch, <-ch
	if a.err != nil || b.err != nil {
		return errors.Join(a.err, b.err)
	}
	if !bytes.Equal(a.b, b.b) {
		return broken("the answers to two at once differ")
	}
	return nil
}

func unknownInstance(ctx context.Context, k *Checker) error {
	p, err := k.ready(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	_, err = p.fetch(ctx, k.id(), &pluginv1.SecretRef{Name: "unknown", InstanceId: "unknown-instance"})
	if !typed(err) {
		return broken("%s%s", tell(err), p.said())
	}
	return p.healthy(ctx)
}

func optional(ctx context.Context, k *Checker) error {
	if k.known.fetch != nil {
		return skip("Fetch fails: see secrets/fetch")
	}
	var missing []Instance
	for _, i := range k.instances(manifest.Secrets) {
		if i.Missing {
			missing = append(missing, i)
		}
	}
	if len(missing) == 0 {
		return skip(`no secret that is not there was given: write missing "secrets" "NAME" { … }`)
	}
	p, err := k.ready(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	for _, i := range missing {
		r, err := p.fetch(ctx, k.id(), &pluginv1.SecretRef{Name: i.ID, InstanceId: i.instance(), Optional: true})
		if err != nil {
			return broken("%q, optional: %s", i.ID, tell(err))
		}
		if len(r.GetSecrets()) != 1 || !r.GetSecrets()[0].GetAbsent() || len(r.GetSecrets()[0].GetValue()) > 0 {
			return broken("%q, optional: it came, and is said not to be there", i.ID)
		}
		if _, err = p.fetch(ctx, k.id(), &pluginv1.SecretRef{Name: i.ID, InstanceId: i.instance()}); status.Code(err) != codes.NotFound {
			return broken("%q, required: %s", i.ID, tell(err))
		}
	}
	return nil
}

// encodings are the forms in which a value is looked for. Short ones would be found
// by chance.
func encodings(value string) []string {
	value = strings.TrimSpace(value)
	if len(value) < 6 {
		return nil
	}
	b := []byte(value)
	return []string{
		value, base64.RawStdEncoding.EncodeToString(b[:len(b)/3*3]), base64.RawURLEncoding.EncodeToString(b[:len(b)/3*3]),
		hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)),
	}
}

func confidential(ctx context.Context, k *Checker) error {
	p, refs, err := k.withRefs(ctx)
	if err != nil {
		return err
	}
	defer p.close()
	values, err := k.canaries(ctx, p, refs)
	if err != nil {
		return err
	}
	// What the operator has put into the environment is no leak.
	given := strings.Join(k.conf.Env, "\x00")
	find := func(where, text string) error {
		for _, v := range values {
			for _, e := range encodings(v) {
				if strings.Contains(text, e) {
					return broken("a value is in %s", where)
				}
			}
		}
		return nil
	}
	var bad []error
	// While Fetch is at work, and afterwards.
	done := make(chan error, 1)
	id := k.id()
	p.readers.Go(func() { _, err := p.fetch(ctx, id, refs...); done <- err })
	for over := false; !over; {
		select {
		case err := <-done:
			if err != nil {
				return broken("%s", tell(err))
			}
			over = true
		case <-time.After(pause):
		}
		for _, c := range append(descendants(p.pid), started{pid: p.pid}) {
			text := shown(c.pid)
			for e := range strings.SplitSeq(given, "\x00") {
				if e != "" {
					text = strings.ReplaceAll(text, e, "")
				}
			}
			if err := find(fmt.Sprintf("the arguments or the environment of process %d", c.pid), text); err != nil {
				return err
			}
		}
	}
	// An error that comes after the values were read.
	_, err = p.fetch(ctx, k.id(), append(slices.Clone(refs), &pluginv1.SecretRef{Name: "unknown", InstanceId: "unknown-instance"})...)
	bad = append(bad, find("the error of Fetch", fmt.Sprint(tell(err), status.Convert(err).Details())))
	p.kill()
	<-p.done
	p.drain()
	bad = append(bad, find("what it prints", p.stderr.String()+p.stdout.String()))
	return errors.Join(bad...)
}

// canaries are values that nobody else may see: those of the secrets, and what is
// sensitive in the configuration.
func (k *Checker) canaries(ctx context.Context, p *process, refs []*pluginv1.SecretRef) ([]string, error) {
	r, err := p.fetch(ctx, k.id(), refs...)
	if err != nil {
		return nil, broken("%s", tell(err))
	}
	var out []string
	for _, s := range r.GetSecrets() {
		out = append(out, string(s.GetValue()))
	}
	for _, s := range k.sections() {
		if v := s.value(); !v.IsNull() {
			out = append(out, sensitive(s.block, v)...)
		}
	}
	return out, nil
}

func undumpable(ctx context.Context, k *Checker) error {
	l := launch{}
	if os.Geteuid() == 0 {
		// Root's processes look the same either way.
		l.uid = 65534
		if err := os.Chmod(k.dir, 0o711); err != nil {
			return err
		}
		defer os.Chmod(k.dir, 0o700) //nolint:errcheck // nobody is in it any more
	}
	p, err := k.start(ctx, l)
	if err != nil {
		return fmt.Errorf("as user %d: %w", l.uid, err)
	}
	defer p.close()
	// The kernel gives the files of a process that is not dumpable to root (proc(5)).
	var st syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d/mem", p.pid), &st); err != nil {
		return os.NewSyscallError("stat", err)
	}
	if st.Uid == p.uid {
		return broken("/proc/%d/mem belongs to user %d", p.pid, st.Uid)
	}
	return nil
}

func revokes(ctx context.Context, k *Checker) error {
	if !k.feature(secrets.FeatureRevoke) {
		return skip("it has no feature %s", secrets.FeatureRevoke)
	}
	revoke := func(p *process, lease string) error {
		return within(ctx, func(ctx context.Context) error {
			_, err := p.secrets.Revoke(ctx, &pluginv1.RevokeRequest{Call: k.callOf(k.id()), LeaseId: lease})
			return err
		})
	}
	leases := []string{noLease}
	for n := range 2 {
		p, err := k.ready(ctx, launch{})
		if err != nil {
			return err
		}
		err = func() error {
			defer p.close()
			if refs := k.refs(); n == 0 && len(refs) > 0 && k.known.fetch == nil {
				r, err := p.fetch(ctx, k.id(), refs...)
				if err != nil {
					return broken("Fetch: %s", tell(err))
				}
				for _, s := range r.GetSecrets() {
					if s.GetLeaseId() != "" {
						leases = append(leases, s.GetLeaseId())
					}
				}
			}
			for _, l := range leases {
				for _, again := range []string{"", ", again"} {
					if err := revoke(p, l); err != nil {
						return broken("Revoke of %q%s, in process %d: %s", l, again, n+1, tell(err))
					}
				}
			}
			return nil
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

func renews(ctx context.Context, k *Checker) error {
	if !k.feature(secrets.FeatureRenew) {
		return skip("it has no feature %s", secrets.FeatureRenew)
	}
	p, err := k.ready(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	err = within(ctx, func(ctx context.Context) error {
		_, err := p.secrets.Renew(ctx, &pluginv1.RenewRequest{Call: k.callOf(k.id()), LeaseId: noLease, Increment: durationpb.New(time.Minute)})
		return err
	})
	if !typed(err) {
		return broken("%s%s", tell(err), p.said())
	}
	return nil
}
