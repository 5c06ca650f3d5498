package job

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/nucleus-runtime/nucleus/core/job/internal/grammar"
	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
)

// MaxSize is the most bytes of a file that Parse reads: a caller reads one more
// at most, and leaves the error to Parse.
const MaxSize = hclread.MaxSize

// CheckSyntax tells whether src is HCL at all, and of a size that Parse takes.
func CheckSyntax(name string, src []byte) hcl.Diagnostics {
	_, diags := hclread.ParseFile(name, src)
	return diags
}

// Options are what the command line and the host configuration add to a file.
type Options struct {
	// Vars are values of variables as written after -var, VarFiles files of
	// them. A later file overrides an earlier one, Vars override them all.
	Vars     map[string]string
	VarFiles []VarFile
	// AllowHostFunctions lets env("NAME") and file("path") read the host.
	AllowHostFunctions bool
	// Dir is where relative host paths start: the job file's directory, or
	// the working directory if there is no file. It must be absolute.
	Dir string
	// Job names the job that is wanted of a file with several, "" the only one.
	Job string
	// Command and Name, if not empty, replace those of the job that is wanted.
	Command []string
	Name    string
	// Defaults stand in for what the job doesn't say.
	Defaults Defaults
}

// VarFile is a file of variable values that has been read.
type VarFile struct {
	Name string
	Src  []byte
}

// Defaults are the host configuration's.
type Defaults struct {
	Mode   Mode
	Memory *int64
	CPUs   float64
	Pids   *int64
	// Ranges says where they came from, by the job's path of the same field.
	Ranges map[string]hcl.Range
}

// decoder turns one file into its jobs, one after the other. The field it fills is
// named by the function; what depends on several fields is checked at the end.
type decoder struct {
	r *hclread.Reader
	j *Job // the one at hand
	o Options

	uidMap, gidMap bool // given
}

// Parse decodes and validates a job file and gives the job that Options.Job names, or
// the only one. What is wrong with its other jobs is told as well. The job is nil if
// there are errors; warnings may come with a job.
func Parse(filename string, src []byte, o Options) (*Job, hcl.Diagnostics) {
	jobs, wanted, diags := parse(filename, src, o, true)
	if diags.HasErrors() {
		return nil, diags
	}
	return jobs[wanted], diags
}

// ParseAll decodes and validates a job file and gives all of its jobs, in file order.
// There are none if there are errors; warnings may come with jobs.
func ParseAll(filename string, src []byte, o Options) ([]*Job, hcl.Diagnostics) {
	o.Job, o.Name, o.Command = "", "", nil
	jobs, _, diags := parse(filename, src, o, false)
	if diags.HasErrors() {
		return nil, diags
	}
	return jobs, diags
}

func parse(filename string, src []byte, o Options, one bool) (jobs []*Job, wanted int, diags hcl.Diagnostics) {
	d := newDecoder(filename, o)
	body, diags := hclread.ParseFile(filename, src)
	d.r.Add(diags)
	if diags.HasErrors() || body == nil {
		return nil, -1, d.r.Finish()
	}
	jobs, wanted = d.file(filename, body, one)
	return jobs, wanted, d.finish(jobs...)
}

// FromCommand makes the job that `nucleus run -- ARGV...` means: the smallest
// one, with every default. Without a name it is called after the program.
func FromCommand(name string, argv []string, dir string) (*Job, hcl.Diagnostics) {
	return FromOptions(Options{Name: name, Command: argv, Dir: dir})
}

// FromOptions is FromCommand with the host's defaults.
func FromOptions(o Options) (*Job, hcl.Diagnostics) {
	if o.Name == "" {
		o.Name = grammar.NameOf(first(o.Command))
	}
	d := newDecoder("", o)
	d.j.Ranges["job"] = hcl.Range{Filename: commandLine}
	if len(o.Command) == 0 {
		d.r.Error(d.at("command"), "Missing command", "Name a program to run: nucleus run -- /bin/echo hello.")
	}
	d.complete()
	diags := d.finish(d.j)
	if diags.HasErrors() {
		return nil, diags
	}
	return d.j, diags
}

