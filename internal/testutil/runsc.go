package testutil

import (
	"os"
	"path/filepath"
)

// Runsc is gVisor's program, which `make deps-test` builds beside the binaries.
var Runsc = Requirement{Name: "runsc", Probe: func() Finding {
	dir, err := BinaryDir()
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "tools", "runsc"))
	}
	if err != nil {
		return Finding{State: Missing, Why: err.Error()}
	}
	return Finding{State: Available}
}}
