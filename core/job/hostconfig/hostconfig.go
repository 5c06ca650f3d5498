// Package hostconfig owns the host-wide configuration file: where plugins are
// and which of them are trusted, where state and the audit file go, and what
// jobs get that do not say it themselves. It reads no file and checks nothing
// on the host.
package hostconfig

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/job/internal/grammar"
	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
	"github.com/nucleus-runtime/nucleus/core/journald"
)

// Config is the file's content. What is not said is empty.
type Config struct {
	File         string
	PluginDirs   []string // absolute
	StateRoot    string   // absolute
	CgroupParent string   // absolute path in the cgroup file system's terms
	Journal      string   // socket of the journal that gets the output of detached sandboxes
	Audit        *Audit
	Plugins      []Plugin
	Defaults     job.Defaults

	// Ranges says where each field came from, as in package job.
	Ranges map[string]hcl.Range

	eval *hcl.EvalContext
}

// EvalContext holds what the plugins' Config bodies may refer to.
func (c *Config) EvalContext() *hcl.EvalContext { return c.eval }

// Audit says where audit events go beside the sandbox's own directory.
type Audit struct {
	File string // absolute
}

// Plugin is what the host's owner says about one plugin.
type Plugin struct {
	Name     string
	Path     string   // file name in a plugin directory; Name's by default
	SHA256   []string // any of them is accepted
	Allow    []string // "network", "hooks:FS": services and phases; nil allows all
	KeepWarm time.Duration
	User     string
	Caps     []string // upper bound, canonical; nil if not said
	Env      map[string]string
	Writable []string // absolute: where a confined plugin may write
	Network  bool     // for a plugin that would have none
	Memory   int64    // limit in bytes; 0 for the default
	Config   hcl.Body
}

// Plugin returns the block with the given label.
func (c *Config) Plugin(name string) (Plugin, bool) {
	i := slices.IndexFunc(c.Plugins, func(p Plugin) bool { return p.Name == name })
	if i < 0 {
		return Plugin{}, false
	}
	return c.Plugins[i], true
}

type decoder struct {
	r *hclread.Reader
	c *Config
}

// Parse decodes and validates the file. The configuration is nil if it has errors.
func Parse(filename string, src []byte) (*Config, hcl.Diagnostics) {
	d := &decoder{r: hclread.New()}
	d.c = &Config{File: filename, Ranges: d.r.Ranges}
	body, diags := hclread.ParseFile(filename, src)
	d.r.Add(diags)
	if diags.HasErrors() || body == nil {
		return nil, d.r.Finish()
	}
	d.r.Read(hclread.Block{Body: body, What: "the host configuration"}, hclread.Schema{
		Attrs: []hclread.Attr{
			{Name: "plugin_dirs", Read: d.pluginDirs},
			{Name: "state_root", Read: absolute(&d.c.StateRoot, "/run/nucleus")},
			{Name: "cgroup_parent", Read: absolute(&d.c.CgroupParent, "/nucleus.slice")},
			{Name: "log", Read: d.log},
		},
		Blocks: []hclread.Nested{
			{Name: "plugin", Label: "the plugin's name", Many: true, Unique: true, Read: d.plugin},
			{Name: "audit", Read: d.audit},
			{Name: "defaults", Read: d.defaults},
		},
		Hints: map[string]string{
			"job":      "Jobs are files of their own: nucleus run -config job.hcl.",
			"variable": "The host configuration has no variables.",
			"locals":   "The host configuration has no locals.",
		},
	})
	d.c.eval = d.r.Context()
	diags = d.r.Finish()
	if diags.HasErrors() {
		return nil, diags
	}
	return d.c, diags
}

func absolute(dst *string, example string) func(hclread.Value) {
	return func(v hclread.Value) {
		s, ok := v.String()
		if !ok {
			return
		}
		if clean, ok := cleanAbs(s); !ok {
			v.Error("Path not absolute", fmt.Sprintf("%s: write an absolute path without \"..\", for instance %q.", hclread.Quote(s), example))
		} else {
			*dst = clean
		}
	}
}

func (d *decoder) log(v hclread.Value) {
	s, ok := v.String()
	if !ok {
		return
	}
	socket, ok := journald.Destination(s)
	if !ok {
		v.Error("Unknown log", fmt.Sprintf("%s: write \"journald\", or \"journald:SOCKET\" with an absolute path. Without the attribute there is the sandbox's own log alone.", hclread.Quote(s)))
		return
	}
	d.c.Journal = socket
}

func cleanAbs(s string) (string, bool) {
	if !strings.HasPrefix(s, "/") || strings.ContainsFunc(s, unicode.IsControl) || slices.Contains(strings.Split(s, "/"), "..") {
		return "", false
	}
	return path.Clean(s), true
}

