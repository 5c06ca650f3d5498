package config_test

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

type everything struct {
	Own string // no tag: the author's own

	S  string              `hcl:"s" desc:"Text."`
	B  bool                `hcl:"b,optional" desc:"Yes or no."`
	I  int                 `hcl:"i,optional" desc:"A number." default:"-4"`
	F  float64             `hcl:"f,optional" desc:"Any number."`
	P  *int                `hcl:"p,optional" desc:"A number, or none."`
	D  time.Duration       `hcl:"d,optional" desc:"A time."`
	L  []string            `hcl:"l,optional" desc:"Texts." default:"[\"x\"]"`
	Ds []time.Duration     `hcl:"ds,optional" desc:"Times."`
	M  map[string][]uint16 `hcl:"m,optional" desc:"Ports by name."`

	One   inner    `hcl:"one,block" desc:"Exactly one."`
	Maybe *inner   `hcl:"maybe,block" desc:"At most one."`
	Fill  inner    `hcl:"fill,block,optional" desc:"At most one, with defaults."`
	Many  []inner  `hcl:"many,block" desc:"Any number." min_items:"1" max_items:"2"`
	Named []labels `hcl:"named,block" desc:"By name."`
}

type inner struct {
	N int `hcl:"n,optional" desc:"A number." default:"7"`
}

type labels struct {
	Name string `hcl:"name,label"`
	V    string `hcl:"v" desc:"Text."`
}

