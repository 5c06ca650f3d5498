package hclread

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// Value is what an attribute holds. Its methods convert it and report what
// does not fit; they return false if they did.
type Value struct {
	Path string
	Expr hclsyntax.Expression
	Cty  cty.Value

	r      *Reader
	at     *hcl.Range // of an element, if it has one of its own
	failed bool
}

func (v Value) null() bool { return !v.failed && v.Cty.IsNull() }

// Range is where the value stands.
func (v Value) Range() hcl.Range {
	if v.at != nil {
		return *v.at
	}
	return v.Expr.Range()
}

// Error reports what is wrong with the value.
func (v Value) Error(summary, detail string) { v.r.Error(v.Range(), summary, detail) }

// Warn reports what is risky about the value.
func (v Value) Warn(summary, detail string) { v.r.Warn(v.Range(), summary, detail) }

// name is the attribute's, for messages.
func (v Value) name() string {
	if i := strings.LastIndexByte(v.Path, '.'); i >= 0 {
		return v.Path[i+1:]
	}
	return v.Path
}

// What HCL shows of a value of the wrong type.
func shape(c cty.Value) string {
	if c.IsNull() {
		return "null"
	}
	switch ty := c.Type(); {
	case ty == cty.String:
		return "a string"
	case ty == cty.Number:
		return "a number"
	case ty == cty.Bool:
		return "true or false"
	case ty.IsTupleType(), ty.IsListType(), ty.IsSetType():
		return "a list"
	default:
		return "an object"
	}
}

func (v Value) wrongType(want, write string) {
	v.Error("Wrong type", fmt.Sprintf("%s takes %s, not %s: write %s.", v.name(), want, shape(v.Cty), write))
}

// String returns text. Numbers and booleans are written out as HCL does.
func (v Value) String() (string, bool) {
	s, ok := text(v.Cty)
	if !ok {
		v.wrongType("text", fmt.Sprintf("%s = \"...\"", v.name()))
	}
	return s, ok
}

func text(c cty.Value) (string, bool) {
	if c.IsNull() {
		return "", false
	}
	switch c.Type() {
	case cty.String:
		return c.AsString(), true
	case cty.Number:
		f := c.AsBigFloat()
		if n, exact := f.Int64(); exact == big.Exact {
			return strconv.FormatInt(n, 10), true // a hundred times faster
		}
		return f.Text('f', -1), true
	case cty.Bool:
		if c.True() {
			return "true", true
		}
		return "false", true
	}
	return "", false
}

// Quoted returns text that must have been written as text: 0022 without
// quotes is the number 22.
func (v Value) Quoted(example string) (string, bool) {
	if v.Cty.IsNull() || v.Cty.Type() != cty.String {
		v.wrongType("text in quotes", fmt.Sprintf("%s = %q", v.name(), example))
		return "", false
	}
	return v.Cty.AsString(), true
}

// Bool returns true or false.
func (v Value) Bool() (bool, bool) {
	if v.Cty.IsNull() || v.Cty.Type() != cty.Bool {
		v.wrongType("true or false", v.name()+" = true, without quotes")
		return false, false
	}
	return v.Cty.True(), true
}

// Int returns a whole number in the given range, its ends included.
func (v Value) Int(low, high int64) (int64, bool) {
	if v.Cty.IsNull() || v.Cty.Type() != cty.Number {
		example := strconv.FormatInt(low, 10)
		if s, ok := text(v.Cty); ok && allDigits(s) {
			example = s
		}
		v.wrongType("a number", fmt.Sprintf("%s = %s, without quotes", v.name(), example))
		return 0, false
	}
	f := v.Cty.AsBigFloat()
	n, acc := f.Int64()
	if !f.IsInt() || acc != big.Exact || n < low || n > high {
		v.Error("Number out of range", fmt.Sprintf("%s takes a whole number from %d to %d.", v.name(), low, high))
		return 0, false
	}
	return n, true
}

// Float returns a number in the given range, its ends included.
func (v Value) Float(low, high float64) (float64, bool) {
	if v.Cty.IsNull() || v.Cty.Type() != cty.Number {
		v.wrongType("a number", v.name()+" = 1.5, without quotes")
		return 0, false
	}
	f, _ := v.Cty.AsBigFloat().Float64()
	if f < low || f > high {
		v.Error("Number out of range", fmt.Sprintf("%s takes a number from %g to %g.", v.name(), low, high))
		return 0, false
	}
	return f, true
}

// Enum returns one of the options.
func (v Value) Enum(options ...string) (string, bool) {
	s, ok := v.String()
	if !ok {
		return "", false
	}
	for _, o := range options {
		if s == o {
			return s, true
		}
	}
	detail := fmt.Sprintf("%s takes %s, not %s.", v.name(), or(options), Quote(s))
	if near := Suggest(s, options); near != "" {
		detail += fmt.Sprintf(" Did you mean %q?", near)
	}
	v.Error("Unknown value", detail)
	return "", false
}

func or(options []string) string {
	return strings.Replace(List(options), " and ", " or ", 1)
}

