package lifecycle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
)

// secretValues are the values of a plan's secrets by name, from when they are
// fetched to when init has them.
type secretValues map[string]*secret.Value

func (v secretValues) close() {
	for _, x := range v {
		if x != nil {
			x.Close()
		}
	}
}

// fetching is a fetch of secrets, which goes on while the sandbox is built.
type fetching struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when err is there
	err    error
}

// beginFetch begins it. What happens beside it is ended if it fails.
func (s *Sandbox) beginFetch(ctx context.Context, failed func()) {
	if len(s.plan.Secrets) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.StartTimeout)
	f := &fetching{cancel: cancel, done: make(chan struct{})}
	s.fetching = f
	p := s.plan // hooks may put a narrower one in its place meanwhile, with the same secrets
	go func() {
		f.err = s.fetchSecrets(ctx, p)
		// At once: hooks may take long, and what is not written down nobody gives back.
		f.err = cmp.Or(f.err, s.keepLoans())
		close(f.done)
		if f.err != nil {
			failed()
		}
	}()
}

// fetchFailed gives the error of a fetch that has failed already.
func (s *Sandbox) fetchFailed() error {
	if s.fetching == nil {
		return nil
	}
	select {
	case <-s.fetching.done:
		return s.fetching.err
	default:
		return nil
	}
}

// endFetch waits for the fetch.
func (s *Sandbox) endFetch() error {
	f := s.fetching
	if f == nil {
		return nil
	}
	<-f.done
	f.cancel()
	s.fetching = nil
	return f.err
}

// fetchSecrets asks for all values of a plan at once, and checks what came.
func (s *Sandbox) fetchSecrets(ctx context.Context, p *plan.Plan) error {
	if s.cfg.Secrets == nil {
		return secretFailed(p, &secret.Error{Name: p.Secrets[0].Name, Err: errors.New("there is nobody to ask for its value")})
	}
	got, err := s.cfg.Secrets.Fetch(ctx, secretRequest(s.dir.ID, p))
	s.values, s.loans = got.Values, got.Loans
	if err == nil {
		err = s.checkSecrets(p)
	} else if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no value within %s: %w", s.cfg.StartTimeout, err)
	}
	if err != nil {
		return secretFailed(p, err)
	}
	return nil
}

// secretRequest groups the secrets by their providers, in the order of the job.
func secretRequest(sandbox string, p *plan.Plan) secret.Request {
	r := secret.Request{Sandbox: sandbox}
	for _, x := range p.Secrets {
		i := slices.IndexFunc(r.Groups, func(g secret.Group) bool { return g.Provider == x.Provider })
		if i < 0 {
			i = len(r.Groups)
			r.Groups = append(r.Groups, secret.Group{Provider: x.Provider})
		}
		r.Groups[i].Refs = append(r.Groups[i].Refs, secret.Ref{Name: x.Name, Config: x.Config, Eval: x.Eval, Where: p.Where(x.Origin)})
	}
	return r
}

// checkSecrets refuses what cannot be what the job means.
func (s *Sandbox) checkSecrets(p *plan.Plan) error {
	total := 0
	for _, x := range p.Secrets {
		v := s.values[x.Name]
		err := checkSecret(x, v)
		if err == nil {
			if total += v.Size(); total > secret.MaxTotal {
				err = fmt.Errorf("with its value the secrets of the job are larger than %d bytes together", secret.MaxTotal)
			}
		}
		if err != nil {
			return &secret.Error{Name: x.Name, Err: err}
		}
	}
	if n := len(s.values) - len(p.Secrets); n > 0 {
		return &secret.Error{Name: p.Secrets[0].Name, Err: fmt.Errorf("%d values came that the job does not ask for", n)}
	}
	return nil
}

func checkSecret(x plan.Secret, v *secret.Value) error {
	switch {
	case v == nil:
		return fmt.Errorf("provider %q gave no value", x.Provider)
	case x.Env == "":
		return nil
	case len(x.Env)+len("=")+v.Size()+1 > secret.MaxEnv:
		return fmt.Errorf("the value has %d bytes; a variable and its name have at most %d: write target instead of env", v.Size(), secret.MaxEnv)
	}
	nul, err := v.HasNUL()
	if err == nil && nul {
		err = errors.New("the value has a NUL byte, which no variable can hold: write target instead of env")
	}
	return err
}

// sourceError is what a source says. A store that is far away may have had a word
// in it, so it drives no terminal.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return audit.Clean(e.err.Error()) }
func (e *sourceError) Unwrap() error { return e.err }

