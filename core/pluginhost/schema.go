package pluginhost

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"
	"github.com/zclconf/go-cty/cty/msgpack"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// Schema is what a plugin says of one body of its configuration. It decodes the
// body here, so that what is wrong has its line before the plugin runs.
type Schema struct {
	block *config.Block
	spec  hcldec.ObjectSpec
}

// Bounds of what a plugin may describe.
const (
	maxDepth = 16   // of blocks in blocks
	maxNames = 1000 // of attributes and blocks in all
	maxName  = 64   // bytes of one
)

// NewSchema takes a plugin's description. A nil one has no attributes.
func NewSchema(b *config.Block) (*Schema, error) {
	if b == nil {
		b = &config.Block{}
	}
	left := maxNames
	spec, err := specOf(b, maxDepth, &left)
	if err != nil {
		return nil, fmt.Errorf("configuration schema: %w", err)
	}
	return &Schema{b, spec}, nil
}

func specOf(b *config.Block, depth int, left *int) (hcldec.ObjectSpec, error) {
	if depth == 0 {
		return nil, errDeep
	}
	if *left -= len(b.Attrs) + len(b.Blocks); *left < 0 {
		return nil, errWide
	}
	out := hcldec.ObjectSpec{}
	for _, a := range b.Attrs {
		if err := checkAttr(&a); err != nil {
			return nil, fmt.Errorf("attribute %q: %w", a.Name, err)
		}
		if out[a.Name] != nil {
			return nil, fmt.Errorf("attribute %q is there twice", a.Name)
		}
		var spec hcldec.Spec = &hcldec.AttrSpec{Name: a.Name, Type: a.Type, Required: a.Required}
		if a.Default != nil {
			v, err := ctyjson.Unmarshal(a.Default, a.Type)
			if err != nil {
				return nil, fmt.Errorf("attribute %q: default: %w", a.Name, err)
			}
			spec = &hcldec.DefaultSpec{Primary: spec, Default: &hcldec.LiteralSpec{Value: v}}
		}
		out[a.Name] = spec
	}
	for _, n := range b.Blocks {
		if out[n.Type] != nil {
			return nil, fmt.Errorf("block %q is there twice", n.Type)
		}
		if err := checkName(n.Type); err != nil {
			return nil, fmt.Errorf("block %q: %w", n.Type, err)
		}
		nested, err := specOf(&n.Block, depth-1, left)
		if err != nil {
			return nil, fmt.Errorf("block %q: %w", n.Type, err)
		}
		switch n.Nesting {
		case config.Single:
			out[n.Type] = &hcldec.BlockSpec{TypeName: n.Type, Nested: nested, Required: n.Min > 0}
		case config.List:
			out[n.Type] = &hcldec.BlockListSpec{TypeName: n.Type, Nested: nested, MinItems: int(n.Min), MaxItems: int(n.Max)}
		case config.Map:
			out[n.Type] = &hcldec.BlockMapSpec{TypeName: n.Type, Nested: nested, LabelNames: []string{"name"}}
		default:
			return nil, fmt.Errorf("block %q: unknown nesting", n.Type)
		}
	}
	return out, nil
}

// checkName refuses what nobody could write, and what would be in the way of those
// who read it in a message.
func checkName(name string) error {
	if len(name) > maxName || !hclsyntax.ValidIdentifier(name) {
		return fmt.Errorf("that is no name of at most %d bytes", maxName)
	}
	return nil
}

func checkAttr(a *config.Attr) error {
	if err := checkName(a.Name); err != nil {
		return err
	}
	// An attribute that may be missing in an object has two types, one of the
	// expression and one of the value, and only one travels.
	if a.Type == cty.NilType || a.Type.HasDynamicTypes() || !a.Type.Equals(a.Type.WithoutOptionalAttributesDeep()) {
		return errors.New("its type is not fixed")
	}
	if _, err := regexp.Compile(a.Constraint.Pattern); err != nil {
		return fmt.Errorf("its pattern: %w", err)
	}
	return nil
}

