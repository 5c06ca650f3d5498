package conformance

import (
	"fmt"
	"maps"
	"regexp"

	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// breach is a body with one mistake in it.
type breach struct {
	at    errs.Steps
	what  string
	value cty.Value
}

// breaches of everything that a schema asks for. The rest of the body is as good as
// base, or as what can be made up.
func breaches(b *config.Block, base cty.Value) []breach {
	if b == nil {
		return nil
	}
	base = filled(b, base)
	var out []breach
	with := func(name string, v cty.Value) cty.Value {
		m := maps.Clone(base.AsValueMap())
		m[name] = v
		return cty.ObjectVal(m)
	}
	for _, a := range b.Attrs {
		at := errs.Path(a.Name)
		if a.Required {
			out = append(out, breach{at, "it is missing", with(a.Name, cty.NullVal(a.Type))})
		}
		for what, bad := range violations(&a.Constraint, leafOf(a.Type)) {
			out = append(out, breach{at, what, with(a.Name, wrapped(a.Type, bad))})
		}
	}
	for _, n := range b.Blocks {
		at := errs.Steps{{Kind: errs.Block, Name: n.Type}}
		if n.Min > 0 {
			out = append(out, breach{at, "there is no such block", with(n.Type, emptyOf(&n))})
		}
		if n.Max > 0 && n.Nesting == config.List {
			many := make([]cty.Value, n.Max+1)
			for i := range many {
				many[i] = filled(&n.Block, cty.NilVal)
			}
			out = append(out, breach{at, fmt.Sprintf("there are %d such blocks", n.Max+1), with(n.Type, cty.ListVal(many))})
		}
		for _, in := range breaches(&n.Block, cty.NilVal) {
			in.at = append(append(errs.Steps{}, at...), in.at...)
			switch n.Nesting {
			case config.List:
				in.value = cty.ListVal([]cty.Value{in.value})
			case config.Map:
				in.value = cty.MapVal(map[string]cty.Value{"check": in.value})
			}
			in.value = with(n.Type, in.value)
			out = append(out, in)
		}
	}
	return out
}

func leafOf(t cty.Type) cty.Type {
	for t.IsCollectionType() {
		t = t.ElementType()
	}
	return t
}

// wrapped puts a value into the lists and maps that its attribute has around it.
func wrapped(t cty.Type, v cty.Value) cty.Value {
	switch {
	case t.IsListType():
		return cty.ListVal([]cty.Value{wrapped(t.ElementType(), v)})
	case t.IsSetType():
		return cty.SetVal([]cty.Value{wrapped(t.ElementType(), v)})
	case t.IsMapType():
		return cty.MapVal(map[string]cty.Value{"check": wrapped(t.ElementType(), v)})
	default:
		return v
	}
}

// violations of a constraint, by what is wrong.
func violations(c *config.Constraint, leaf cty.Type) map[string]cty.Value {
	out := map[string]cty.Value{}
	switch leaf {
	case cty.Number:
		if c.Min != nil {
			out["it is too small"] = cty.NumberFloatVal(*c.Min - 1)
		}
		if c.Max != nil {
			out["it is too large"] = cty.NumberFloatVal(*c.Max + 1)
		}
	case cty.String:
		if c.Enum != nil {
			out["it is none of "+fmt.Sprint(c.Enum)] = cty.StringVal("no such value of the enumeration")
		}
		if c.Format != config.Free {
			out["it is no "+c.Format.String()] = cty.StringVal("not/of that form")
		}
		if re, err := regexp.Compile(`\A(?:` + c.Pattern + `)\z`); err == nil && c.Pattern != "" {
			for _, s := range samples {
				if !re.MatchString(s) {
					out["it does not match "+c.Pattern] = cty.StringVal(s)
					break
				}
			}
		}
	}
	return out
}

// samples are texts of many forms: one of them matches a pattern, and one does not.
var samples = []string{
	"\u2603 of no form", "", "a", "A", "1", "a1", "a-b", "a_b", "A_B", "a.b", "example.org", "https://example.org", "/etc/app", "a/b", "a@b.org", "1.2.3",
	"10.0.0.1", "5s", "00000000-0000-0000-0000-000000000000", "0123456789abcdef",
}

func emptyOf(n *config.Nested) cty.Value {
	switch n.Nesting {
	case config.List:
		return cty.ListValEmpty(n.Block.Type())
	case config.Map:
		return cty.MapValEmpty(n.Block.Type())
	default:
		return cty.NullVal(n.Block.Type())
	}
}

// filled gives a body in which nothing is missing that can be made up.
func filled(b *config.Block, base cty.Value) cty.Value {
	if base != cty.NilVal && !base.IsNull() {
		return base
	}
	m := map[string]cty.Value{}
	for _, a := range b.Attrs {
		m[a.Name] = cty.NullVal(a.Type)
		switch {
		case len(a.Default) > 0:
			if d, err := ctyjson.Unmarshal(a.Default, a.Type); err == nil {
				m[a.Name] = d
			}
		case a.Required:
			m[a.Name] = wrapped(a.Type, plausible(&a.Constraint, leafOf(a.Type)))
		}
	}
	for _, n := range b.Blocks {
		m[n.Type] = emptyOf(&n)
		if n.Min == 0 {
			continue
		}
		in := filled(&n.Block, cty.NilVal)
		switch n.Nesting {
		case config.List:
			all := make([]cty.Value, n.Min)
			for i := range all {
				all[i] = in
			}
			m[n.Type] = cty.ListVal(all)
		case config.Map:
			m[n.Type] = cty.MapVal(map[string]cty.Value{"check": in})
		default:
			m[n.Type] = in
		}
	}
	if len(m) == 0 {
		return cty.EmptyObjectVal
	}
	return cty.ObjectVal(m)
}

// plausible is a value that passes a constraint, if one can be guessed.
func plausible(c *config.Constraint, leaf cty.Type) cty.Value {
	switch leaf {
	case cty.Bool:
		return cty.False
	case cty.Number:
		switch {
		case c.Min != nil:
			return cty.NumberFloatVal(*c.Min)
		case c.Max != nil:
			return cty.NumberFloatVal(*c.Max)
		default:
			return cty.NumberIntVal(1)
		}
	}
	if c.Enum != nil {
		return cty.StringVal(c.Enum[0])
	}
	switch c.Format {
	case config.CIDR:
		return cty.StringVal("10.0.0.0/8")
	case config.IP:
		return cty.StringVal("10.0.0.1")
	case config.Duration:
		return cty.StringVal("5s")
	case config.Bytes:
		return cty.StringVal("64MiB")
	case config.AbsPath:
		return cty.StringVal("/etc/app")
	}
	if re, err := regexp.Compile(`\A(?:` + c.Pattern + `)\z`); err == nil {
		for _, s := range samples {
			if re.MatchString(s) && s != "" {
				return cty.StringVal(s)
			}
		}
	}
	return cty.StringVal("a")
}

// resolves tells whether a path is one of a schema.
func resolves(b *config.Block, p errs.Steps) bool {
	for len(p) > 0 {
		s := p[0]
		p = p[1:]
		switch s.Kind {
		case errs.Attr:
			for _, a := range b.Attrs {
				if a.Name == s.Name {
					// What is below is an element of its value.
					for _, e := range p {
						if e.Kind != errs.Index && e.Kind != errs.Key {
							return false
						}
					}
					return true
				}
			}
			return false
		case errs.Block:
			var in *config.Block
			for i := range b.Blocks {
				if b.Blocks[i].Type == s.Name {
					in = &b.Blocks[i].Block
				}
			}
			if in == nil {
				return false
			}
			if b = in; len(p) > 0 && (p[0].Kind == errs.Index || p[0].Kind == errs.Key) {
				p = p[1:]
			}
		default:
			return false
		}
	}
	return true
}

// leadsTo tells whether a path is to the part that another names, whichever of
// several blocks or elements it means.
func leadsTo(p, want errs.Steps) bool {
	names := func(p errs.Steps) (out []string) {
		for _, s := range p {
			if s.Kind == errs.Attr || s.Kind == errs.Block {
				out = append(out, s.Name)
			}
		}
		return out
	}
	have, need := names(p), names(want)
	if len(have) < len(need) {
		return false
	}
	for i := range need {
		if have[i] != need[i] {
			return false
		}
	}
	return true
}
