package config

import (
	"fmt"
	"math/big"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// Check gives all that is wrong with a body's value, of the type that Type gives.
// A sensitive value is never part of a text.
func (b *Block) Check(v cty.Value) []errs.Diagnostic {
	if b == nil {
		return nil
	}
	return b.check(nil, v)
}

// member is an object's attribute, null if the object is not there at all.
func member(v cty.Value, name string, t cty.Type) cty.Value {
	if !v.IsKnown() || v.IsNull() || !v.Type().HasAttribute(name) {
		return cty.NullVal(t)
	}
	return v.GetAttr(name)
}

func (b *Block) check(at errs.Steps, v cty.Value) (ds []errs.Diagnostic) {
	for i := range b.Attrs {
		a := &b.Attrs[i]
		ds = append(ds, a.check(below(at, errs.Step{Kind: errs.Attr, Name: a.Name}), member(v, a.Name, a.Type))...)
	}
	for i := range b.Blocks {
		n := &b.Blocks[i]
		ds = append(ds, n.check(below(at, errs.Step{Kind: errs.Block, Name: n.Type}), member(v, n.Type, n.cty()))...)
	}
	return ds
}

// below never shares its array: paths are kept in diagnostics.
func below(at errs.Steps, s errs.Step) errs.Steps {
	return append(slices.Clone(at), s)
}

func fault(at errs.Steps, summary, detail string) []errs.Diagnostic {
	return []errs.Diagnostic{{Summary: summary, Detail: detail, Path: at}}
}

func (n *Nested) check(at errs.Steps, v cty.Value) (ds []errs.Diagnostic) {
	if !v.IsKnown() {
		return fault(at, "Value not known", "A configuration is given when all of its values are known.")
	}
	count := uint32(0)
	switch {
	case v.IsNull():
	case n.Nesting == Single:
		count = 1
		ds = n.Block.check(at, v)
	default:
		for it := v.ElementIterator(); it.Next(); count++ {
			k, e := it.Element()
			ds = append(ds, n.Block.check(below(at, elementStep(k)), e)...)
		}
	}
	if count < n.Min {
		ds = append(ds, fault(at, "Missing block", fmt.Sprintf("At least %d %q block is required, and there are %d.", n.Min, n.Type, count))...)
	}
	if n.Max > 0 && count > n.Max {
		ds = append(ds, fault(at, "Too many blocks", fmt.Sprintf("At most %d %q blocks may stand here, and there are %d.", n.Max, n.Type, count))...)
	}
	return ds
}

func elementStep(k cty.Value) errs.Step {
	if k.Type() == cty.String {
		return errs.MapKey(k.AsString())
	}
	i, _ := k.AsBigFloat().Int64()
	return errs.Step{Kind: errs.Index, Index: i}
}

func (a *Attr) check(at errs.Steps, v cty.Value) (ds []errs.Diagnostic) {
	if v.IsNull() {
		if a.Required {
			return fault(at, "Missing required argument", fmt.Sprintf("%s is required: %s.", a.Name, strings.TrimSuffix(a.Description, ".")))
		}
		return nil
	}
	if a.Deprecated != "" {
		ds = append(ds, errs.Diagnostic{Severity: errs.Warning, Summary: "Deprecated argument", Detail: a.Deprecated, Path: at})
	}
	if !v.IsWhollyKnown() {
		return append(ds, fault(at, "Value not known", "A configuration is given when all of its values are known.")...)
	}
	return append(ds, a.Constraint.check(at, v, a.Sensitive)...)
}

func (c *Constraint) check(at errs.Steps, v cty.Value, sensitive bool) (ds []errs.Diagnostic) {
	if v.IsNull() {
		return fault(at, "Element is null", "An element of a list or map has a value, or is left out.")
	}
	if v.CanIterateElements() {
		for it := v.ElementIterator(); it.Next(); {
			k, e := it.Element()
			ds = append(ds, c.check(below(at, elementStep(k)), e, sensitive)...)
		}
		return ds
	}
	switch v.Type() {
	case cty.String:
		summary, detail := c.text(v.AsString())
		if summary == "" {
			return nil
		}
		if !sensitive {
			detail = fmt.Sprintf("%q: %s", v.AsString(), detail)
		}
		return fault(at, summary, detail)
	case cty.Number:
		n := v.AsBigFloat()
		if c.Min != nil && n.Cmp(big.NewFloat(*c.Min)) < 0 {
			return fault(at, "Number too small", "It is at least "+number(*c.Min)+".")
		}
		if c.Max != nil && n.Cmp(big.NewFloat(*c.Max)) > 0 {
			return fault(at, "Number too large", "It is at most "+number(*c.Max)+".")
		}
	}
	return nil
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

func (c *Constraint) text(s string) (summary, detail string) {
	if c.Enum != nil && !slices.Contains(c.Enum, s) {
		return "Unknown value", "write one of " + strings.Join(c.Enum, ", ") + "."
	}
	if c.Pattern != "" {
		re, err := regexp.Compile(`\A(?:` + c.Pattern + `)\z`)
		if err != nil {
			return "Broken schema", "the plugin's pattern is no regular expression: report it to its author."
		}
		if !re.MatchString(s) {
			return "Value of the wrong form", "it matches " + c.Pattern + "."
		}
	}
	if wrong := c.Format.wrong(s); wrong != "" {
		return "Value of the wrong form", wrong
	}
	return "", ""
}

var bytesForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9]+(?:[KMGT]i?B?|B)?$`) })

// wrong says what text of this format looks like, "" if s is of it.
func (f Format) wrong(s string) string {
	switch f {
	case CIDR:
		if _, err := netip.ParsePrefix(s); err != nil {
			return `write a network such as "10.0.0.0/8".`
		}
	case IP:
		if _, err := netip.ParseAddr(s); err != nil {
			return `write an address such as "10.0.0.1".`
		}
	case Duration:
		if _, err := time.ParseDuration(s); err != nil {
			return `write a duration such as "1m30s".`
		}
	case Bytes:
		if !bytesForm().MatchString(s) {
			return `write a size such as "64MiB".`
		}
	case AbsPath:
		if !path.IsAbs(s) || path.Clean(s) != s || strings.ContainsRune(s, 0) {
			return `write an absolute path with no "..", such as "/etc/app".`
		}
	}
	return ""
}

// Resolve gives a path as an author wrote it the kinds that the schema knows: a
// name with more behind it may be an attribute that is a list or a map.
func (b *Block) Resolve(p errs.Steps) errs.Steps {
	out := slices.Clone(p)
	for i := range out {
		s := &out[i]
		if b == nil {
			return out
		}
		if s.Kind != errs.Attr && s.Kind != errs.Block {
			continue // an element of the block just named
		}
		if b.attr(s.Name) != nil {
			s.Kind = errs.Attr
			b = nil // no names below an attribute
		} else if n := b.nested(s.Name); n != nil {
			s.Kind = errs.Block
			b = &n.Block
		} else {
			b = nil
		}
	}
	return out
}