func schema[C any](t *testing.T) *config.Block {
	t.Helper()
	b, err := config.Of[C]()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// value fills up with nulls, as hcldec does.
func value(b *config.Block, kv map[string]cty.Value) cty.Value {
	all := map[string]cty.Value{}
	for name, at := range b.Type().AttributeTypes() {
		all[name] = cty.NullVal(at)
	}
	for k, v := range kv {
		all[k] = v
	}
	return cty.ObjectVal(all)
}

func one(n int64) cty.Value {
	return cty.ObjectVal(map[string]cty.Value{"n": cty.NumberIntVal(n)})
}

func TestEveryTypeGoesThere(t *testing.T) {
	b := schema[everything](t)
	v := value(b, map[string]cty.Value{
		"s": cty.StringVal("text"), "b": cty.True, "f": cty.NumberFloatVal(0.5), "p": cty.NumberIntVal(0), "d": cty.StringVal("90s"),
		"ds":    cty.ListVal([]cty.Value{cty.StringVal("1s"), cty.StringVal("2s")}),
		"m":     cty.MapVal(map[string]cty.Value{"web": cty.ListVal([]cty.Value{cty.NumberIntVal(80), cty.NumberIntVal(443)})}),
		"one":   one(1),
		"maybe": one(2),
		"many":  cty.ListVal([]cty.Value{one(3), cty.ObjectVal(map[string]cty.Value{"n": cty.NullVal(cty.Number)})}),
		"named": cty.MapVal(map[string]cty.Value{"z": cty.ObjectVal(map[string]cty.Value{"v": cty.StringVal("Z")}), "a": cty.ObjectVal(map[string]cty.Value{"v": cty.StringVal("A")})}),
	})
	raw, err := b.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var got everything
	err = config.To(config.Func[everything](func(_ context.Context, _ config.Instance, c everything) error {
		got = c
		return nil
	})).Configure(t.Context(), config.Instance{}, raw)
	if err != nil {
		t.Fatal(err)
	}
	zero := 0
	want := everything{
		S: "text", B: true, I: -4, F: 0.5, P: &zero, D: 90 * time.Second, L: []string{"x"}, Ds: []time.Duration{time.Second, 2 * time.Second},
		M: map[string][]uint16{"web": {80, 443}}, One: inner{1}, Maybe: &inner{2}, Fill: inner{7}, Many: []inner{{3}, {7}},
		Named: []labels{{"a", "A"}, {"z", "Z"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestNothingOfAnEarlierConfigurationStays(t *testing.T) {
	b := schema[inner2](t)
	var got []inner2
	s := config.To(config.Func[inner2](func(_ context.Context, _ config.Instance, c inner2) error {
		got = append(got, c)
		return nil
	}))
	for _, v := range []cty.Value{cty.StringVal("first"), cty.NullVal(cty.String)} {
		raw, err := b.Marshal(cty.ObjectVal(map[string]cty.Value{"a": v}))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Configure(t.Context(), config.Instance{}, raw); err != nil {
			t.Fatal(err)
		}
	}
	if want := []inner2{{"first"}, {""}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

type inner2 struct {
	A string `hcl:"a,optional" desc:"Text."`
}

func TestTagsThatAreWrong(t *testing.T) {
	for want, derive := range map[string]func() (*config.Block, error){
		"is no struct": config.Of[int],
		"it has no desc": config.Of[struct {
			A string `hcl:"a"`
		}],
		`unknown option "label2"`: config.Of[struct {
			A string `hcl:"a,label2" desc:"x"`
		}],
		`the name "A-b" is not in lower case`: config.Of[struct {
			A string `hcl:"A-b" desc:"x"`
		}],
		`the name "a" is there twice`: config.Of[struct {
			A string `hcl:"a" desc:"x"`
			B string `hcl:"a" desc:"x"`
		}],
		"must be exported": config.Of[struct {
			a string `hcl:"a" desc:"x"`
		}],
		"chan int can't be written": config.Of[struct {
			A chan int `hcl:"a" desc:"x"`
		}],
		"the keys of a map are strings": config.Of[struct {
			A map[int]string `hcl:"a" desc:"x"`
		}],
		"only a block within has a label": config.Of[struct {
			A string `hcl:"a,label"`
		}],
		"make it a slice": config.Of[struct {
			A *labels `hcl:"a,block" desc:"x"`
		}],
		"a block is a struct": config.Of[struct {
			A string `hcl:"a,block" desc:"x"`
		}],
		"what has a default is optional": config.Of[struct {
			A string `hcl:"a" desc:"x" default:"y"`
		}],
		`default "many"`: config.Of[struct {
			A int `hcl:"a,optional" desc:"x" default:"many"`
		}],
		`default "c": Unknown value`: config.Of[struct {
			A string `hcl:"a,optional" desc:"x" enum:"a,b" default:"c"`
		}],
		"enum, pattern and format are for text": config.Of[struct {
			A int `hcl:"a" desc:"x" enum:"1,2"`
		}],
		"min and max are for numbers": config.Of[struct {
			A string `hcl:"a" desc:"x" min:"1"`
		}],
		`unknown format "mac"`: config.Of[struct {
			A string `hcl:"a" desc:"x" format:"mac"`
		}],
		"missing closing": config.Of[struct {
			A string `hcl:"a" desc:"x" pattern:"("`
		}],
		"sensitive is true or false": config.Of[struct {
			A string `hcl:"a" desc:"x" sensitive:"very"`
		}],
		`max_items "few" is no number`: config.Of[struct {
			A []inner `hcl:"a,block" desc:"x" max_items:"few"`
		}],
	} {
		t.Run(want, func(t *testing.T) {
			if _, err := derive(); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestConstraints(t *testing.T) {
	f := func(format config.Format) config.Constraint { return config.Constraint{Format: format} }
	nine := 9.0
	s := cty.StringVal
	for _, tc := range []struct {
		name string
		c    config.Constraint
		good []cty.Value
		bad  []cty.Value
	}{
		{"cidr", f(config.CIDR), []cty.Value{s("10.0.0.0/8"), s("::/0")}, []cty.Value{s("10.0.0.0"), s("x/8"), s("")}},
		{"ip", f(config.IP), []cty.Value{s("10.0.0.1"), s("::1")}, []cty.Value{s("10.0.0"), s("10.0.0.1/8")}},
		{"duration", f(config.Duration), []cty.Value{s("1m30s"), s("0s")}, []cty.Value{s("1"), s("soon")}},
		{"bytes", f(config.Bytes), []cty.Value{s("64MiB"), s("64M"), s("10")}, []cty.Value{s("MiB"), s("1.5G"), s("-1")}},
		{"absolute path", f(config.AbsPath), []cty.Value{s("/"), s("/etc/app")}, []cty.Value{s("etc"), s("/etc/../root"), s("/etc/"), s("/a\x00b")}},
		{"enum", config.Constraint{Enum: []string{"a", "b"}}, []cty.Value{s("a")}, []cty.Value{s("c"), s("")}},
		{"the pattern is of the whole value", config.Constraint{Pattern: "a|b"}, []cty.Value{s("a"), s("b")}, []cty.Value{s("ab"), s("xa"), s("a\n")}},
		{"at most", config.Constraint{Max: &nine}, []cty.Value{cty.NumberIntVal(9)}, []cty.Value{cty.NumberFloatVal(9.1), cty.PositiveInfinity}},
		{"at least", config.Constraint{Min: &nine}, []cty.Value{cty.NumberIntVal(9)}, []cty.Value{cty.NumberFloatVal(8.9)}},
		{"each element", config.Constraint{Enum: []string{"a"}}, []cty.Value{cty.ListVal([]cty.Value{s("a")})}, []cty.Value{cty.ListVal([]cty.Value{s("a"), s("b")}), cty.MapVal(map[string]cty.Value{"k": s("b")}), cty.ListVal([]cty.Value{cty.NullVal(cty.String)})}},
		{"what is not known", config.Constraint{}, nil, []cty.Value{cty.UnknownVal(cty.String)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for i, v := range append(append([]cty.Value{}, tc.good...), tc.bad...) {
				b := &config.Block{Attrs: []config.Attr{{Name: "x", Type: v.Type(), Constraint: tc.c}}}
				ds := b.Check(cty.ObjectVal(map[string]cty.Value{"x": v}))
				if want := i >= len(tc.good); (len(ds) > 0) != want {
					t.Errorf("%#v: %v", v, ds)
				}
			}
		})
	}
}

func TestNumbersOfBlocks(t *testing.T) {
	b := schema[everything](t)
	base := func() map[string]cty.Value {
		return map[string]cty.Value{"s": cty.StringVal(""), "one": one(1), "many": cty.ListVal([]cty.Value{one(1)})}
	}
	for _, tc := range []struct {
		name string
		mod  func(m map[string]cty.Value)
		want string
	}{
		{"as they should be", func(map[string]cty.Value) {}, ""},
		{"none of exactly one", func(m map[string]cty.Value) { delete(m, "one") }, "one"},
		{"none of at least one", func(m map[string]cty.Value) { delete(m, "many") }, "many"},
		{"an empty list of at least one", func(m map[string]cty.Value) {
			m["many"] = cty.ListValEmpty(b.Type().AttributeType("many").ElementType())
		}, "many"},
		{"three of at most two", func(m map[string]cty.Value) { m["many"] = cty.ListVal([]cty.Value{one(1), one(2), one(3)}) }, "many"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := base()
			tc.mod(m)
			var got []string
			for _, d := range b.Check(value(b, m)) {
				got = append(got, d.Path.String())
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("faults at %q, want %q", got, tc.want)
			}
		})
	}
}

func TestSensitiveValuesAreNotShown(t *testing.T) {
	type c struct {
		Token string `hcl:"token" desc:"A secret." sensitive:"true" pattern:"[0-9]+"`
		Plain string `hcl:"plain" desc:"None." pattern:"[0-9]+"`
	}
	ds := schema[c](t).Check(cty.ObjectVal(map[string]cty.Value{"token": cty.StringVal("hunter2"), "plain": cty.StringVal("visible")}))
	if len(ds) != 2 || strings.Contains(ds[0].Summary+ds[0].Detail, "hunter2") || !strings.Contains(ds[1].Detail, "visible") {
		t.Errorf("got %+v", ds)
	}
}

func TestPathsGetTheSchemasKinds(t *testing.T) {
	b := schema[everything](t)
	for want, p := range map[string]errs.Steps{
		"attr l, index 1":                    errs.Path("l", 1),
		"block many, index 0, attr n":        errs.Path("many", 0, "n"),
		"block named, key a, attr v":         errs.Path("named", errs.MapKey("a"), "v"),
		"block one":                          errs.Path("one"),
		"block nowhere, attr x":              errs.Path("nowhere", "x"),
		"block maybe, block further, attr x": errs.Path("maybe", "further", "x"),
	} {
		var got []string
		for _, s := range b.Resolve(p) {
			switch s.Kind {
			case errs.Index:
				got = append(got, "index "+string(rune('0'+s.Index)))
			default:
				got = append(got, map[errs.StepKind]string{errs.Attr: "attr ", errs.Block: "block ", errs.Key: "key "}[s.Kind]+s.Name)
			}
		}
		if g := strings.Join(got, ", "); g != want {
			t.Errorf("got %s, want %s", g, want)
		}
	}
}

type typed struct{ got chan inner }

func (p *typed) Configure(_ context.Context, _ config.Instance, c inner) error {
	p.got <- c
	return nil
}

func TestAMethodSaysItsType(t *testing.T) {
	p := &typed{make(chan inner, 1)}
	if err := config.To(p).Configure(t.Context(), config.Instance{}, nil); err != nil {
		t.Fatal(err)
	}
	if got := <-p.got; got.N != 7 {
		t.Errorf("got %+v", got)
	}
}