func newDecoder(filename string, o Options) *decoder {
	d := &decoder{r: hclread.New(), o: o}
	d.begin(filename, d.r.Ranges)
	d.r.SetHostFunctions(hclread.HostFunctions{Allow: o.AllowHostFunctions, Dir: o.Dir})
	if !filepath.IsAbs(o.Dir) {
		d.r.Error(hcl.Range{Filename: commandLine}, "Directory not absolute",
			fmt.Sprintf("Relative paths of a job start from an absolute directory, not from %s.", hclread.Quote(o.Dir)))
	}
	return d
}

// begin makes the next job the one at hand. Paths are those within it.
func (d *decoder) begin(filename string, ranges map[string]hcl.Range) {
	d.r.Ranges = ranges
	d.j = &Job{File: filename, Dir: filepath.Clean(d.o.Dir), Init: true, Ranges: ranges}
	d.uidMap, d.gidMap = false, false
}

// file reads the blocks around the jobs, then the jobs with their values, and tells
// which of them is wanted if one is.
func (d *decoder) file(filename string, body *hclsyntax.Body, one bool) (jobs []*Job, wanted int) {
	start := hcl.Range{Filename: filename, Start: hcl.InitialPos, End: hcl.InitialPos}
	var blocks, variables, locals []hclread.Block
	collect := func(to *[]hclread.Block) func(hclread.Block) {
		return func(b hclread.Block) { *to = append(*to, b) }
	}
	d.r.Read(hclread.Block{Body: body, DefRange: start}, hclread.Schema{
		Blocks: []hclread.Nested{
			{Name: "job", Label: "a name", Many: true, Unique: true, Read: collect(&blocks)},
			{Name: "variable", Label: "a name", Many: true, Unique: true, Read: collect(&variables)},
			{Name: "locals", Many: true, Read: collect(&locals)},
		},
		Hints: topLevelHints(),
	})
	d.variables(variables)
	for _, b := range locals {
		d.r.DefineLocals(b)
	}
	d.r.ResolveLocals()

	for _, b := range blocks {
		delete(d.r.Ranges, b.Path)
	}
	if len(blocks) == 0 {
		if !d.r.Diags.HasErrors() {
			d.r.Error(start, "No job in this file", "Write one:\n\n"+smallest)
		}
		return nil, -1
	}
	if len(blocks) > maxJobs {
		d.r.Error(blocks[maxJobs].DefRange, "Too many jobs", fmt.Sprintf("At most %d are read. Move some to a file of their own.", maxJobs))
		blocks = blocks[:maxJobs]
	}
	wanted = -1
	if one {
		wanted = d.choose(blocks)
	}
	around, o := d.r.Ranges, d.o
	for i, b := range blocks {
		if d.o = o; i != wanted {
			d.o.Name, d.o.Command = "", nil
		}
		d.begin(filename, maps.Clone(around))
		d.job(b)
		d.complete()
		jobs = append(jobs, d.j)
	}
	d.dependencies(blocks, jobs)
	d.reachable(blocks, jobs)
	return jobs, wanted
}

// maxJobs bounds what one file starts.
const maxJobs = 200

// choose tells which job is wanted, -1 if that cannot be said.
func (d *decoder) choose(blocks []hclread.Block) int {
	if len(blocks) == 1 && d.o.Job == "" {
		return 0
	}
	names := labels(blocks)
	if i := slices.Index(names, d.o.Job); i >= 0 {
		return i
	}
	if d.o.Job == "" {
		d.r.Error(blocks[1].DefRange, "Several jobs in one file", fmt.Sprintf(
			"Choose one of %s with -job, for instance -job %s, or start all of them with nucleus up.", hclread.List(names), blocks[0].Label))
	} else {
		d.r.Error(hcl.Range{Filename: commandLine}, "Unknown job", fmt.Sprintf("There is no job %s in this file.%s", hclread.Quote(d.o.Job), hclread.SuggestOr(d.o.Job, names)))
	}
	return -1
}

