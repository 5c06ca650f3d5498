package hostconfig

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/job"
)

const digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

func TestParse(t *testing.T) {
	c, diags := Parse("/etc/nucleus/nucleus.hcl", []byte(`
plugin_dirs   = ["/usr/local/libexec/nucleus/plugins", "/opt/plugins/"]
state_root    = "/run/nucleus"
cgroup_parent = "/nucleus.slice"
log           = "journald:/run/systemd/journal.jobs/socket"

plugin "acme-vlan" {
  path      = "acme-vlan"
  sha256    = ["`+digest+`", "sha256:`+digest+`"]
  allow     = ["network", "hooks:FS"]
  keep_warm = "10m"
  user      = "nucleus-plug"
  caps      = ["net_admin"]
  env       = { HTTPS_PROXY = "http://proxy:3128" }
  writable  = ["/var/lib/acme/", "/dev/tpmrm0"]
  network   = true
  memory    = "512MiB"
  config {
    bridge = upper("nucleus0")
  }
}
plugin "netbridge" {
  sha256    = "`+digest+`"
  keep_warm = 0
}
audit { file = "/var/log/nucleus/audit.jsonl" }
defaults {
  mode   = "strict-agent"
  memory = "512MiB"
  cpus   = 2
  pids   = 512
}
`))
	if len(diags) > 0 {
		t.Fatal(diags)
	}
	p, ok := c.Plugin("acme-vlan")
	if !ok {
		t.Fatal("no plugin")
	}
	attrs, _ := p.Config.JustAttributes()
	if v, diags := attrs["bridge"].Expr.Value(c.EvalContext()); diags.HasErrors() || v.AsString() != "NUCLEUS0" {
		t.Errorf("config: %v, %v", v, diags)
	}
	p.Config = nil
	want := Plugin{
		Name: "acme-vlan", Path: "acme-vlan", SHA256: []string{digest, digest}, Allow: []string{"network", "hooks:FS"},
		KeepWarm: 10 * time.Minute, User: "nucleus-plug", Caps: []string{"CAP_NET_ADMIN"}, Env: map[string]string{"HTTPS_PROXY": "http://proxy:3128"},
		Writable: []string{"/var/lib/acme", "/dev/tpmrm0"}, Network: true, Memory: 512 << 20,
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("plugin %+v\nwant   %+v", p, want)
	}
	bridge, _ := c.Plugin("netbridge")
	if bridge.Path != "nucleus-plugin-netbridge" || len(bridge.SHA256) != 1 || bridge.Caps != nil || bridge.KeepWarm != 0 || bridge.Writable != nil || bridge.Network || bridge.Memory != 0 {
		t.Errorf("plugin %+v", bridge)
	}
	if _, ok := c.Plugin("other"); ok {
		t.Error("a plugin that is not there")
	}
	if !reflect.DeepEqual(c.PluginDirs, []string{"/usr/local/libexec/nucleus/plugins", "/opt/plugins"}) || c.StateRoot != "/run/nucleus" ||
		c.CgroupParent != "/nucleus.slice" || c.Journal != "/run/systemd/journal.jobs/socket" || c.Audit.File != "/var/log/nucleus/audit.jsonl" {
		t.Errorf("%+v", c)
	}
	j, diags := job.FromOptions(job.Options{Command: []string{"/bin/true"}, Dir: "/w", Defaults: c.Defaults})
	if diags.HasErrors() || j.Mode != job.ModeStrictAgent || *j.Resources.Memory != 512<<20 || *j.Resources.Pids != 512 {
		t.Errorf("defaults: %+v, %v", j, diags)
	}
	if w := j.Where("resources.memory"); w != "/etc/nucleus/nucleus.hcl:29,3" {
		t.Errorf("default of memory is from %q", w)
	}
}

func TestEmptyFile(t *testing.T) {
	c, diags := Parse("x", nil)
	if c == nil || len(diags) > 0 || c.Audit != nil || c.PluginDirs != nil {
		t.Errorf("%+v, %v", c, diags)
	}
}

