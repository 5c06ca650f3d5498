// Package plugintest checks a plugin against the contract, in a Go test: each rule of
// package conformance is a subtest.
//
//	func TestConformance(t *testing.T) {
//		plugintest.Run(t, plugintest.Config{
//			Binary:    plugintest.Build(t, ".", "nucleus-plugin-dir"),
//			Plugin:    plugintest.Values{"root": dir},
//			Instances: []plugintest.Instance{{Service: "secrets", ID: "token", Config: plugintest.Values{"name": "token"}}},
//		})
//	}
package plugintest

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/conformance"
)

type (
	// Config is a plugin and what it needs to work.
	Config = conformance.Config
	// Instance is a block of a job that names the plugin.
	Instance = conformance.Instance
	// Values are a config block's attributes and blocks.
	Values = conformance.Values
	// Result is what a rule found.
	Result = conformance.Result
)

// Run runs the rules that a configuration asks for. A rule that does not apply is a
// test that is skipped, with its reason.
func Run(t *testing.T, c Config) []Result {
	t.Helper()
	k, err := conformance.New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}()
	var out []Result
	for _, r := range k.Rules(t.Context()) {
		t.Run(r.ID, func(t *testing.T) {
			res := k.Check(t.Context(), r)
			out = append(out, res)
			switch res.Outcome {
			case conformance.Fail:
				t.Error(res)
			case conformance.NotApplicable:
				t.Skip(res.Reason) //nolint:forbidigo // a rule says by itself when it does not apply
			}
		})
	}
	return out
}

// Build builds the plugin of a Go package and gives the path of its program, whose
// name tells a plugin its own: nucleus-plugin-NAME.
func Build(t *testing.T, pkg, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, pkg) //nolint:forbidigo // it builds what it tests
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", pkg, err, out)
	}
	return path
}
