package conformance

import (
	"encoding/json"
	"fmt"

	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// Body is the body of a config block. It is given the plugin's schema and makes what
// travels; an error is a mistake of whoever wrote it.
type Body interface {
	Encode(b *config.Block) ([]byte, error)
}

// Values is a Body in Go: attributes by name; a block is a map, several are a slice of
// maps, and those with a label a map of maps.
type Values map[string]any

// Encode checks the values against the schema, as a host does.
func (v Values) Encode(b *config.Block) ([]byte, error) {
	if b == nil {
		b = &config.Block{}
	}
	if v == nil {
		v = Values{}
	}
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	val, err := ctyjson.Unmarshal(text, b.Type())
	if err != nil {
		return nil, err
	}
	val = complete(b, val)
	for _, d := range b.Check(val) {
		if d.Severity == errs.Fault {
			return nil, fmt.Errorf("%s: %s: %s", d.Path, d.Summary, d.Detail)
		}
	}
	return b.Marshal(val)
}

// complete does what decoding HCL does: defaults, and no null where blocks may stand.
func complete(b *config.Block, v cty.Value) cty.Value {
	if v.IsNull() {
		return v
	}
	out := v.AsValueMap()
	if out == nil {
		out = map[string]cty.Value{}
	}
	for _, a := range b.Attrs {
		if out[a.Name].IsNull() && len(a.Default) > 0 {
			if d, err := ctyjson.Unmarshal(a.Default, a.Type); err == nil { // another rule's business
				out[a.Name] = d
			}
		}
	}
	for _, n := range b.Blocks {
		t := n.Block.Type()
		switch x := out[n.Type]; {
		case n.Nesting == config.List && x.IsNull():
			out[n.Type] = cty.ListValEmpty(t)
		case n.Nesting == config.Map && x.IsNull():
			out[n.Type] = cty.MapValEmpty(t)
		case x.IsNull():
		case n.Nesting == config.Single:
			out[n.Type] = complete(&n.Block, x)
		case x.LengthInt() == 0:
		case n.Nesting == config.List:
			var l []cty.Value
			for it := x.ElementIterator(); it.Next(); {
				_, e := it.Element()
				l = append(l, complete(&n.Block, e))
			}
			out[n.Type] = cty.ListVal(l)
		default:
			m := map[string]cty.Value{}
			for it := x.ElementIterator(); it.Next(); {
				key, e := it.Element()
				m[key.AsString()] = complete(&n.Block, e)
			}
			out[n.Type] = cty.MapVal(m)
		}
	}
	return cty.ObjectVal(out)
}

// sensitive gives the texts of a body that must not be seen anywhere.
func sensitive(b *config.Block, v cty.Value) []string {
	if b == nil || v.IsNull() {
		return nil
	}
	var out []string
	for _, a := range b.Attrs {
		if a.Sensitive {
			out = append(out, texts(v.GetAttr(a.Name))...)
		}
	}
	for _, n := range b.Blocks {
		x := v.GetAttr(n.Type)
		if x.IsNull() {
			continue
		}
		if n.Nesting == config.Single {
			out = append(out, sensitive(&n.Block, x)...)
			continue
		}
		for it := x.ElementIterator(); it.Next(); {
			_, e := it.Element()
			out = append(out, sensitive(&n.Block, e)...)
		}
	}
	return out
}

func texts(v cty.Value) []string {
	switch {
	case v.IsNull():
		return nil
	case v.Type() == cty.String:
		return []string{v.AsString()}
	case v.CanIterateElements():
		var out []string
		for it := v.ElementIterator(); it.Next(); {
			_, e := it.Element()
			out = append(out, texts(e)...)
		}
		return out
	}
	return nil
}
