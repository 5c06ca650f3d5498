package pluginhost

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/msgpack"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

func number(f float64) *float64 { return &f }

var vlan = &config.Block{
	Attrs: []config.Attr{
		{Name: "mtu", Type: cty.Number, Default: []byte("1500"), Constraint: config.Constraint{Min: number(576), Max: number(9000)}},
		{Name: "parent", Type: cty.String, Required: true},
		{Name: "mode", Type: cty.String, Constraint: config.Constraint{Enum: []string{"bridge", "private"}}},
	},
	Blocks: []config.Nested{
		{Type: "route", Nesting: config.List, Block: config.Block{Attrs: []config.Attr{
			{Name: "dst", Type: cty.String, Required: true, Constraint: config.Constraint{Format: config.CIDR}},
			{Name: "via", Type: cty.String},
		}}},
		{Type: "peer", Nesting: config.Map, Block: config.Block{Attrs: []config.Attr{{Name: "key", Type: cty.String, Required: true}}}},
	},
}

func body(t *testing.T, src string) hcl.Body {
	t.Helper()
	f, diags := hclparse.NewParser().ParseHCL([]byte(src), "job.hcl")
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return f.Body
}

func TestDecode(t *testing.T) {
	s, err := NewSchema(vlan)
	if err != nil {
		t.Fatal(err)
	}
	b, diags := s.Decode(body(t, `parent = "eth0"
route { dst = "10.0.0.0/8" }
peer "a" { key = "k" }
`), nil)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	v, err := msgpack.Unmarshal(b, vlan.Type())
	if err != nil {
		t.Fatal(err)
	}
	if got := v.GetAttr("mtu"); got.RawEquals(cty.NumberIntVal(1500)) == false {
		t.Errorf("mtu %#v, want its default", got)
	}
	if got := v.GetAttr("mode"); !got.IsNull() {
		t.Errorf("mode %#v, want null", got)
	}
	if got := v.GetAttr("peer").Index(cty.StringVal("a")).GetAttr("key"); got.AsString() != "k" {
		t.Errorf("key %#v", got)
	}
}

// Each mistake is shown where it stands.
func TestDecodeTellsTheLine(t *testing.T) {
	s, err := NewSchema(vlan)
	if err != nil {
		t.Fatal(err)
	}
	for src, want := range map[string]string{
		"parent = \"eth0\"\nbogus = true\n":      "2,1 Unsupported argument",
		"mtu = 1400\n":                           "1,1 Missing required argument",
		"parent = \"eth0\"\nmtu = \"many\"\n":    "2,7 Incorrect attribute value type",
		"parent = \"eth0\"\nmtu = 100\n":         "2,7 ",
		"parent = \"eth0\"\n\nmode = \"open\"\n": "3,8 ",
		"parent = \"eth0\"\nroute {\n dst = \"10.0.0.0/8\"\n}\nroute {\n dst = \"here\"\n}\n": "6,8 ",
		"parent = \"eth0\"\nroute {\n via = \"x\"\n}\n":                                       "2,7 Missing required argument",
	} {
		_, diags := s.Decode(body(t, src), nil)
		var got []string
		for _, d := range diags {
			got = append(got, fmt.Sprintf("%d,%d %s", d.Subject.Start.Line, d.Subject.Start.Column, d.Summary))
		}
		if !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("%q: %q, want %q", src, got, want)
		}
	}
}

func TestLocate(t *testing.T) {
	s, err := NewSchema(vlan)
	if err != nil {
		t.Fatal(err)
	}
	b := body(t, "parent = \"eth0\"\nroute {\n dst = \"a\"\n}\nroute {\n dst = \"b\"\n}\npeer \"x\" {\n key = \"k\"\n}\n")
	for _, c := range []struct {
		path errs.Steps
		line int
	}{
		{errs.Path("parent"), 1},
		{errs.Path("route", 1, "dst"), 6},
		{errs.Path("route", 1, "via"), 5},
		{errs.Path("peer", errs.MapKey("x"), "key"), 9},
		{errs.Path("nowhere", 3, "x"), b.MissingItemRange().Start.Line},
		{errs.Path("route", 7, "dst"), b.MissingItemRange().Start.Line},
		{errs.Path("peer", errs.MapKey("y"), "key"), b.MissingItemRange().Start.Line},
		{nil, b.MissingItemRange().Start.Line},
	} {
		if got := s.Locate(b, c.path); got.Start.Line != c.line {
			t.Errorf("%s: line %d, want %d", c.path, got.Start.Line, c.line)
		}
	}
	if got := s.Locate(nil, errs.Path("parent")); got.Start.Line != 0 {
		t.Errorf("no body: %s", got)
	}
}

// What a plugin says of itself is not trusted to make sense.
func TestNewSchemaRefuses(t *testing.T) {
	deep := config.Block{}
	for range maxDepth {
		deep = config.Block{Blocks: []config.Nested{{Type: "b", Nesting: config.List, Block: deep}}}
	}
	for name, b := range map[string]*config.Block{
		"twice":          {Attrs: []config.Attr{{Name: "a", Type: cty.String}, {Name: "a", Type: cty.String}}},
		"block too":      {Attrs: []config.Attr{{Name: "a", Type: cty.String}}, Blocks: []config.Nested{{Type: "a", Nesting: config.List}}},
		"nesting":        {Blocks: []config.Nested{{Type: "a"}}},
		"default's type": {Attrs: []config.Attr{{Name: "a", Type: cty.Number, Default: []byte(`"many"`)}}},
		"too deep":       &deep,
		"too wide":       {Attrs: make([]config.Attr, maxNames+1)},
		"no name":        {Attrs: []config.Attr{{Name: "a b", Type: cty.String}}},
		"long name":      {Blocks: []config.Nested{{Type: strings.Repeat("b", maxName+1), Nesting: config.List}}},
		"no type":        {Attrs: []config.Attr{{Name: "a"}}},
		"any type":       {Attrs: []config.Attr{{Name: "a", Type: cty.DynamicPseudoType}}},
		"no pattern":     {Attrs: []config.Attr{{Name: "a", Type: cty.String, Constraint: config.Constraint{Pattern: "(("}}}},
	} {
		if _, err := NewSchema(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
