package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/spf13/cobra"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/pluginhost/rundir"
	"github.com/nucleus-runtime/nucleus/internal/plainfile"
)

// maxJobFile is read of a job file at most, so that -config /dev/zero ends.
const maxJobFile = job.MaxSize + 1

// jobFlags are the flags of the verbs that read a job.
type jobFlags struct {
	verb      string
	config    string
	job       string
	vars      []string
	varFiles  []string
	name      string
	hostFuncs bool
	parent    string
	inStack   string // of a child of nucleus up: the stack that its sandbox is of
	stackLock int    // its lock's descriptor
}

func (f *jobFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.config, "config", "", "job file, or - for standard input")
	f.addVariables(c)
}

// addVariables is for the verbs that name the file without a flag.
func (f *jobFlags) addVariables(c *cobra.Command) {
	f.verb = c.Name()
	c.Flags().StringArrayVar(&f.vars, "var", nil, "value of a variable, as k=v; repeatable")
	c.Flags().StringArrayVar(&f.varFiles, "var-file", nil, "file of variable values, as HCL; repeatable")
	c.Flags().BoolVar(&f.hostFuncs, "allow-host-functions", false, "let the job file read files and the environment of the host")
}

// addJob is for the verbs that are about one job.
func (f *jobFlags) addJob(c *cobra.Command) {
	c.Flags().StringVar(&f.job, "job", "", "which job of a file that has several")
}

// addParent is for the verbs that look at the host.
func (f *jobFlags) addParent(c *cobra.Command) {
	c.Flags().StringVar(&f.parent, "cgroup-parent", "", "control group below which the sandbox's is made (default: see docs/cgroups.md)")
}

// load reads and decodes the job that the flags and arguments name. Diagnostics
// are printed here, with the source lines that they point at.
func (a *app) load(f *jobFlags, argv []string) (*job.Job, error) {
	o, err := a.jobOptions(f)
	if err != nil {
		return nil, err
	}
	o.Command, o.Name, o.Job = argv, f.name, f.job
	if f.config == "" {
		if len(argv) == 0 {
			return nil, &usageError{err: errors.New("no job: name a file with -config, or a command after --"), hint: "nucleus " + f.verb + " -config job.hcl"}
		}
		if len(f.vars)+len(f.varFiles) > 0 {
			return nil, &usageError{err: errors.New("variables without a job file: nothing would read them"), hint: "nucleus run -config job.hcl -var name=value"}
		}
		if f.job != "" {
			return nil, &usageError{err: errors.New("-job without a job file: there is nothing to choose from"), hint: "nucleus " + f.verb + " -config stack.hcl -job " + f.job}
		}
		j, diags := job.FromOptions(o)
		return a.decoded(f, j, diags)
	}
	name, src, err := a.readJob(f.config)
	if err != nil {
		return nil, err
	}
	j, diags := job.Parse(name, src, o)
	a.sources[name] = src
	return a.decoded(f, j, diags)
}

// loadAll is load for all jobs of a file.
func (a *app) loadAll(f *jobFlags) ([]*job.Job, error) {
	o, err := a.jobOptions(f)
	if err != nil {
		return nil, err
	}
	if f.config == "" {
		return nil, &usageError{err: errors.New("no job: name a file with -config"), hint: "nucleus " + f.verb + " -config job.hcl"}
	}
	name, src, err := a.readJob(f.config)
	if err != nil {
		return nil, err
	}
	jobs, diags := job.ParseAll(name, src, o)
	a.sources[name] = src
	if !diags.HasErrors() && slices.ContainsFunc(jobs, leavesToFull) && f.verb == "validate" {
		return jobs, nil
	}
	return jobs, a.diagnostics(a.sources, diags)
}

// jobOptions is what the flags and the host configuration add to a file.
func (a *app) jobOptions(f *jobFlags) (job.Options, error) {
	o := job.Options{AllowHostFunctions: f.hostFuncs, Vars: map[string]string{}}
	for _, kv := range f.vars {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return o, &usageError{err: fmt.Errorf("-var %q: write name=value", kv)}
		}
		o.Vars[k] = v
	}
	sources := map[string][]byte{}
	for _, path := range f.varFiles {
		b, err := readBounded(path)
		if err != nil {
			return o, fmt.Errorf("variables: %w", err)
		}
		sources[path] = b
		o.VarFiles = append(o.VarFiles, job.VarFile{Name: path, Src: b})
	}
	dir, err := filepath.Abs(filepath.Dir(f.config))
	if err != nil {
		return o, &hintedError{err: fmt.Errorf("working directory: %w", err), hint: "it was removed, or cannot be seen: cd elsewhere"}
	}
	o.Dir = dir
	host, err := a.hostConfiguration()
	if err != nil {
		return o, err
	}
	o.Defaults = host.Defaults
	sources[host.File] = a.host.source
	a.sources = sources
	return o, nil
}

// decoded prints what there is to say of a job, unless the other build is going to, or
// nucleus up has.
func (a *app) decoded(f *jobFlags, j *job.Job, diags hcl.Diagnostics) (*job.Job, error) {
	if !diags.HasErrors() && (leavesToFull(j) || f.inStack != "") {
		return j, nil
	}
	return j, a.diagnostics(a.sources, diags)
}

func (a *app) readJob(config string) (string, []byte, error) {
	if config == "-" {
		b, err := a.readPiped()
		return pipedName, b, err
	}
	b, err := readBounded(config)
	if err != nil {
		return "", nil, fmt.Errorf("job file: %w", err)
	}
	return config, b, nil
}

// pipedName is what a file on standard input is called.
const pipedName = "<stdin>"

// readBounded reads as much of a file as tells that it is too long, which /dev/zero is.
func readBounded(path string) ([]byte, error) {
	f, err := plainfile.Open(filepath.Clean(path), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxJobFile))
}

// runtime makes the library's Runtime with what the flags and the host
// configuration say.
func (a *app) runtime(o core.Options) (*core.Runtime, error) {
	host, err := a.hostConfiguration()
	if err != nil {
		return nil, err
	}
	if o.CgroupParent == "" {
		o.CgroupParent = host.CgroupParent
	}
	if o.StateRoot, err = a.stateRootPath(); err != nil {
		return nil, err
	}
	for _, dir := range rundir.Default() {
		// What is not there yet holds nothing of ours, and may be in a directory such as
		// /tmp that jobs have a use for.
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			o.Refused = append(o.Refused, real)
		}
	}
	return core.New(o)
}

var errInvalid = exitError(exec.CodeRuntime)
