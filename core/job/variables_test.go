package job

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
)

const typed = `variable "n" { type = number }
variable "s" { type = string }
variable "l" {
  type    = list(string)
  default = []
}
variable "any" { default = 1 }
job "x" {
  command = concat(["/bin/true", "${var.n}", var.s, tostring(var.any)], var.l)
}`

func TestVariables(t *testing.T) {
	file := func(name, src string) VarFile { return VarFile{Name: name, Src: []byte(src)} }
	for name, tc := range map[string]struct {
		o    Options
		want string // the command joined by |
	}{
		"values are read by type": {Options{Vars: map[string]string{"n": "7", "s": "007", "l": `["a", "b"]`, "any": "2"}}, "/bin/true|7|007|2|a|b"},
		"text is taken as it is":  {Options{Vars: map[string]string{"n": "7", "s": `"${x}" #`}}, `/bin/true|7|"${x}" #|1`},
		"files":                   {Options{VarFiles: []VarFile{file("a", "n = 1\ns = \"a\"\n"), file("b", "s = \"b\"\n")}}, "/bin/true|1|b|1"},
		"arguments beat files":    {Options{VarFiles: []VarFile{file("a", "n = 1\ns = \"a\"\n")}, Vars: map[string]string{"s": "c"}}, "/bin/true|1|c|1"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(mustParse(t, typed, tc.o).Command, "|"); got != tc.want {
				t.Errorf("command %s, want %s", got, tc.want)
			}
		})
	}
	for name, tc := range map[string]struct {
		o    Options
		want string // within the first error
	}{
		"no value":             {Options{Vars: map[string]string{"n": "1"}}, "-var s=VALUE"},
		"undeclared":           {Options{Vars: map[string]string{"n": "1", "s": "", "an": "1"}}, `Did you mean "any"?`},
		"undeclared in a file": {Options{VarFiles: []VarFile{file("v.hcl", "n = 1\ns = \"\"\nmm = 2\n")}}, `v.hcl sets "mm"`},
		"wrong type":           {Options{Vars: map[string]string{"n": "true", "s": ""}}, `takes number, for instance 8080`},
		"no expression":        {Options{Vars: map[string]string{"n": "1", "s": "", "l": "[a"}}, `write -var 'l=["a", "b"]'`},
		"no functions":         {Options{Vars: map[string]string{"n": `length(env("HOME"))`, "s": ""}, AllowHostFunctions: true}, `takes number`},
		"block in a file":      {Options{VarFiles: []VarFile{file("v.hcl", "x {\n}\n")}}, "NAME = VALUE"},
		"syntax of a file":     {Options{VarFiles: []VarFile{file("v.hcl", "x = [\n")}}, ""},
		"bomb":                 {Options{Vars: map[string]string{"n": "1", "s": "", "l": "[" + strings.Repeat("(", 10000)}}, "write -var"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.o.Dir = "/w"
			_, diags := Parse("job.hcl", []byte(typed), tc.o)
			if !diags.HasErrors() {
				t.Fatal("no error")
			}
			if text := describe(typed, withoutRanges(diags)); !strings.Contains(text, tc.want) {
				t.Errorf("%q does not hold %q", text, tc.want)
			}
		})
	}
}

func withoutRanges(diags hcl.Diagnostics) hcl.Diagnostics {
	for _, d := range diags {
		d.Subject = nil
	}
	return diags
}

func TestHostFunctions(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "greeting"), []byte("hi"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NUCLEUS_TEST_NAME", "me")
	src := func(call string) string { return "job \"x\" {\n  command = [\"/bin/echo\", " + call + "]\n}\n" }
	j := mustParse(t, src(`"${file("greeting")} ${env("NUCLEUS_TEST_NAME")}"`), Options{AllowHostFunctions: true, Dir: dir})
	if j.Command[1] != "hi me" {
		t.Errorf("command %q", j.Command)
	}
	for _, call := range []string{`file("/dev/zero")`, `file(".")`, `file("none")`} {
		if _, diags := Parse("job.hcl", []byte(src(call)), Options{AllowHostFunctions: true, Dir: dir}); !diags.HasErrors() {
			t.Errorf("%s is read", call)
		}
	}
	if _, diags := Parse("job.hcl", []byte(src(`env("HOME")`)), Options{Dir: dir}); !diags.HasErrors() || !strings.Contains(diags[0].Detail, "-allow-host-functions") {
		t.Errorf("env without leave: %v", diags)
	}
}

func TestConfigMayReferToVariables(t *testing.T) {
	j := mustParse(t, `variable "net" { default = "10.42.0.0/24" }
locals { up = upper("a") }
job "x" {
  command = ["/bin/true"]
  network "netbridge" {
    config {
      subnet = "${var.net}${local.up}"
    }
  }
}`, Options{})
	attrs, diags := j.Network.Config.JustAttributes()
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	v, diags := attrs["subnet"].Expr.Value(j.EvalContext())
	if diags.HasErrors() || v.AsString() != "10.42.0.0/24A" {
		t.Errorf("%#v, %v", v, diags)
	}
	if mustParse(t, hello, Options{}).EvalContext() != nil {
		t.Error("a job without a config body pays for a context")
	}
}
