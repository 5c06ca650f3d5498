package script

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// probeVariable names the requirement that a copy of the test binary probes
// as the identity that it was started as.
const probeVariable = "NUCLEUS_SCRIPT_PROBE"

func probeChild(word string) int {
	req, err := requirement(word)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(req.Probe())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// probeAs finds out what the identity has, which is not what the test process has.
func (id *identity) probeAs(word string) testutil.Finding {
	cmd := id.account.Command(id.probe)
	cmd.Env = append(cmd.Env, probeVariable+"="+word)
	out, err := cmd.Output()
	found := testutil.Finding{}
	if err == nil {
		err = json.Unmarshal(out, &found)
	}
	if err != nil {
		return testutil.Finding{State: testutil.Unknown, Why: fmt.Sprintf("probing as %s: %v", id.account.Name, err)}
	}
	return found
}

// own gives a tree to the identity.
func (id *identity) own(ts *testscript.TestScript, root string) {
	if id.wrappers == "" {
		return
	}
	ts.Check(filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, id.account.UID, id.account.GID)
	}))
}
