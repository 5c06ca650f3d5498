package job

import (
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"

	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
)

const maxVariables = 1000

// given is a value for a variable from outside of the file.
type given struct {
	value cty.Value
	raw   *string // of -var: how it is read depends on the type
	at    hcl.Range
	how   string
}

func (d *decoder) variables(blocks []hclread.Block) {
	values := d.givenValues()
	names := make([]string, 0, len(blocks))
	if len(blocks) > maxVariables {
		d.r.Error(blocks[maxVariables].DefRange, "Too many variables", fmt.Sprintf("At most %d are read. Put values that belong together into one object.", maxVariables))
		blocks = blocks[:maxVariables]
	}
	for _, b := range blocks {
		names = append(names, b.Label)
		g, has := values[b.Label]
		delete(values, b.Label)
		v, ok := d.variable(b, g, has)
		d.r.DefineVariable(b.Label, v, !ok)
	}
	for _, n := range slices.Sorted(maps.Keys(values)) {
		g := values[n]
		d.r.Error(g.at, "Unknown variable", fmt.Sprintf("%s sets %s, which the job file doesn't declare.%s", g.how, hclread.Quote(n), hclread.SuggestOr(n, names)))
	}
}

// variable reads one block and returns the variable's value.
func (d *decoder) variable(b hclread.Block, g given, has bool) (cty.Value, bool) {
	if !hclsyntax.ValidIdentifier(b.Label) {
		d.r.Error(b.LabelRange, "Not a variable name", fmt.Sprintf("%s can't be written as var.NAME: use letters, digits, hyphens and underscores, a letter first.", hclread.Quote(b.Label)))
		return cty.DynamicVal, false
	}
	ty, typed, failed := cty.DynamicPseudoType, false, false
	// A type is no value: it is read as syntax and kept from the evaluation.
	body := *b.Body
	body.Attributes = maps.Clone(b.Body.Attributes)
	b.Body = &body
	if a, ok := body.Attributes["type"]; ok {
		delete(body.Attributes, "type")
		var diags hcl.Diagnostics
		ty, diags = typeexpr.TypeConstraint(a.Expr)
		if diags.HasErrors() {
			failed = true
			d.r.Error(a.Expr.Range(), "Not a type", "Write string, number, bool, list(string), map(number), object({ name = string }) or any.")
		}
		typed = !failed
	}
	def, hasDefault := cty.NilVal, false
	var validations []hclread.Block
	before := len(d.r.Diags)
	d.r.Read(b, hclread.Schema{
		Attrs: []hclread.Attr{
			{Name: "description", Read: func(v hclread.Value) { v.String() }},
			{Name: "default", Read: func(v hclread.Value) { def, hasDefault = v.Cty, true }},
			{Name: "type"},
		},
		Blocks: []hclread.Nested{{Name: "validation", Many: true, Read: func(v hclread.Block) { validations = append(validations, v) }}},
	})
	failed = failed || len(d.r.Diags) > before
	if a, ok := body.Attributes["default"]; ok {
		if !hasDefault { // null, which Read takes for not given
			def, hasDefault = cty.NullVal(ty), true
		}
		if !typed && def.Type().IsPrimitiveType() {
			ty = def.Type()
		}
		var err error
		if def, err = convert.Convert(def, ty); err != nil && !failed {
			failed = true
			d.r.Error(a.Expr.Range(), "Default of another type", fmt.Sprintf("The default is no %s: %s.", typeexpr.TypeString(ty), err))
		}
	}
	if failed {
		return cty.DynamicVal, false
	}
	value := def
	switch {
	case has:
		var ok bool
		if value, ok = d.givenValue(b.Label, g, ty); !ok {
			return cty.DynamicVal, false
		}
	case !hasDefault:
		d.r.Error(b.DefRange, "Variable without a value", fmt.Sprintf("Give it one with -var %s=VALUE or -var-file FILE, or write a default into its block.", b.Label))
		return cty.DynamicVal, false
	}
	ok := true
	for _, v := range validations {
		ok = d.validation(b.Label, value, g, has, v) && ok
	}
	return value, ok
}

func (d *decoder) givenValue(name string, g given, ty cty.Type) (cty.Value, bool) {
	v := g.value
	if g.raw != nil {
		v = cty.StringVal(*g.raw)
		if ty != cty.String && ty != cty.DynamicPseudoType {
			expr, diags := hclread.ParseExpression(commandLine, []byte(*g.raw))
			failed := diags.HasErrors()
			if !failed {
				scratch := hclread.New() // the file's names are not the command line's
				v, failed = scratch.Eval(&expr)
			}
			if failed {
				d.r.Error(g.at, "Value is no expression", fmt.Sprintf("The variable %s takes %s: write -var '%s=%s'.", hclread.Quote(name), typeexpr.TypeString(ty), name, exampleOf(ty)))
				return cty.DynamicVal, false
			}
		}
	}
	v, err := convert.Convert(v, ty)
	if err != nil {
		d.r.Error(g.at, "Value of another type", fmt.Sprintf("%s sets %s, which takes %s, for instance %s: %s.", g.how, hclread.Quote(name), typeexpr.TypeString(ty), exampleOf(ty), err))
		return cty.DynamicVal, false
	}
	return v, true
}

func exampleOf(ty cty.Type) string {
	switch {
	case ty == cty.String:
		return `"text"`
	case ty == cty.Number:
		return "8080"
	case ty == cty.Bool:
		return "true"
	case ty.IsListType(), ty.IsSetType(), ty.IsTupleType():
		return `["a", "b"]`
	default:
		return `{ key = "value" }`
	}
}

// validation checks a value by the condition that the file gives.
func (d *decoder) validation(name string, value cty.Value, g given, has bool, b hclread.Block) bool {
	r := hclread.New()
	r.DefineVariable(name, value, false)
	holds, message := true, ""
	r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "condition", Required: fmt.Sprintf("condition = var.%s != \"\"", name), Read: func(v hclread.Value) {
			holds, _ = v.Bool()
		}},
		{Name: "error_message", Required: `error_message = "..."`, Read: func(v hclread.Value) { message, _ = v.String() }},
	}})
	if r.Diags.HasErrors() {
		d.r.Add(r.Diags)
		return false
	}
	if !holds {
		at := b.DefRange
		if has && g.raw == nil {
			at = g.at
		}
		d.r.Error(at, "Variable has a wrong value", fmt.Sprintf("%s: %s", name, message))
	}
	return holds
}

// givenValues collects the values of -var-file and -var, the strongest last.
func (d *decoder) givenValues() map[string]given {
	values := map[string]given{}
	for _, f := range d.o.VarFiles {
		body, diags := hclread.ParseFile(f.Name, f.Src)
		d.r.Add(diags)
		if body == nil || diags.HasErrors() {
			continue
		}
		r := hclread.New()
		for _, b := range body.Blocks {
			r.Error(b.TypeRange, "Block in a variable file", fmt.Sprintf("A variable file holds NAME = VALUE lines only: write %s = { ... }.", b.Type))
		}
		for name, a := range body.Attributes {
			v, failed := r.Eval(&a.Expr)
			if !failed {
				values[name] = given{value: v, at: a.SrcRange, how: f.Name}
			}
		}
		d.r.Add(r.Diags)
	}
	for name, raw := range d.o.Vars {
		values[name] = given{raw: &raw, at: hcl.Range{Filename: commandLine}, how: "-var"}
	}
	return values
}
