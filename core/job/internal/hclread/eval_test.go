package hclread

import (
	"strings"
	"testing"

	"github.com/zclconf/go-cty/cty"
)

func evaluate(t *testing.T, src string) (cty.Value, *Reader) {
	t.Helper()
	e, diags := ParseExpression("x", []byte(src))
	if diags.HasErrors() {
		t.Fatalf("%s: %v", src, diags)
	}
	r := New()
	r.DefineVariable("v", cty.StringVal("vv"), false)
	v, failed := r.Eval(&e)
	if failed != r.Diags.HasErrors() {
		t.Fatalf("%s: failed is %v with %v", src, failed, r.Diags)
	}
	return v, r
}

// TestBoundedEvaluationIsEvaluation guards against a node that changes its
// meaning when it is wrapped.
func TestBoundedEvaluationIsEvaluation(t *testing.T) {
	for _, tc := range []struct {
		src  string
		want cty.Value
	}{
		{`1 + 2 * 3`, cty.NumberIntVal(7)},
		{`-(1 - 3)`, cty.NumberIntVal(2)},
		{`!(true && false) || false`, cty.True},
		{`"${var.v}"`, cty.StringVal("vv")},
		{`"a${var.v}b"`, cty.StringVal("avvb")},
		{`"${1}"`, cty.NumberIntVal(1)},
		{`"%{if true}a%{else}b%{endif}"`, cty.StringVal("a")},
		{`"%{for x in [1, 2]}${x},%{endfor}"`, cty.StringVal("1,2,")},
		{`true ? 1 : 2`, cty.NumberIntVal(1)},
		{`[1, 2][1]`, cty.NumberIntVal(2)},
		{`{ a = 1 }.a`, cty.NumberIntVal(1)},
		{`{ a = 1 }["a"]`, cty.NumberIntVal(1)},
		{`{ (var.v) = 1 }["vv"]`, cty.NumberIntVal(1)},
		{`{ "${var.v}x" = 1 }["vvx"]`, cty.NumberIntVal(1)},
		{`{ true = 1 }["true"]`, cty.NumberIntVal(1)},
		{`[{ a = 1 }, { a = 2 }][*].a`, cty.TupleVal([]cty.Value{cty.NumberIntVal(1), cty.NumberIntVal(2)})},
		{`[[1], [2]][*][0]`, cty.TupleVal([]cty.Value{cty.NumberIntVal(1), cty.NumberIntVal(2)})},
		{`[{ a = 1 }].*.a`, cty.TupleVal([]cty.Value{cty.NumberIntVal(1)})},
		{`[for i, x in ["a"]: "${i}${x}"]`, cty.TupleVal([]cty.Value{cty.StringVal("0a")})},
		{`{ for x in ["a", "b"]: x => 1 if x != "a" }`, cty.ObjectVal(map[string]cty.Value{"b": cty.NumberIntVal(1)})},
		{`{ for x in ["a", "b"]: "k" => x... }`, cty.ObjectVal(map[string]cty.Value{"k": cty.TupleVal([]cty.Value{cty.StringVal("a"), cty.StringVal("b")})})},
		{`max([1, 3, 2]...)`, cty.NumberIntVal(3)},
		{`null`, cty.NullVal(cty.DynamicPseudoType)},
	} {
		if got, r := evaluate(t, tc.src); !got.RawEquals(tc.want) {
			t.Errorf("%s = %#v, want %#v (%v)", tc.src, got, tc.want, r.Diags)
		}
	}
}

func TestFunctions(t *testing.T) {
	for _, tc := range []struct{ src, want string }{
		{`upper("a")`, "A"},
		{`join("-", ["a", "b"], ["c"])`, "a-b-c"},
		{`replace("a.b.c", ".", "-")`, "a-b-c"},
		{`format("%s is %04d, 100%% of 2000000 %q", "x", 7, "y")`, `x is 0007, 100% of 2000000 "y"`},
		{`format("%[1]s%[1]s", "x")`, "xx"},
		{`length("häb")`, "3"},
		{`length([1, 2])`, "2"},
		{`length({ a = 1 })`, "1"},
		{`basename("/a/b.c")`, "b.c"},
		{`dirname("/a/b.c")`, "/a"},
		{`base64decode(base64encode("hi"))`, "hi"},
		{`sha256("")`, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{`jsondecode("{\"a\":[1]}").a[0]`, "1"},
		{`jsonencode({ a = [1] })`, `{"a":[1]}`},
		{`lookup({ a = "x" }, "b", "d")`, "d"},
		{`tostring(startswith("abc", "ab") && endswith("abc", "bc"))`, "true"},
		{`coalesce(null, "x")`, "x"},
		{`trimspace(" x ")`, "x"},
		{`element(split(",", "a,b"), 1)`, "b"},
		{`tostring(tonumber("12") + ceil(0.5) + floor(1.5) + abs(-1) + min(1, 2))`, "16"},
		{`join(",", keys(merge({ a = 1 }, { b = 2 })))`, "a,b"},
		{`join(",", flatten([["a"], "b"]))`, "a,b"},
		{`tostring(contains(["a"], "a"))`, "true"},
	} {
		got, r := evaluate(t, tc.src)
		if s, ok := text(got); !ok || s != tc.want {
			t.Errorf("%s = %#v, want %q (%v)", tc.src, got, tc.want, r.Diags)
		}
	}
	for _, tc := range []struct{ src, want string }{
		{`base64decode("!")`, "not base64"},
		{`base64decode("/w==")`, "not UTF-8"},
		{`length(1)`, "has a length"},
		{`format("%1025d", 1)`, "above 1024"},
		{`format("%.1025f", 1)`, "above 1024"},
		{`join(",", [null])`, "null"},
		{`env("HOME")`, "-allow-host-functions"},
		{`regex("a", "a")`, "no function"},
		{`tostring(1e5000)`, "digits"},
		{`"${1e999999999}"`, "infinite"},
		{`tostring(1e4000 * 1e4000)`, "digits"},
		{`{ a.b = 1 }`, "in quotes"},
	} {
		_, r := evaluate(t, tc.src)
		if len(r.Diags) == 0 || !strings.Contains(r.Diags[0].Detail, tc.want) {
			t.Errorf("%s: %v, want %q", tc.src, r.Diags, tc.want)
		}
	}
}

func TestSuggest(t *testing.T) {
	names := []string{"command", "cpus", "cpu_weight", "SIGTRAP", "SIGTERM", "tty"}
	for in, want := range map[string]string{
		"comand": "command", "CPUS": "cpus", "SIGTREM": "SIGTERM", "tt": "tty", "x": "", "entirely": "", "comm": "command", "cpu_weights": "cpu_weight",
	} {
		if got := Suggest(in, names); got != want {
			t.Errorf("Suggest(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestNestingOfOrdinaryFiles(t *testing.T) {
	// Long, but flat: none of it may be taken for deep.
	var b strings.Builder
	b.WriteString("a = [\n")
	for range 3000 {
		b.WriteString("  -1, \"${x} ${y} (((((\", f(1) + 2 * 3,\n")
	}
	b.WriteString("]\nb = <<EOT\n" + strings.Repeat("if (( [ { ! a - b ${c}\n", 2000) + "EOT\n")
	b.WriteString(strings.Repeat("block \"x\" {\n  a = 1 + 2\n  c {\n    d = !true\n  }\n}\n", 1000))
	if _, diags := ParseFile("x", []byte(b.String())); diags.HasErrors() {
		t.Error(diags)
	}
}
