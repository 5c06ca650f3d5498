// Package runtime is what a runtime plugin implements: it says how sandboxes are
// run in the place of the native runtime. It is plain Go: how it travels to the
// core is the business of sdk/plugin.
//
// A plugin starts nothing and holds nothing. It names a program that runs an OCI
// bundle (gVisor's runsc, crun, runc), and how to call it. The sandbox's own init
// executes that program in namespaces and a control group that the core has made,
// with no descriptor and no variable of the host: what becomes of the sandbox is
// then known as it is with the native runtime, whatever becomes of the plugin.
package runtime

import "context"

// Version of the contract between core and plugin.
const Version = "1.0"

// Runtime says how a sandbox is run.
type Runtime interface {
	// Prepare is called once for each start of a sandbox, before anything of it runs,
	// and for a plan of one that may never start. It must leave nothing behind: there is no call that undoes it. What cannot be
	// had of r.Spec fails with errs.Preconditionf, or with a configuration error.
	Prepare(ctx context.Context, r *PrepareRequest) (*Prepared, error)
}