func (d *decoder) pluginDirs(v hclread.Value) {
	es, ok := v.Elements()
	if !ok {
		return
	}
	dirs, ok := v.Strings()
	if !ok {
		return
	}
	for i, s := range dirs {
		clean, ok := cleanAbs(s)
		switch {
		case !ok || clean == "/":
			es[i].Error("Path not absolute", fmt.Sprintf("%s: write an absolute directory without \"..\", for instance \"/usr/local/libexec/nucleus/plugins\".", hclread.Quote(s)))
		case slices.Contains(d.c.PluginDirs, clean):
			es[i].Error("Directory given twice", fmt.Sprintf("%s is in the list already: remove one.", hclread.Quote(clean)))
		default:
			d.c.PluginDirs = append(d.c.PluginDirs, clean)
		}
	}
}

func (d *decoder) audit(b hclread.Block) {
	a := &Audit{}
	d.c.Audit = a
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "file", Required: `file = "/var/log/nucleus/audit.jsonl"`, Read: absolute(&a.File, "/var/log/nucleus/audit.jsonl")},
	}})
}

func (d *decoder) defaults(b hclread.Block) {
	def := &d.c.Defaults
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "mode", Read: func(v hclread.Value) {
			s, _ := v.Enum(string(job.ModeAgent), string(job.ModeStrictAgent), string(job.ModeProduction))
			def.Mode = job.Mode(s)
		}},
		{Name: "memory", Read: func(v hclread.Value) {
			if n, ok := v.Size(grammar.MinMemory); ok {
				def.Memory = &n
			}
		}},
		{Name: "cpus", Read: func(v hclread.Value) { def.CPUs, _ = v.Float(grammar.MinCPUs, grammar.MaxCPUs) }},
		{Name: "pids", Read: func(v hclread.Value) {
			if n, ok := v.Int(1, grammar.MaxPids); ok {
				def.Pids = &n
			}
		}},
	}})
	def.Ranges = map[string]hcl.Range{}
	for from, to := range map[string]string{"mode": "mode", "memory": "resources.memory", "cpus": "resources.cpus", "pids": "resources.pids"} {
		if r, ok := d.r.Ranges[b.Child(from)]; ok {
			def.Ranges[to] = r
		}
	}
}

func (d *decoder) plugin(b hclread.Block) {
	p := Plugin{Name: b.Label, Path: "nucleus-plugin-" + b.Label}
	if problem := grammar.NameProblem(b.Label); problem != "" {
		d.r.Error(b.LabelRange, "Not a valid name", problem)
	}
	d.r.Read(b, hclread.Schema{
		Attrs: []hclread.Attr{
			{Name: "path", Read: func(v hclread.Value) { p.Path = d.fileName(v) }},
			{Name: "sha256", Read: func(v hclread.Value) { p.SHA256 = d.digests(v) }},
			{Name: "allow", Read: func(v hclread.Value) { p.Allow = d.allow(v) }},
			{Name: "keep_warm", Read: func(v hclread.Value) { p.KeepWarm = d.keepWarm(v) }},
			{Name: "user", Read: func(v hclread.Value) { p.User = d.user(v) }},
			{Name: "caps", Read: func(v hclread.Value) { p.Caps = d.caps(v) }},
			{Name: "env", Read: func(v hclread.Value) { p.Env = d.env(v) }},
			{Name: "writable", Read: func(v hclread.Value) { p.Writable = d.writable(v) }},
			{Name: "network", Read: func(v hclread.Value) { p.Network, _ = v.Bool() }},
			{Name: "memory", Read: func(v hclread.Value) { p.Memory, _ = v.Size(grammar.MinMemory) }},
		},
		Blocks: []hclread.Nested{{Name: "config", Read: func(b hclread.Block) { p.Config = d.r.Config(b) }}},
		Hints: map[string]string{
			"capabilities": `Write caps = ["CAP_NET_ADMIN"].`, "digest": `Write sha256 = "...".`, "checksum": `Write sha256 = "...".`,
		},
	})
	d.c.Plugins = append(d.c.Plugins, p)
}

func (d *decoder) fileName(v hclread.Value) string {
	s, ok := v.String()
	if !ok {
		return ""
	}
	if s == "" || s == "." || s == ".." || strings.ContainsFunc(s, func(r rune) bool { return r == '/' || unicode.IsControl(r) }) {
		v.Error("Not a file name", fmt.Sprintf("%s: write the name of a file in a plugin directory, without a slash, for instance \"nucleus-plugin-netbridge\".", hclread.Quote(s)))
		return ""
	}
	return s
}