// Decode reads a body into the form in which it travels to the plugin. A nil body
// is an empty one.
func (s *Schema) Decode(body hcl.Body, ctx *hcl.EvalContext) ([]byte, hcl.Diagnostics) {
	if body == nil {
		body = hcl.EmptyBody()
	}
	v, diags := hcldec.Decode(body, s.spec, ctx)
	if diags.HasErrors() {
		return nil, diags
	}
	diags = append(diags, s.Diagnose(body, s.block.Check(v))...)
	if diags.HasErrors() {
		return nil, diags
	}
	b, err := msgpack.Marshal(v, s.block.Type())
	if err != nil {
		return nil, append(diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: "Configuration can't be sent", Detail: err.Error(), Subject: body.MissingItemRange().Ptr()})
	}
	return b, diags
}

// Public gives a value as Decode made it without what is sensitive: null stands in
// its place.
func (s *Schema) Public(value []byte) ([]byte, error) {
	v, err := msgpack.Unmarshal(value, s.block.Type())
	if err != nil {
		return nil, err
	}
	return msgpack.Marshal(public(s.block, v), s.block.Type())
}

func public(b *config.Block, v cty.Value) cty.Value {
	if v.IsNull() {
		return v
	}
	m := v.AsValueMap()
	for _, a := range b.Attrs {
		if a.Sensitive {
			m[a.Name] = cty.NullVal(a.Type)
		}
	}
	for _, n := range b.Blocks {
		inner := m[n.Type]
		switch {
		case n.Nesting == config.Single:
			m[n.Type] = public(&n.Block, inner)
		case inner.IsNull() || inner.LengthInt() == 0:
		case n.Nesting == config.List:
			vs := inner.AsValueSlice()
			for i := range vs {
				vs[i] = public(&n.Block, vs[i])
			}
			m[n.Type] = cty.ListVal(vs)
		default:
			vs := inner.AsValueMap()
			for k := range vs {
				vs[k] = public(&n.Block, vs[k])
			}
			m[n.Type] = cty.MapVal(vs)
		}
	}
	if len(m) == 0 {
		return v
	}
	return cty.ObjectVal(m)
}

// Diagnose gives what a plugin, or its schema, says of a body its place there.
func (s *Schema) Diagnose(body hcl.Body, ds []errs.Diagnostic) hcl.Diagnostics {
	var out hcl.Diagnostics
	for _, d := range ds {
		severity := hcl.DiagError
		if d.Severity == errs.Warning {
			severity = hcl.DiagWarning
		}
		at := s.Locate(body, d.Path)
		out = append(out, &hcl.Diagnostic{Severity: severity, Summary: shown(d.Summary), Detail: shown(d.Detail), Subject: &at})
	}
	return out
}

// Locate finds the part of a body that a diagnostic means: the deepest step of its
// path that is there.
func (s *Schema) Locate(body hcl.Body, steps errs.Steps) hcl.Range {
	if body == nil {
		return hcl.Range{}
	}
	at, b := body.MissingItemRange(), s.block
	for len(steps) > 0 {
		content := contentOf(b, body)
		step := steps[0]
		steps = steps[1:]
		if step.Kind != errs.Block {
			if attr := content.Attributes[step.Name]; step.Kind == errs.Attr && attr != nil {
				return attr.Expr.Range()
			}
			return at
		}
		n := slices.IndexFunc(b.Blocks, func(n config.Nested) bool { return n.Type == step.Name })
		if n < 0 {
			return at
		}
		blocks := content.Blocks.OfType(step.Name)
		pick := 0
		if len(steps) > 0 {
			switch next := steps[0]; next.Kind {
			case errs.Index:
				pick, steps = int(next.Index), steps[1:]
			case errs.Key:
				pick, steps = slices.IndexFunc(blocks, func(b *hcl.Block) bool { return len(b.Labels) > 0 && b.Labels[0] == next.Name }), steps[1:]
			}
		}
		if pick < 0 || pick >= len(blocks) {
			return at
		}
		at, body, b = blocks[pick].DefRange, blocks[pick].Body, &b.Blocks[n].Block
	}
	return at
}

// contentOf reads a body as its schema has it. What is wrong with it has been
// told by the decoding.
func contentOf(b *config.Block, body hcl.Body) *hcl.BodyContent {
	schema := &hcl.BodySchema{}
	for _, a := range b.Attrs {
		schema.Attributes = append(schema.Attributes, hcl.AttributeSchema{Name: a.Name})
	}
	for _, n := range b.Blocks {
		h := hcl.BlockHeaderSchema{Type: n.Type}
		if n.Nesting == config.Map {
			h.LabelNames = []string{"name"}
		}
		schema.Blocks = append(schema.Blocks, h)
	}
	content, _, _ := body.PartialContent(schema)
	return content
}
