package job

import (
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/nucleus-runtime/nucleus/core/job/internal/grammar"
	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
)

const secretDir = "/run/secrets"

func (d *decoder) secret(b hclread.Block) {
	s := Secret{Name: b.Label, Mode: defaultSecret}
	named := d.checkName(b.Label, b.LabelRange)
	d.r.Read(b, hclread.Schema{
		Attrs: []hclread.Attr{
			{Name: "provider", Required: `provider = "file"`, Read: func(v hclread.Value) {
				p, ok := v.String()
				if ok && d.checkName(p, v.Range()) {
					s.Provider = p
				}
			}},
			{Name: "target", Read: d.sandboxPath(&s.Target)},
			{Name: "env", Read: func(v hclread.Value) {
				if n, ok := v.String(); ok && d.checkEnvName(n, v.Range()) {
					s.Env = n
				}
			}},
			{Name: "mode", Read: octal(&s.Mode, 0o777, "0400")},
		},
		Blocks: []hclread.Nested{{Name: "config", Read: func(b hclread.Block) { s.Config = d.r.Config(b) }}},
		Hints:  map[string]string{"path": `Write it in a config block: config { path = "/etc/secrets/db" }.`},
	})
	_, target := d.j.Ranges[b.Child("target")]
	_, env := d.j.Ranges[b.Child("env")]
	switch {
	case target && env:
		d.r.Error(d.at(b.Child("env")), "Secret with two targets", "A secret is a file or a variable: remove env (the file is safer) or target. Give it a second block to have both.")
	case env:
		if _, mode := d.j.Ranges[b.Child("mode")]; mode {
			d.r.Error(d.at(b.Child("mode")), "Mode without a file", "A variable has no permissions: remove mode, or write target instead of env.")
		}
	case !target && named:
		s.Target = path.Join(secretDir, s.Name)
	}
	d.j.Secrets = append(d.j.Secrets, s)
}

func (d *decoder) runtime(b hclread.Block) {
	r := &Runtime{Plugin: b.Label}
	d.checkName(b.Label, b.LabelRange)
	d.r.Read(b, hclread.Schema{
		Attrs: []hclread.Attr{{Name: "checkpoint", Read: func(v hclread.Value) {
			r.Checkpoint, _ = v.Bool()
			if r.Checkpoint && r.Plugin == "native" {
				d.r.Error(v.Range(), "Native runtime has no checkpoints", `Remove the line, or write runtime "gvisor" { checkpoint = true }: the state of its sandboxes can be saved.`)
			}
		}}},
		Blocks: []hclread.Nested{{Name: "config", Read: func(b hclread.Block) {
			r.Config = d.r.Config(b)
			if r.Plugin == "native" {
				d.r.Error(b.DefRange, "Native runtime has no config", "Remove the block: the native runtime is configured by the job itself.")
			}
		}}},
	})
	if r.Plugin != "native" {
		d.j.Runtime = r
	}
}

func (d *decoder) hook(b hclread.Block) {
	h := Hook{Phase: b.Label, Timeout: 30 * time.Second}
	if !slices.Contains(grammar.HookPhases(), h.Phase) {
		d.r.Error(b.LabelRange, "Unknown hook phase", fmt.Sprintf("There is no phase %s.%s", hclread.Quote(h.Phase), hclread.SuggestOr(h.Phase, grammar.HookPhases())))
	}
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "command", Required: `command = ["/usr/libexec/x"]`, Read: func(v hclread.Value) {
			h.Command = d.program(v)
			if len(h.Command) > 0 && badSandboxPath(h.Command[0]) != "" {
				v.Error("Hook path not absolute", fmt.Sprintf("%s: a hook is named by its absolute, clean path, for instance \"/usr/libexec/x\".", hclread.Quote(h.Command[0])))
			}
		}},
		{Name: "env", Read: func(v hclread.Value) { h.Env = d.environment(v) }},
		{Name: "timeout", Read: duration(&h.Timeout, time.Millisecond)},
	}})
	d.j.Hooks = append(d.j.Hooks, h)
}

// program reads a command other than the job's own.
func (d *decoder) program(v hclread.Value) []string {
	es, ok := v.Elements()
	if !ok {
		return nil
	}
	argv, ok := v.Strings()
	if !ok {
		return nil
	}
	if len(argv) == 0 || argv[0] == "" {
		v.Error("Empty command", fmt.Sprintf("Name a program to run: %s.", `["/bin/check", "-quick"]`))
		return nil
	}
	for i, a := range argv {
		if hasNUL(a) || len(a) > maxArg {
			es[i].Error("Argument can't be passed", fmt.Sprintf("The kernel takes at most %d bytes in one argument, and no NUL byte.", maxArg))
		}
	}
	return argv
}

func (d *decoder) pluginHook(b hclread.Block) {
	h := PluginHook{Plugin: b.Label, Timeout: 2 * time.Second}
	d.checkName(b.Label, b.LabelRange)
	d.r.Read(b, hclread.Schema{
		Attrs:  []hclread.Attr{{Name: "timeout", Read: duration(&h.Timeout, time.Millisecond)}},
		Blocks: []hclread.Nested{{Name: "config", Read: func(b hclread.Block) { h.Config = d.r.Config(b) }}},
	})
	d.j.PluginHooks = append(d.j.PluginHooks, h)
}
