package job

import (
	"fmt"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/job/internal/grammar"
	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
	"github.com/nucleus-runtime/nucleus/core/tree/exclude"
)

func (d *decoder) rootfs(b hclread.Block) {
	r := &Rootfs{Writable: "none"}
	d.j.Rootfs = r
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "path", Required: `path = "./rootfs"`, Read: d.hostSource(&r.Path)},
		{Name: "digest", Read: d.digest(&r.Digest)},
		{Name: "writable", Read: enum(&r.Writable, "none", "overlay")},
	}})
}

// digest reads "sha256:<hex>" as `nucleus rootfs digest` prints it.
func (d *decoder) digest(dst *string) func(hclread.Value) {
	return func(v hclread.Value) {
		s, ok := v.String()
		if !ok {
			return
		}
		hex, prefixed := strings.CutPrefix(s, "sha256:")
		if !prefixed || !grammar.IsSHA256(hex) {
			v.Error("Not a digest", fmt.Sprintf("%s is no digest: write sha256: and 64 lower-case hexadecimal digits, as nucleus rootfs digest prints them.", hclread.Quote(s)))
			return
		}
		*dst = s
	}
}

// sha256 reads the bare digits that sha256sum prints for one file.
func (d *decoder) sha256(dst *string) func(hclread.Value) {
	return func(v hclread.Value) {
		s, ok := v.String()
		if !ok {
			return
		}
		hex := strings.TrimPrefix(s, "sha256:")
		if !grammar.IsSHA256(hex) {
			v.Error("Not a digest", fmt.Sprintf("%s is no digest: write the 64 lower-case hexadecimal digits that sha256sum prints, for instance %s.", hclread.Quote(s), sha256Example))
			return
		}
		*dst = hex
	}
}

func (d *decoder) context(b hclread.Block) {
	c := &Context{Target: "/context", Method: "copy"}
	d.j.Context = c
	verify := false
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "source", Required: `source = "./src"`, Read: d.hostSource(&c.Source)},
		{Name: "target", Read: d.sandboxPath(&c.Target)},
		{Name: "method", Read: enum(&c.Method, "copy", "bind")},
		{Name: "verify", Read: func(v hclread.Value) { c.Verify, _ = v.Bool(); verify = true }},
		{Name: "exclude", Read: d.patterns(&c.Exclude)},
	}})
	if !verify {
		c.Verify = c.Method == "copy"
	}
	if c.Method == "bind" && len(c.Exclude) > 0 {
		d.r.Error(d.at(b.Child("exclude")), "Exclude needs a copy", `A bind shows the whole directory, so nothing can be left out: write method = "copy", or remove exclude.`)
	}
}

// patterns reads globs for names relative to the context.
func (d *decoder) patterns(dst *[]string) func(hclread.Value) {
	return func(v hclread.Value) {
		es, ok := v.Elements()
		if !ok {
			return
		}
		ps, ok := v.Strings()
		if !ok {
			return
		}
		for i, p := range ps {
			if badText(p) {
				es[i].Error("Not a pattern", fmt.Sprintf("%s is no pattern: write a name with * ? or [a-z] in it, for instance \"*.pem\".", hclread.Quote(p)))
			} else if _, err := exclude.Parse(p); err != nil {
				es[i].Error("Not a pattern", err.Error()+`. Write for instance "*.pem", "/build" or "secrets/".`)
			}
		}
		*dst = ps
	}
}

func (d *decoder) workspace(b hclread.Block) {
	w := &Workspace{Mode: "bind-rw"}
	d.j.Workspace = w
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "path", Required: `path = "."`, Read: d.hostSource(&w.Path)},
		{Name: "mode", Read: enum(&w.Mode, "bind-rw", "bind-ro", "overlay")},
		{Name: "exec", Read: boolean(&w.Exec)},
	}, Hints: map[string]string{"target": "The workspace is always at /workspace; a volume has a target."}})
}

func (d *decoder) volume(b hclread.Block) {
	v := Volume{Name: b.Label}
	unsaid := true
	d.checkName(b.Label, b.LabelRange)
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "source", Required: `source = "/srv/data"`, Read: d.hostSource(&v.Source)},
		{Name: "target", Required: `target = "/data"`, Read: d.sandboxPath(&v.Target)},
		{Name: "read_only", Read: boolean(&v.ReadOnly)},
		{Name: "create", Read: boolean(&v.Create)},
		{Name: "exec", Read: func(x hclread.Value) { unsaid = false; boolean(&v.Exec)(x) }},
	}, Hints: map[string]string{"ro": "Write read_only = true.", "path": `Write source = "/srv/data".`}})
	if unsaid {
		v.Exec = v.ReadOnly
	}
	d.j.Volumes = append(d.j.Volumes, v)
}

const (
	minTmpfs      = 4 << 10 // one page
	defaultTmpfs  = 0o1777  // what the kernel gives a tmpfs without a mode
	defaultSecret = 0o400
)

func (d *decoder) tmpfs(b hclread.Block) {
	t := Tmpfs{Target: b.Label, Mode: defaultTmpfs}
	if why := badSandboxPath(b.Label); why != "" {
		d.r.Error(b.LabelRange, "Not a sandbox path", fmt.Sprintf("%s %s", hclread.Quote(b.Label), why))
		t.Target = ""
	}
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "size", Read: size(&t.Size, minTmpfs)},
		{Name: "mode", Read: octal(&t.Mode, 0o1777, "0700")},
		{Name: "exec", Read: func(v hclread.Value) {
			if x, ok := v.Bool(); ok {
				t.Exec = &x
			}
		}},
	}})
	d.j.Tmpfs = append(d.j.Tmpfs, t)
}

const sha256Example = `"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
