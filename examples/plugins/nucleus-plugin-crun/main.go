// Command nucleus-plugin-crun is a runtime plugin: sandboxes are run by crun, which is
// a container runtime as the native one is, and so no stronger. It shows what a runtime
// plugin has to say, and how little that is.
package main

import (
	"context"
	"encoding/json"
	"os"
	"sync"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// version is set by the linker.
var version = "dev"

const usual = "/usr/bin/crun"

// job is the config block of a job's runtime block.
type job struct {
	Crun string `hcl:"crun,optional" desc:"The crun to run." format:"abs_path" default:"/usr/bin/crun"`
}

type crun struct {
	mu   sync.Mutex
	jobs map[string]job
}

var _ runtime.Runtime = (*crun)(nil)

// Configure is called before Prepare, for each sandbox whose job has a config block.
func (c *crun) Configure(_ context.Context, in config.Instance, j job) error {
	if st, err := os.Stat(j.Crun); err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return errs.ConfigErrorf(errs.Path("crun"), "%s is no program", j.Crun)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jobs[in.ID] = j
	return nil
}

func (c *crun) program(instance string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if j, ok := c.jobs[instance]; ok {
		return j.Crun
	}
	return usual
}

// Prepare says how crun is called. Nothing of the job becomes an argument.
func (c *crun) Prepare(_ context.Context, r *runtime.PrepareRequest) (*runtime.Prepared, error) {
	switch r.Network {
	case runtime.NetworkNone, runtime.NetworkHost, runtime.NetworkOwn: // crun is in it
	default:
		return nil, errs.Preconditionf("network %d is of a newer Nucleus than this plugin", r.Network)
	}
	program := c.program(r.Call.InstanceID)
	if _, err := os.Stat(program); err != nil {
		return nil, errs.Preconditionf("%w: apt-get install crun", err)
	}
	spec, err := rewrite(r.Spec)
	if err != nil {
		return nil, err
	}
	return &runtime.Prepared{
		Program: runtime.Program{Path: program, Libraries: true},
		Spec:    spec,
		// The core has made the control group, and crun is in it.
		Run: runtime.Command{Args: []string{
			"crun", "--root=" + runtime.StatePath, "--cgroup-manager=disabled", "run", "--bundle=" + runtime.BundlePath, "--pid-file=" + runtime.WordPIDFile, runtime.WordID,
		}},
		// There is no Signal: crun passes signals on. The workload is the first process of
		// a PID namespace, and gets those alone that it expects, and SIGKILL. There is no Exec: to end
		// `crun exec` leaves what it runs, and crun has no way to end that alone.
	}, nil
}

// rewrite adds the namespaces without which crun does less than the specification
// says: the core names none, since the program is in its own.
func rewrite(raw []byte) ([]byte, error) {
	var spec map[string]any
	if err := json.Unmarshal(raw, &spec); err != nil || spec["process"] == nil {
		return nil, errs.Preconditionf("what is to be run is no specification of a container")
	}
	spec["ociVersion"] = "1.0.2" // what crun of 2023 takes
	linux, ok := spec["linux"].(map[string]any)
	if !ok {
		linux = map[string]any{}
		spec["linux"] = linux
	}
	var namespaces []map[string]string
	for _, kind := range []string{"mount", "pid", "ipc", "uts"} {
		namespaces = append(namespaces, map[string]string{"type": kind})
	}
	linux["namespaces"] = namespaces
	delete(linux, "resources") // the core's control group has them
	return json.Marshal(spec)
}

func main() {
	c := &crun{jobs: map[string]job{}}
	plugin.Serve(plugin.Plugin{
		Name: "crun", Version: version, Description: "runs sandboxes by crun",
		Runtime: c, RuntimeConfig: config.To(c),
		Lifetime: plugin.WarmOK,
	})
}