const smallest = `job "hello" {
  command = ["/bin/echo", "hello"]
}`

func topLevelHints() map[string]string {
	hints := map[string]string{
		"var":  `Write variable "name" { type = string }.`,
		"task": "Write job.", "service": "Write job.", "container": "Write job.", "sandbox": "Write job.",
	}
	for _, n := range []string{"plugin", "plugin_dirs", "audit", "state_root", "defaults", "cgroup_parent"} {
		hints[n] = "It belongs into the host configuration: /etc/nucleus/nucleus.hcl, or the file that -host-config names."
	}
	for _, n := range []string{"command", "env", "mode", "user", "workdir", "resources", "rootfs", "network", "volume", "workspace", "context", "security", "secret", "tmpfs", "hook"} {
		hints[n] = "Move it into the job block: job \"name\" { ... }."
	}
	return hints
}

// complete applies what stands outside of the file to the job at hand, and checks it.
func (d *decoder) complete() {
	j := d.j
	if d.o.Name != "" {
		j.Name = d.o.Name
		j.Ranges["name"] = hcl.Range{Filename: commandLine}
		d.checkName(j.Name, d.at("name"))
	}
	if len(d.o.Command) > 0 {
		j.Command = d.o.Command
		maps.DeleteFunc(j.Ranges, func(path string, _ hcl.Range) bool { return strings.HasPrefix(path, "command[") })
		j.Ranges["command"] = hcl.Range{Filename: commandLine}
		d.checkCommand(j.Command, func(int) hcl.Range { return d.at("command") })
	}
	d.defaults()
	d.check()
}

// finish gives the diagnostics of the whole file.
func (d *decoder) finish(jobs ...*Job) hcl.Diagnostics {
	for _, diag := range d.r.Diags {
		// What came from arguments has no line to show.
		if diag.Subject != nil && diag.Subject.Filename == commandLine {
			diag.Subject = nil
		}
	}
	eval := d.r.Context()
	for _, j := range jobs {
		j.eval = eval
	}
	return d.r.Finish()
}

func (d *decoder) defaults() {
	j, o := d.j, d.o.Defaults
	take := func(path string) bool {
		if _, given := j.Ranges[path]; given {
			return false
		}
		if r, ok := o.Ranges[path]; ok {
			j.Ranges[path] = r
		}
		return true
	}
	if o.Mode != "" && take("mode") {
		j.Mode = o.Mode
	}
	if o.Memory != nil && take("resources.memory") {
		j.Resources.Memory = o.Memory
	}
	if o.CPUs != 0 && take("resources.cpus") {
		j.Resources.CPUs = o.CPUs
	}
	if o.Pids != nil && take("resources.pids") {
		j.Resources.Pids = o.Pids
	}
	if j.Mode == "" {
		j.Mode = ModeAgent
	}
	if j.Hostname == "" {
		j.Hostname = j.Name
	}
	if j.Stop.Signal == "" {
		j.Stop.Signal = "SIGTERM"
	}
	if _, given := j.Ranges["stop.grace"]; !given {
		j.Stop.Grace = defaultGrace
	}
	if j.Namespaces.User == "" {
		j.Namespaces.User = "auto"
	}
	if j.Network.Backend == "" {
		j.Network.Backend = "none"
	}
}

// at is the range that an error about the field with the given path shows.
func (d *decoder) at(path string) hcl.Range {
	r, _ := d.j.Range(path)
	return r
}

func first(argv []string) string {
	if len(argv) == 0 {
		return ""
	}
	return argv[0]
}