// Duration returns a length of time between low and high, in Go's syntax.
func (v Value) Duration(low, high time.Duration) (time.Duration, bool) {
	if v.Cty.IsNull() || v.Cty.Type() != cty.String {
		v.wrongType("a duration", v.name()+` = "10s"`)
		return 0, false
	}
	d, err := time.ParseDuration(v.Cty.AsString())
	switch {
	case err != nil:
		v.Error("Not a duration", fmt.Sprintf("%s is no duration: write a number and a unit, for instance \"500ms\", \"10s\", \"5m\" or \"1h30m\".", Quote(v.Cty.AsString())))
	case d < low && low == 0:
		v.Error("Negative duration", fmt.Sprintf("%s is not negative: write %s = \"0s\" or more.", v.name(), v.name()))
	case d < low:
		v.Error("Duration too short", fmt.Sprintf("%s takes at least %s.", v.name(), low))
	case d > high:
		v.Error("Duration too long", fmt.Sprintf("%s takes at most %s.", v.name(), high))
	default:
		return d, true
	}
	return 0, false
}

// Size returns a number of bytes of at least low.
func (v Value) Size(low int64) (int64, bool) {
	var n int64
	var err error
	switch {
	case !v.Cty.IsNull() && v.Cty.Type() == cty.Number:
		n, err = sizeOfNumber(v.Cty.AsBigFloat())
	case !v.Cty.IsNull() && v.Cty.Type() == cty.String:
		n, err = ParseSize(v.Cty.AsString())
	default:
		v.wrongType("a size", v.name()+` = "512MiB"`)
		return 0, false
	}
	if err != nil {
		v.Error("Not a size", upperFirst(err.Error())+".")
		return 0, false
	}
	if n < low {
		v.Error("Size too small", fmt.Sprintf("%s takes at least %s.", v.name(), FormatSize(low)))
		return 0, false
	}
	return n, true
}

const maxElements = 1 << 16

// Elements returns the elements of a list, each with its own place if it is
// written out.
func (v Value) Elements() ([]Value, bool) {
	ty := v.Cty.Type()
	if v.Cty.IsNull() || !ty.IsTupleType() && !ty.IsListType() && !ty.IsSetType() {
		v.wrongType("a list", v.name()+` = ["..."]`)
		return nil, false
	}
	if n := v.Cty.LengthInt(); n > maxElements {
		v.Error("List too long", fmt.Sprintf("%s has %d elements, at most %d are read. Pass so much data in a file.", v.name(), n, maxElements))
		return nil, false
	}
	var exprs []hclsyntax.Expression
	if t, ok := unwrap(v.Expr).(*hclsyntax.TupleConsExpr); ok {
		exprs = t.Exprs
	}
	out := make([]Value, 0, v.Cty.LengthInt())
	i := 0
	for it := v.Cty.ElementIterator(); it.Next(); i++ {
		_, c := it.Element()
		e := Value{r: v.r, Path: v.Path, Expr: v.Expr, Cty: c}
		if i < len(exprs) {
			at := exprs[i].Range()
			e.at = &at
		}
		out = append(out, e)
	}
	return out, true
}

// Strings returns a list of texts.
func (v Value) Strings() ([]string, bool) {
	es, ok := v.Elements()
	if !ok {
		return nil, false
	}
	out := make([]string, 0, len(es))
	for _, e := range es {
		s, isText := text(e.Cty)
		if !isText {
			e.Error("Wrong type", fmt.Sprintf("Each element of %s is text, not %s: write it in quotes.", v.name(), shape(e.Cty)))
			ok = false
			continue
		}
		out = append(out, s)
	}
	return out, ok
}

// Entry is one key of a map with its value.
type Entry struct {
	Key      string
	KeyRange hcl.Range
	Value    Value
}

// Entries returns the entries of a map or object, in the order of the keys.
func (v Value) Entries() ([]Entry, bool) {
	ty := v.Cty.Type()
	if v.Cty.IsNull() || !ty.IsObjectType() && !ty.IsMapType() {
		v.wrongType("a map", v.name()+` = { NAME = "..." }`)
		return nil, false
	}
	keys := map[string]hcl.Range{}
	values := map[string]hcl.Range{}
	if o, ok := unwrap(v.Expr).(*hclsyntax.ObjectConsExpr); ok {
		for _, item := range o.Items {
			k, diags := item.KeyExpr.Value(nil)
			if diags.HasErrors() || k.IsNull() || !k.IsKnown() || k.Type() != cty.String {
				continue
			}
			keys[k.AsString()], values[k.AsString()] = item.KeyExpr.Range(), item.ValueExpr.Range()
		}
	}
	var out []Entry
	for it := v.Cty.ElementIterator(); it.Next(); {
		k, c := it.Element()
		e := Entry{Key: k.AsString(), KeyRange: v.Range(), Value: Value{r: v.r, Path: v.Path + "." + k.AsString(), Expr: v.Expr, Cty: c}}
		if at, ok := keys[e.Key]; ok {
			e.KeyRange = at
			valueAt := values[e.Key]
			e.Value.at = &valueAt
		}
		out = append(out, e)
	}
	return out, true
}

func unwrap(e hclsyntax.Expression) hclsyntax.Expression {
	for {
		switch x := e.(type) {
		case bounded:
			e = x.Expression
		case *hclsyntax.ParenthesesExpr:
			e = x.Expression
		default:
			return e
		}
	}
}
