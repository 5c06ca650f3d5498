// Package conformance is the contract of plugins as a program: a named rule for each
// promise, which runs the real plugin as a process, in whatever language it is
// written, and speaks to it as a host does. It knows a plugin by what it answers and
// by what the kernel shows of it, never by its source.
//
// Package plugintest is the same for Go tests, and `nucleus plugin check` for a
// command line.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/conformance/internal/lab"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// Config is a plugin and what it needs to work.
type Config struct {
	// Binary is the plugin's file.
	Binary string
	// Env is given beside what a host gives: env of the plugin's block.
	Env []string
	// Plugin is the operator's configuration; nil for none.
	Plugin Body
	// Instances are blocks of a job that work. Rules that need one are not applicable
	// without.
	Instances []Instance
	// Suites are the services whose rules are run; nil for all that the plugin serves.
	// The rules of every plugin, suite "base", are always run.
	Suites []string
	// Cycles is how often calls are made to see whether the process grows; 0 is 300.
	Cycles int
	// Tell gets each result as soon as it is there; nil for nobody.
	Tell func(Result)
}

// Instance is a block of a job that names the plugin.
type Instance struct {
	Service manifest.Service
	ID      string // the label of the block
	Config  Body
	// Missing is for a secret that is configured well and does not exist.
	Missing bool
}

// instance is the id that a host gives it: one process may serve several sandboxes,
// whose blocks have the same labels.
func (i Instance) instance() string { return sandbox + "/" + i.ID }

// sandbox is whom all calls are for.
const sandbox = "conformance"

// Outcome of a rule.
type Outcome string

// The outcomes.
const (
	Pass          Outcome = "ok"
	Fail          Outcome = "fail"
	NotApplicable Outcome = "n/a"
)

// Result is what a rule found.
type Result struct {
	Rule    string  `json:"rule"` // "base/handshake"
	Outcome Outcome `json:"outcome"`
	Want    string  `json:"want"`             // what the rule expects
	Got     string  `json:"got,omitempty"`    // what came; of Fail
	Remedy  string  `json:"remedy,omitempty"` // of Fail
	Reason  string  `json:"reason,omitempty"` // of NotApplicable
}

// String is the result as people read it, on one line unless it is bad.
func (r Result) String() string {
	switch r.Outcome {
	case Fail:
		return fmt.Sprintf("%s: expected: %s\n  got: %s\n  remedy: %s", r.Rule, r.Want, strings.ReplaceAll(r.Got, "\n", "\n       "), r.Remedy)
	case NotApplicable:
		return fmt.Sprintf("%s: not applicable: %s", r.Rule, r.Reason)
	default:
		return r.Rule + ": " + r.Want
	}
}

// Rule is one promise of the contract.
type Rule struct {
	ID     string // suite/name
	Want   string
	Remedy string

	needs need
	run   func(context.Context, *Checker) error
}

// Suite is the part of the ID before the slash.
func (r Rule) Suite() string { s, _, _ := strings.Cut(r.ID, "/"); return s }

// suite is the rules of a service, and the calls that the rules of every plugin make
// of it. A new service is a file with its suite, and a line in suites.
type suite struct {
	name    string
	service manifest.Service // "" for every plugin
	rules   []Rule
	verbs   func(*Checker) []verb
	// learn finds out what the verbs need to know, from a process that has its
	// configuration; it may be nil.
	learn func(context.Context, *Checker, *process)
}

func suites() []suite {
	return []suite{base(), secretsSuite(), hooksSuite(), networkSuite(), runtimeSuite()}
}

// Suites are the names that Config.Suites takes.
func Suites() []string {
	var out []string
	for _, s := range suites() {
		out = append(out, s.name)
	}
	return out
}

// Checker checks one plugin. Rules may run in any order, one at a time.
type Checker struct {
	conf   Config
	dir    string // all that is made is in here
	nextID atomic.Int64

	known *facts

	// Of a plugin that serves networks.
	network bool
	home    *lab.Lab // the host for the rules of every plugin; nil without the right to make one
	begun   begun
	spent   []interface{ Close() } // namespaces that no rule needs any more
}

