package gvisor

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/conformance"
	"github.com/nucleus-runtime/nucleus/sdk/plugintest"
)

// pinned is the runsc that make deps-test builds.
func pinned(t *testing.T) string {
	t.Helper()
	path, err := filepath.EvalSymlinks("../../bin/tools/runsc")
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		t.Fatalf("%v: make deps-test builds it", err)
	}
	return path
}

func TestConforms(t *testing.T) {
	binary := plugintest.Build(t, "./cmd/nucleus-plugin-gvisor", "nucleus-plugin-gvisor")
	for name, values := range map[string]plugintest.Values{
		"as it comes":              {},
		"on the namespace's stack": {"network_stack": "host"},
	} {
		t.Run(name, func(t *testing.T) {
			values["runsc"] = pinned(t)
			for _, r := range plugintest.Run(t, plugintest.Config{
				Binary: binary, Cycles: 30,
				Instances: []plugintest.Instance{{Service: "runtime", ID: "box", Config: values}},
			}) {
				if r.Outcome == conformance.NotApplicable && (r.Rule != "base/other-user" || os.Geteuid() == 0) {
					t.Error(r)
				}
			}
		})
	}
}
