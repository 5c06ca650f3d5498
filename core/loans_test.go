package core_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
)

// lender lends one value, and counts.
type lender struct {
	t       *testing.T
	endErr  error
	lose    error // told at once
	mu      sync.Mutex
	kept    int
	stopped int // the keeping
	ended   int
	closed  int
}

func (l *lender) Fetch(ctx context.Context, r secret.Request) (secret.Fetched, error) {
	got, err := given(l.t, map[string]string{"a": "value"}).Fetch(ctx, r)
	got.Loans = []secret.Loan{l}
	return got, err
}

func (l *lender) count(n *int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*n++
}

func (l *lender) Record() secret.LoanRecord {
	return secret.LoanRecord{Provider: "bank", Leases: []secret.LeaseRecord{{Name: "a", ID: "lease-1"}}}
}

func (l *lender) Keep(ctx context.Context, lost func([]string, error)) {
	l.count(&l.kept)
	if l.lose != nil {
		lost([]string{"a"}, l.lose)
	}
	<-ctx.Done()
	l.count(&l.stopped)
}

func (l *lender) End(context.Context) error {
	l.count(&l.ended)
	return l.endErr
}

func (l *lender) Close() { l.count(&l.closed) }

// What was lent is kept while the sandbox lives, given back when it ends, and given
// back as well if it never ran.
func TestLoansAreKeptAndGivenBack(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	for name, x := range map[string]struct {
		script string
		lines  []string
		code   int
	}{
		"a run":           {"cat /run/secrets/a; exit 3", nil, 3},
		"no command":      {"", []string{`hook "createRuntime" {` + "\n" + `command = ["/bin/false"]` + "\n}"}, 125},
		"no file system":  {"", []string{`volume "x" {` + "\n" + `source = "/nowhere-at-all"` + "\n" + `target = "/data"` + "\n}"}, 125},
		"a value missing": {"", []string{`secret "b" {` + "\n" + `provider = "bank"` + "\n}"}, 125},
	} {
		l := &lender{t: t}
		rt := withSecrets(t, l)
		lines := append([]string{"secret \"a\" {\n provider = \"bank\"\n}"}, x.lines...)
		res, _, err := runOf(t, rt, planFor(t, rt, secretJob(t, x.script, lines...)))
		if res.ExitCode != x.code || (err == nil) != (x.code != 125) {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
		l.mu.Lock()
		if l.ended != 1 || l.closed != 1 {
			t.Errorf("%s: given back %d times, closed %d times", name, l.ended, l.closed)
		}
		l.mu.Unlock()
		noneLeft(t)
	}
}

// A loan that is lost is told, and ends nothing.
func TestALostLoanIsTold(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	var events bytes.Buffer
	l := &lender{t: t, lose: errors.New("the bank is closed")}
	rt := withSecrets(t, l, &events)
	// Until the event is there.
	s, err := rt.Create(t.Context(), planFor(t, rt, secretJob(t, "exit 0", "secret \"a\" {\n provider = \"bank\"\n}")), core.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for l.keeping() == 0 {
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if res, err := s.Wait(); err != nil || res.ExitCode != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	if !strings.Contains(events.String(), `"type":"secrets.lost","error":"the bank is closed","detail":{"secrets":["a"]}`) {
		t.Errorf("events\n%s", events.String())
	}
}

// What was lent is written down and kept as soon as it is there, and not first when slow
// hooks have come to their end, which may change the plan meanwhile.
func TestALoanIsKeptWhileHooksRun(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	l := &lender{t: t}
	kept := false
	f := &fakePlugin{at: hooks.At(hooks.PreFS), answer: func(ctx context.Context, _ hooks.Event) (hooks.Answer, error) {
		for end := time.Now().Add(testutil.Patient(2 * time.Second)); !kept && time.Now().Before(end); time.Sleep(time.Millisecond) {
			kept = l.keeping() > 0
		}
		return hooks.Answer{Mutation: hooks.Mutation{AddEnv: map[string]string{"A": "b"}}}, nil
	}}
	o := options
	o.Secrets, o.Hooks = l, plugins{"a": f}
	rt, err := core.New(o)
	if err != nil {
		t.Fatal(err)
	}
	res, _, err := runOf(t, rt, planFor(t, rt, secretJob(t, `test "$A" = b`, "secret \"a\" {\n provider = \"bank\"\n}", "plugin_hook \"a\" {\ntimeout = \"30s\"\n}")))
	if err != nil || res.ExitCode != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	if !kept {
		t.Error("a loan is not kept before the hooks are over")
	}
	noneLeft(t)
}

func (l *lender) keeping() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kept
}

// What cannot be given back is owed: gc gives it back, by what the journal says.
func TestALoanThatCannotBeGivenBackIsOwed(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	o := options
	o.StateRoot = filepath.Join(t.TempDir(), "state")
	l := &lender{t: t, endErr: errors.New("the bank is closed")}
	o.Secrets = l
	rt, err := core.New(o)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = runOf(t, rt, planFor(t, rt, secretJob(t, "exit 0", "secret \"a\" {\n provider = \"bank\"\n}")))
	if err == nil || !strings.Contains(err.Error(), "undoing secret_leases: the bank is closed") {
		t.Fatalf("error %v", err)
	}
	// Without anybody who could it stays owed; with one who cannot, too.
	for _, from := range []secret.Source{nil, given(t, nil), &collector{err: errors.New("still closed")}} {
		o.Secrets = from
		rt, err := core.New(o)
		if err != nil {
			t.Fatal(err)
		}
		if done, err := rt.Collect(t.Context()); err == nil || len(done.Sandboxes) > 0 {
			t.Errorf("%T: %v, %v", from, done, err)
		} else if c, ok := from.(*collector); ok != !errors.Is(err, core.ErrNoPlugins) || ok && c.record.Provider != "bank" {
			t.Errorf("%T: %v", from, err)
		}
	}
	c := &collector{}
	o.Secrets = c
	if rt, err = core.New(o); err != nil {
		t.Fatal(err)
	}
	if done, err := rt.Collect(t.Context()); err != nil || len(done.Sandboxes) != 1 || len(c.record.Leases) != 1 || c.record.Leases[0].ID != "lease-1" {
		t.Errorf("%v, %v, record %+v", done, err, c.record)
	}
}

// collector ends loans of others.
type collector struct {
	err    error
	record secret.LoanRecord
}

func (*collector) Fetch(context.Context, secret.Request) (secret.Fetched, error) {
	return secret.Fetched{}, errors.New("nothing to give")
}

func (c *collector) EndLoan(_ context.Context, _ string, r secret.LoanRecord) error {
	c.record = r
	return c.err
}
