package pluginhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// bank is a provider that lends, with a ledger that outlives its process. Ledger and
// time come with the configuration of the secret.
type bank struct {
	mu  sync.Mutex
	has map[string]bankConfig
}

type bankConfig struct {
	Ledger string `hcl:"ledger" desc:"A directory."`
	Time   string `hcl:"time" desc:"How long a lease lasts." format:"duration"`
	Pin    string `hcl:"pin,optional" desc:"Nobody's business." sensitive:"true"`
	Fault  string `hcl:"fault,optional" desc:"What goes wrong."`
}

func (b *bank) Configure(_ context.Context, in config.Instance, c bankConfig) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.has == nil {
		b.has = map[string]bankConfig{}
	}
	b.has[in.ID] = c
	return nil
}

func (b *bank) of(id string) (bankConfig, time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d, _ := time.ParseDuration(b.has[id].Time)
	return b.has[id], d
}

func (c bankConfig) note(what string) error {
	f, err := os.OpenFile(filepath.Join(c.Ledger, "ledger"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o666)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s (%d, %q)\n", what, os.Getpid(), c.Pin)
	return errors.Join(err, f.Close())
}

func (b *bank) Fetch(_ context.Context, _ secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
	var out []secrets.Secret
	for _, r := range refs {
		c, d := b.of(r.InstanceID)
		s := secrets.Secret{Name: r.Name, Value: []byte("value")}
		if c.Fault == "long" {
			s.Lease = secrets.Lease{ID: strings.Repeat("l", 1<<20), Duration: time.Hour}
		}
		if d > 0 && c.Fault != "long" {
			s.Lease = secrets.Lease{ID: "lease-" + r.Name, Duration: d, Renewable: c.Fault != "fixed"}
		}
		out = append(out, s)
		if err := c.note("lent " + r.Name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (b *bank) Renew(_ context.Context, call secrets.Call, id string, _ time.Duration) (secrets.Lease, error) {
	c, d := b.of(call.InstanceID)
	if err := c.note("renewed " + id); err != nil {
		return secrets.Lease{}, err
	}
	switch c.Fault {
	case "crash":
		crash()
	case "unknown":
		return secrets.Lease{}, errs.NotFoundf("there is no lease %s", id)
	case "down":
		return secrets.Lease{}, errs.Retry(errors.New("closed for lunch"), time.Second)
	}
	return secrets.Lease{ID: id, Duration: d, Renewable: true}, nil
}

func (b *bank) Revoke(_ context.Context, call secrets.Call, id string) error {
	c, _ := b.of(call.InstanceID)
	if c.Fault == "stuck" {
		return errors.New("the till is stuck")
	}
	return c.note("ended " + id)
}

func bankBehaviours() map[string]func(*fake) {
	serve := func(f *fake, leave func(*bank) func(context.Context) error) {
		b := &bank{}
		plugin.Serve(plugin.Plugin{Name: f.name, Version: "1", Secrets: b, SecretsConfig: config.To(b), Close: leave(b)})
	}
	return map[string]func(*fake){
		"bank": func(f *fake) { serve(f, func(*bank) func(context.Context) error { return nil }) },
		// These lend nothing, for the time of their leases is none.
		"closes": func(f *fake) {
			serve(f, func(b *bank) func(context.Context) error {
				return func(context.Context) error {
					c, _ := b.of("id/a")
					return c.note("logged out of closes")
				}
			})
		},
		"closes-crash": func(f *fake) {
			serve(f, func(*bank) func(context.Context) error {
				return func(context.Context) error {
					crash()
					return nil
				}
			})
		},
	}
}

// ledger is a directory that the bank may write to, and block what its operator says.
func ledger(t *testing.T) (dir, block string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ledger")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir, fmt.Sprintf("writable = [%q]", dir)
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "ledger"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
}

func count(lines []string, what string) int {
	n := 0
	for _, l := range lines {
		if strings.HasPrefix(l, what) {
			n++
		}
	}
	return n
}

// borrow fetches one secret of the bank.
func (r *rig) borrow(t *testing.T, dir, length, fault string) secret.Loan {
	t.Helper()
	w := want(t, "bank", fmt.Sprintf("ledger = %q\ntime = %q\nfault = %q\npin = \"canary\"\n", dir, length, fault))
	got, err := (&Secrets{Host: r.Host}).Fetch(t.Context(), secret.Request{Sandbox: "id", Groups: []secret.Group{{Provider: "bank", Refs: []secret.Ref{{Name: "a", Config: w.Config}}}}})
	if err != nil || len(got.Values) != 1 || len(got.Loans) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, v := range got.Values {
		v.Close()
	}
	t.Cleanup(got.Loans[0].Close)
	return got.Loans[0]
}

// keep keeps a loan until the condition holds, and gives what was lost.
func keep(t *testing.T, l secret.Loan, enough func(lost []error) bool) []error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var lost []error
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Keep(ctx, func(names []string, err error) {
			mu.Lock()
			defer mu.Unlock()
			lost = append(lost, fmt.Errorf("%v: %w", names, err))
		})
	}()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		mu.Lock()
		is := enough(lost)
		mu.Unlock()
		if is {
			break
		}
	}
	cancel()
	<-done
	return lost
}

func TestALoanIsRenewedAndGivenBack(t *testing.T) {
	dir, block := ledger(t)
	r := newRig(t, map[string]string{"bank": block})
	l := r.borrow(t, dir, "1s", "")
	if rec := l.Record(); rec.Provider != "bank" || len(rec.Leases) != 1 || rec.Leases[0].ID != "lease-a" || bytes.Contains(rec.Leases[0].Config, []byte("canary")) {
		t.Errorf("record %+v", rec)
	}
	lost := keep(t, l, func([]error) bool { return count(entries(t, dir), "renewed lease-a") >= 3 })
	for range 2 { // the second time there is nothing left to give back
		if err := l.End(t.Context()); err != nil {
			t.Error(err)
		}
	}
	l.Close()
	got := entries(t, dir)
	if len(lost) > 0 || count(got, "ended lease-a") != 1 {
		t.Errorf("lost %v, ledger %q", lost, got)
	}
	// All of it by one process, which its own configuration reached.
	pid, _, _ := strings.Cut(got[0][strings.Index(got[0], "("):], ",")
	for _, line := range got {
		if !strings.Contains(line, pid) || !strings.Contains(line, `"canary"`) {
			t.Errorf("ledger %q", got)
			break
		}
	}
}

func TestALoanThatIsLost(t *testing.T) {
	for fault, want := range map[string]string{
		"unknown": `[a]: renewing the lease of secret "a": plugin "bank": renewing a lease: there is no lease lease-a`,
		"fixed":   `[a]: the lease of secret "a" has ended: it cannot be renewed`,
		"down":    `[a]: renewing the lease of secret "a": plugin "bank": renewing a lease: closed for lunch`,
		"crash":   `[a]: renewing the lease of secret "a": plugin "bank": renewing a lease: it ended (exit status 9)`,
	} {
		dir, block := ledger(t)
		r := newRig(t, map[string]string{"bank": block})
		l := r.borrow(t, dir, "2s", fault)
		lost := keep(t, l, func(lost []error) bool { return len(lost) > 0 })
		if len(lost) != 1 || !strings.HasPrefix(lost[0].Error(), want) {
			t.Errorf("%s: lost %v", fault, lost)
		}
		// What waits for better times waits until the lease has ended.
		if n := count(entries(t, dir), "renewed"); (fault == "down" || fault == "crash") && n < 2 || fault == "unknown" && n != 1 || fault == "fixed" && n != 0 {
			t.Errorf("%s: %d tries", fault, n)
		}
		if err := l.End(t.Context()); err != nil {
			t.Errorf("%s: %v", fault, err)
		}
		l.Close()
	}
}

// A plugin that died is started anew to give back what it lent, by this host and by
// another.
func TestALoanIsGivenBackByAnotherProcess(t *testing.T) {
	dir, block := ledger(t)
	r := newRig(t, map[string]string{"bank": block})
	l := r.borrow(t, dir, "1h", "")
	p := l.(*loan).p
	proc, err := os.FindProcess(p.Pid())
	if err == nil {
		err = proc.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
	<-p.Gone()
	if err := l.End(t.Context()); err != nil {
		t.Error(err)
	}
	l.Close()
	if err := (&Secrets{Host: r.Host}).EndLoan(t.Context(), "id", l.Record()); err != nil {
		t.Error(err)
	}
	got := entries(t, dir)
	if count(got, "ended lease-a") != 2 || !strings.Contains(got[len(got)-1], `""`) {
		t.Errorf("ledger %q", got)
	}
}

// What is not given back is an error, and is tried again the next time.
func TestALoanThatCannotBeGivenBack(t *testing.T) {
	dir, block := ledger(t)
	r := newRig(t, map[string]string{"bank": block})
	l := r.borrow(t, dir, "1h", "stuck")
	for range 2 {
		if err := l.End(t.Context()); err == nil || !strings.Contains(err.Error(), `secrets provider "bank": plugin "bank": giving back the lease of secret a: the till is stuck`) {
			t.Errorf("error %v", err)
		}
	}
	l.Close()
	if err := l.End(t.Context()); err == nil {
		t.Error("a closed loan was given back")
	}
	if err := (&Secrets{Host: r.Host}).EndLoan(t.Context(), "id", l.Record()); err == nil || !strings.Contains(err.Error(), "the till is stuck") {
		t.Errorf("error %v", err)
	}
	if err := (&Secrets{Host: r.Host}).EndLoan(t.Context(), "id", secret.LoanRecord{Provider: "nowhere"}); err == nil || !strings.Contains(err.Error(), "no nucleus-plugin-nowhere") {
		t.Errorf("error %v", err)
	}
}

// A plugin that has something to undo for itself is told of its end, beside the
// start; whoever closes the loan waits for it.
func TestAPluginThatClosesIsTold(t *testing.T) {
	for name, told := range map[string]int{"closes": 1, "closes-crash": 0} {
		dir, block := ledger(t)
		r := newRig(t, map[string]string{name: block})
		w := want(t, name, fmt.Sprintf("ledger = %q\ntime = \"0s\"\n", dir))
		got, err := (&Secrets{Host: r.Host}).Fetch(t.Context(), secret.Request{Sandbox: "id", Groups: []secret.Group{{Provider: name, Refs: []secret.Ref{{Name: "a", Config: w.Config}}}}})
		if err != nil || len(got.Loans) != 1 || len(got.Loans[0].Record().Leases) != 0 {
			t.Fatalf("%s: %+v, %v", name, got, err)
		}
		for _, v := range got.Values {
			v.Close()
		}
		if err := got.Loans[0].End(t.Context()); err != nil {
			t.Error(err)
		}
		got.Loans[0].Close()
		if n := count(entries(t, dir), "logged out of "+name); n != told {
			t.Errorf("%s: told %d times", name, n)
		}
	}
}

// What is too long to be written down is refused: nobody could give it back.
func TestALeaseThatIsTooLong(t *testing.T) {
	dir, block := ledger(t)
	r := newRig(t, map[string]string{"bank": block})
	w := want(t, "bank", fmt.Sprintf("ledger = %q\ntime = \"1h\"\nfault = \"long\"\n", dir))
	got, err := (&Secrets{Host: r.Host}).Fetch(t.Context(), secret.Request{Sandbox: "id", Groups: []secret.Group{{Provider: "bank", Refs: []secret.Ref{{Name: "a", Config: w.Config}}}}})
	if err == nil || !strings.Contains(err.Error(), `secret "a": its lease, or its configuration, is too long to be written down: 1048576 and `) || len(got.Values)+len(got.Loans) > 0 {
		t.Errorf("%+v, %v", got, err)
	}
}