func TestDiagnostics(t *testing.T) {
	for src, want := range map[string]string{
		"plugin_dir = []\n":                                          `1,1 Unknown attribute: Did you mean "plugin_dirs"?`,
		"job \"x\" {\n}\n":                                           "1,1 Unknown block: nucleus run -config",
		"plugin_dirs = [\"plugins\"]\n":                              "1,16 Path not absolute",
		"plugin_dirs = [\"/\"]\n":                                    "1,16 Path not absolute",
		"plugin_dirs = [\"/a\", \"/a/\"]\n":                          "1,22 Directory given twice",
		"log = \"syslog\"\n":                                         "1,7 Unknown log",
		"log = \"journald:socket\"\n":                                "1,7 Unknown log",
		"state_root = \"/run/../x\"\n":                               "1,14 Path not absolute",
		"audit {}\n":                                                 `1,1 Missing file: write file = "/var/log`,
		"plugin \"A\" {}\n":                                          `1,8 Not a valid name: Write "a"`,
		"plugin \"a\" {}\nplugin \"a\" {}\n":                         "2,1 Duplicate plugin block",
		"plugin \"a\" {\n path = \"../a\"\n}\n":                      "2,9 Not a file name",
		"plugin \"a\" {\n path = \"..\"\n}\n":                        "2,9 Not a file name",
		"plugin \"a\" {\n sha256 = \"abc\"\n}\n":                     "2,11 Not a digest",
		"plugin \"a\" {\n sha256 = [\"" + digest + "\", \"x\"]\n}\n": "2,80 Not a digest",
		"plugin \"a\" {\n sha256 = []\n}\n":                          "2,11 Empty list",
		"plugin \"a\" {\n allow = [\"netwrk\"]\n}\n":                 `2,11 Unknown service: Did you mean "network"?`,
		"plugin \"a\" {\n allow = [\"network:FS\"]\n}\n":             `2,11 Service without phases: write "network"`,
		"plugin \"a\" {\n allow = [\"hooks:fs\"]\n}\n":               `2,11 Unknown phase: Did you mean "FS"?`,
		"plugin \"a\" {\n keep_warm = \"forever\"\n}\n":              "2,14 Not a duration",
		"plugin \"a\" {\n keep_warm = 10\n}\n":                       `2,14 Wrong type: keep_warm = "10s"`,
		"plugin \"a\" {\n user = \"a b\"\n}\n":                       "2,9 Not a user",
		"plugin \"a\" {\n caps = [\"NET_ADMN\"]\n}\n":                `2,10 Unknown capability: Did you mean "CAP_NET_ADMIN"?`,
		"plugin \"a\" {\n env = { LD_PRELOAD = \"x\" }\n}\n":         "2,10 Loader variable refused",
		"plugin \"a\" {\n writable = [\"lib\"]\n}\n":                 "2,14 Path not absolute",
		"plugin \"a\" {\n writable = [\"/\"]\n}\n":                   `2,14 Path not absolute: below "/"`,
		"plugin \"a\" {\n writable = [\"/a\", \"/a/\"]\n}\n":         "2,20 Path given twice",
		"plugin \"a\" {\n writable = \"/a\"\n}\n":                    `2,13 Wrong type`,
		"plugin \"a\" {\n network = \"yes\"\n}\n":                    "2,12 Wrong type",
		"plugin \"a\" {\n memory = \"1KiB\"\n}\n":                    "2,11 Size too small",
		"plugin \"a\" {\n capabilities = []\n}\n":                    "2,2 Unknown attribute: caps",
		"defaults {\n mode = \"prod\"\n}\n":                          `2,9 Unknown value: "production"`,
		"defaults {\n memory = \"1KiB\"\n}\n":                        "2,11 Size too small",
		"plugin \"a\" {\n config {\n  a = b\n }\n}\n":                "3,7 Unknown name",
		"state_root = \"${var.x}\"\n":                                "1,17 Unknown variable",
		"state_root = file(\"/x\")\n":                                "1,14 Error in function call",
		"a = [\n":                                                    "",
	} {
		c, diags := Parse("n.hcl", []byte(src))
		if c != nil || len(diags) == 0 {
			t.Errorf("%q: %+v, %v", src, c, diags)
			continue
		}
		d := diags[0]
		text := fmt.Sprintf("%d,%d %s", d.Subject.Start.Line, d.Subject.Start.Column, d.Summary)
		head, tail, _ := strings.Cut(want, ": ")
		if !strings.HasPrefix(text, head) || !strings.Contains(d.Detail, tail) {
			t.Errorf("%q: %s: %s\nwant %s", src, text, d.Detail, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("plugin \"a\" {\n sha256 = [\"" + digest + "\"]\n config {\n a = 1\n }\n}\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		if c, diags := Parse("n.hcl", src); (c == nil) != diags.HasErrors() {
			t.Fatalf("%v with %v", c, diags)
		}
	})
}