// secretFailed gives a failure its place in the job: that of the secret, or the
// first of the provider, or the first of all.
func secretFailed(p *plan.Plan, err error) error {
	e := &PhaseError{Phase: "secrets", Origin: p.Secrets[0].Origin, Err: &sourceError{err}}
	var se *secret.Error
	if !errors.As(err, &se) {
		return e
	}
	e.Hint = audit.Clean(se.Hint)
	for _, x := range p.Secrets {
		if x.Name == se.Name || se.Name == "" && x.Provider == se.Provider {
			e.Origin = x.Origin
			break
		}
	}
	return e
}

// loans are what providers have lent a sandbox.
type loans []secret.Loan

// keepLoans writes down what was lent, and sees to it that it stays so. Whoever
// undoes the sandbox gives it back.
func (s *Sandbox) keepLoans() error {
	failpoint.Hit("loans unrecorded")
	var rs []secret.LoanRecord
	for _, l := range s.loans {
		if r := l.Record(); len(r.Leases) > 0 {
			rs = append(rs, r)
		}
	}
	if len(rs) == 0 {
		return nil
	}
	if err := s.dir.Journal.Intent(stepLoans, rs); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), undoBudget)
		defer cancel()
		return errors.Join(phase("secrets", err), s.loans.end(ctx))
	}
	var ctx context.Context
	ctx, s.unkeep = context.WithCancel(context.Background())
	for _, l := range s.loans {
		go l.Keep(ctx, func(names []string, err error) {
			s.log.Emit(audit.LoanLost, &sourceError{err}, map[string]any{"secrets": names})
		})
	}
	return nil
}

// end gives back what this process was lent.
func (l loans) end(ctx context.Context) error {
	errs := make([]error, len(l))
	var all sync.WaitGroup
	for i, x := range l {
		all.Go(func() { errs[i] = x.End(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func (l loans) close() {
	for _, x := range l {
		x.Close()
	}
}

// endLoans gives back what a sandbox was lent.
func (u *undoing) endLoans(ctx context.Context, data json.RawMessage) error {
	if u.live != nil {
		return u.loans.end(ctx)
	}
	var rs []secret.LoanRecord
	if err := json.Unmarshal(data, &rs); err != nil {
		return err
	}
	lender, ok := u.secrets.(secret.Lender)
	if !ok {
		return ErrNoPlugins
	}
	errs := make([]error, len(rs))
	var all sync.WaitGroup
	for i, r := range rs {
		all.Go(func() {
			if err := lender.EndLoan(ctx, u.sandbox, r); err != nil {
				errs[i] = &sourceError{err}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// expectSecrets tells the setup where init is going to have the descriptors of the
// values, from place at on, and gives their number. A runtime plugin's config.json is the
// last: it may have values in it.
func (s *Sandbox) expectSecrets(at int) int {
	first := at
	for _, x := range s.plan.Secrets {
		switch {
		case x.Env != "" && s.plan.Runtime != nil:
			continue // it is in the config.json
		case x.Env != "":
			s.process.SecretEnv = append(s.process.SecretEnv, initproto.SecretVar{Name: x.Env, FD: int32(at)})
		default:
			s.prep.Ops[s.prep.SecretOps[x.Name]].FD = int32(at)
		}
		at++
	}
	if s.foreign.answer != nil {
		s.prep.Ops[s.prep.ConfigOp].FD = int32(at)
		at++
	}
	return at - first
}

// sendSecrets sends what expectSecrets has told of, once it is there. Init has come as
// far as it can without.
func (s *Sandbox) sendSecrets(context.Context) error {
	if err := s.endFetch(); err != nil {
		return err
	}
	defer func() {
		s.values.close()
		s.values = nil
	}()
	var fds []int
	for _, x := range s.plan.Secrets {
		if x.Env == "" || s.plan.Runtime == nil {
			fds = append(fds, s.values[x.Name].FD())
		}
	}
	if a := s.foreign.answer; a != nil {
		config, err := bundleConfig(a.Spec, s.secretVars())
		if err != nil {
			return err
		}
		defer config.Close()
		fds = append(fds, config.FD())
	}
	if len(fds) == 0 {
		return nil
	}
	if err := s.conn.Send(initproto.Encode(initproto.KindSecrets, nil), fds...); err != nil {
		return s.broken("fs", err)
	}
	return nil
}

func (s *Sandbox) secretsPlaced() {
	if len(s.plan.Secrets) == 0 {
		return
	}
	names := make([]string, 0, len(s.plan.Secrets))
	for _, x := range s.plan.Secrets {
		names = append(names, x.Name)
	}
	s.log.Emit(audit.SecretsPlaced, nil, map[string]any{"secrets": names})
}