// digests reads one digest, or a list of them during an upgrade.
func (d *decoder) digests(v hclread.Value) []string {
	values := []hclread.Value{v}
	if !v.Cty.Type().IsPrimitiveType() {
		var ok bool
		if values, ok = v.Elements(); !ok {
			return nil
		}
	}
	if len(values) == 0 {
		v.Error("Empty list", "Write the digest that sha256sum prints for the plugin, or remove the line.")
	}
	var out []string
	for _, e := range values {
		s, ok := e.String()
		if !ok {
			continue
		}
		hex := strings.TrimPrefix(s, "sha256:")
		if !grammar.IsSHA256(hex) {
			e.Error("Not a digest", fmt.Sprintf("%s is no digest: write the 64 lower-case hexadecimal digits that sha256sum prints for the plugin.", hclread.Quote(s)))
			continue
		}
		out = append(out, hex)
	}
	return out
}

func services() []string { return []string{"network", "runtime", "secrets", "hooks"} }

// allow reads services, and phases of hooks as "hooks:PHASE".
func (d *decoder) allow(v hclread.Value) []string {
	es, ok := v.Elements()
	if !ok {
		return nil
	}
	names, ok := v.Strings()
	if !ok {
		return nil
	}
	phases := []string{"NAMESPACES", "CGROUPS", "FS", "SECURITY", "EXEC", "STOPPING", "STOPPED", "CLEANUP"}
	for i, n := range names {
		service, phase, phased := strings.Cut(n, ":")
		switch {
		case !slices.Contains(services(), service):
			es[i].Error("Unknown service", fmt.Sprintf("There is no service %s.%s", hclread.Quote(service), hclread.SuggestOr(service, services())))
		case phased && service != "hooks":
			es[i].Error("Service without phases", fmt.Sprintf("Only hooks have phases: write %q.", service))
		case phased && !slices.Contains(phases, phase):
			es[i].Error("Unknown phase", fmt.Sprintf("There is no phase %s.%s", hclread.Quote(phase), hclread.SuggestOr(phase, phases)))
		}
	}
	if len(names) == 0 {
		v.Error("Empty list", `Name what the plugin may serve, for instance allow = ["network"], or remove the line.`)
	}
	return names
}

func (d *decoder) keepWarm(v hclread.Value) time.Duration {
	if v.Cty.Type() == cty.Number && v.Cty.AsBigFloat().Sign() == 0 {
		return 0 // no unit is needed for nothing
	}
	t, _ := v.Duration(0, 24*time.Hour)
	return t
}

func (d *decoder) user(v hclread.Value) string {
	s, ok := v.String()
	if !ok {
		return ""
	}
	if !grammar.IsAccount(s) {
		v.Error("Not a user", fmt.Sprintf("%s is no user: write a name or a number, for instance \"nucleus-plug\".", hclread.Quote(s)))
		return ""
	}
	return s
}

func (d *decoder) caps(v hclread.Value) []string {
	es, ok := v.Elements()
	if !ok {
		return nil
	}
	names, ok := v.Strings()
	if !ok {
		return nil
	}
	out := []string{}
	for i, n := range names {
		c, ok := grammar.Capability(n)
		if !ok {
			es[i].Error("Unknown capability", fmt.Sprintf("There is no capability %s.%s", hclread.Quote(n), hclread.SuggestOr(c, grammar.Capabilities())))
			continue
		}
		out = append(out, c)
	}
	return out
}

func (d *decoder) writable(v hclread.Value) []string {
	es, ok := v.Elements()
	if !ok {
		return nil
	}
	paths, ok := v.Strings()
	if !ok {
		return nil
	}
	var out []string
	for i, s := range paths {
		clean, ok := cleanAbs(s)
		switch {
		case !ok || clean == "/":
			es[i].Error("Path not absolute", fmt.Sprintf("%s: write an absolute path below \"/\", without \"..\", for instance \"/var/lib/acme\".", hclread.Quote(s)))
		case slices.Contains(out, clean):
			es[i].Error("Path given twice", fmt.Sprintf("%s is in the list already: remove one.", hclread.Quote(clean)))
		default:
			out = append(out, clean)
		}
	}
	return out
}

func (d *decoder) env(v hclread.Value) map[string]string {
	entries, ok := v.Entries()
	if !ok {
		return nil
	}
	out := make(map[string]string, len(entries))
	for _, e := range entries {
		if summary, detail := grammar.EnvProblem(e.Key); summary != "" {
			d.r.Error(e.KeyRange, summary, detail)
			continue
		}
		if s, ok := e.Value.String(); ok {
			out[e.Key] = s
		}
	}
	return out
}