// New makes a Checker. It starts nothing.
func New(c Config) (*Checker, error) {
	path, err := filepath.Abs(c.Binary)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return nil, fmt.Errorf("%s is no executable file", path)
	}
	c.Binary = path
	if c.Cycles == 0 {
		c.Cycles = 300
	}
	for _, s := range c.Suites {
		if !slices.Contains(Suites(), s) {
			return nil, fmt.Errorf("unknown suite %q: there are %s", s, strings.Join(Suites(), ", "))
		}
	}
	for _, i := range c.Instances {
		if i.ID == "" || !slices.Contains(Suites(), string(i.Service)) || i.Service == "base" {
			return nil, fmt.Errorf("an instance has the name of its service and a label, not %q %q", i.Service, i.ID)
		}
	}
	dir, err := shortDir()
	if err != nil {
		return nil, err
	}
	return &Checker{conf: c, dir: dir}, nil
}

// shortDir is for sockets, whose paths are short: TMPDIR may be longer.
func shortDir() (string, error) {
	in := os.TempDir()
	if len(in) > 20 {
		in = "/tmp"
	}
	return os.MkdirTemp(in, "plugincheck")
}

// Close removes what the Checker has made. Its plugins have ended with their rules.
func (k *Checker) Close() error {
	k.cleanUp()
	if k.home != nil {
		k.home.Close()
	}
	for _, x := range k.spent {
		x.Close()
	}
	return os.RemoveAll(k.dir)
}

// Rules are those of the chosen suites. To choose, the plugin may have to be asked
// what it serves.
func (k *Checker) Rules(ctx context.Context) []Rule {
	var out []Rule
	for _, s := range suites() {
		wanted := slices.Contains(k.conf.Suites, s.name)
		if k.conf.Suites == nil && s.service != "" {
			f := k.learn(ctx)
			wanted = f.start == nil && f.describe == nil && k.serves(s.service)
		}
		if wanted || s.service == "" {
			out = append(out, s.rules...)
		}
	}
	return out
}

// fault is a rule that was broken. The remedy is the rule's unless it has one.
type fault struct{ got, remedy string }

func (f *fault) Error() string { return f.got }

func broken(format string, args ...any) error { return &fault{got: fmt.Sprintf(format, args...)} }

type notApplicable struct{ reason string }

func (n *notApplicable) Error() string { return n.reason }

func skip(format string, args ...any) error { return &notApplicable{fmt.Sprintf(format, args...)} }

// Check runs one rule.
func (k *Checker) Check(ctx context.Context, r Rule) Result {
	res := Result{Rule: r.ID, Want: r.Want}
	err := k.meets(ctx, r)
	if err == nil {
		err = r.run(ctx, k)
	}
	var na *notApplicable
	var f *fault
	switch {
	case err == nil:
		res.Outcome = Pass
	case ctx.Err() != nil:
		res.Outcome, res.Reason = NotApplicable, "it was interrupted"
	case errors.As(err, &na):
		res.Outcome, res.Reason = NotApplicable, na.reason
	default:
		res.Outcome, res.Got, res.Remedy = Fail, err.Error(), r.Remedy
		if errors.As(err, &f) && f.remedy != "" {
			res.Remedy = f.remedy
		}
	}
	if k.conf.Tell != nil {
		k.conf.Tell(res)
	}
	return res
}

// Check runs all rules. The error is that nothing could be run.
func Check(ctx context.Context, c Config) ([]Result, error) {
	k, err := New(c)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	var out []Result
	for _, r := range k.Rules(ctx) {
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		out = append(out, k.Check(ctx, r))
	}
	return out, nil
}

// Limits are generous: a rule is about whether a plugin does something, and a busy
// machine is no defect of it.
const (
	startLimit = 20 * time.Second
	callLimit  = 20 * time.Second
	// endLimit is less than the time for which the SDK lets a call that hangs hold up
	// the end of a plugin.
	endLimit = 4 * time.Second
	// deathLimit of a plugin whose host is gone. The contract says one second.
	deathLimit = 5 * time.Second
)
