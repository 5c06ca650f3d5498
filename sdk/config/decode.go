package config

import (
	"fmt"
	"reflect" //nolint:depguard // the type is the author's: nothing else can fill it
	"time"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/gocty"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// Decode fills the struct that dst points to, whose schema b is, with a value that
// has passed Check. What is absent and has a default gets it; what has none keeps
// the field's zero value.
func (b *Block) Decode(v cty.Value, dst any) error {
	p := reflect.ValueOf(dst)
	if p.Kind() != reflect.Pointer || p.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("decoding a configuration into %T, which is no pointer to a struct", dst)
	}
	return b.fill(nil, v, "", p.Elem())
}

func (b *Block) fill(at errs.Steps, v cty.Value, label string, dst reflect.Value) error {
	t := dst.Type()
	for i := range t.NumField() {
		tag, ok, err := parseTag(t.Field(i))
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		field := dst.Field(i)
		if tag.label {
			field.SetString(label)
			continue
		}
		if tag.block {
			n := b.nested(tag.name)
			if n == nil {
				return fmt.Errorf("block %q is not in the schema", tag.name)
			}
			err = n.fill(below(at, errs.Step{Kind: errs.Block, Name: tag.name}), member(v, tag.name, n.cty()), field)
		} else {
			a := b.attr(tag.name)
			if a == nil {
				return fmt.Errorf("attribute %q is not in the schema", tag.name)
			}
			err = a.fill(below(at, errs.Step{Kind: errs.Attr, Name: tag.name}), member(v, tag.name, a.Type), field)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (n *Nested) fill(at errs.Steps, v cty.Value, field reflect.Value) error {
	if n.Nesting == Single {
		if v.IsNull() {
			// A struct that is not a pointer still gets its defaults.
			if field.Kind() == reflect.Struct {
				return n.Block.fill(at, v, "", field)
			}
			return nil
		}
		if field.Kind() == reflect.Pointer {
			field.Set(reflect.New(field.Type().Elem()))
			field = field.Elem()
		}
		return n.Block.fill(at, v, "", field)
	}
	if v.IsNull() {
		return nil
	}
	out := reflect.MakeSlice(field.Type(), v.LengthInt(), v.LengthInt())
	i := 0
	for it := v.ElementIterator(); it.Next(); i++ {
		k, e := it.Element()
		label := ""
		if n.Nesting == Map {
			label = k.AsString()
		}
		if err := n.Block.fill(below(at, elementStep(k)), e, label, out.Index(i)); err != nil {
			return err
		}
	}
	field.Set(out)
	return nil
}

func (a *Attr) fill(at errs.Steps, v cty.Value, field reflect.Value) error {
	if v.IsNull() {
		if len(a.Default) == 0 {
			return nil
		}
		d, err := ctyjson.Unmarshal(a.Default, a.Type)
		if err != nil {
			return fmt.Errorf("default of %s: %w", a.Name, err)
		}
		v = d
	}
	if field.Kind() == reflect.Pointer {
		field.Set(reflect.New(field.Type().Elem()))
		field = field.Elem()
	}
	return leaf(at, v, field, a.Sensitive)
}

// leaf goes through lists and maps itself, for gocty knows no durations.
func leaf(at errs.Steps, v cty.Value, field reflect.Value, sensitive bool) error {
	switch {
	case field.Type() == durationType:
		d, err := time.ParseDuration(v.AsString())
		if err != nil {
			return errs.ConfigErrorf(at, "not a duration")
		}
		field.SetInt(int64(d))
		return nil
	case field.Kind() == reflect.Slice:
		out := reflect.MakeSlice(field.Type(), v.LengthInt(), v.LengthInt())
		i := 0
		for it := v.ElementIterator(); it.Next(); i++ {
			k, e := it.Element()
			if err := leaf(below(at, elementStep(k)), e, out.Index(i), sensitive); err != nil {
				return err
			}
		}
		field.Set(out)
		return nil
	case field.Kind() == reflect.Map:
		out := reflect.MakeMapWithSize(field.Type(), v.LengthInt())
		for it := v.ElementIterator(); it.Next(); {
			k, e := it.Element()
			to := reflect.New(field.Type().Elem()).Elem()
			if err := leaf(below(at, elementStep(k)), e, to, sensitive); err != nil {
				return err
			}
			out.SetMapIndex(reflect.ValueOf(k.AsString()).Convert(field.Type().Key()), to)
		}
		field.Set(out)
		return nil
	}
	// gocty trusts big.Float.Uint64, which calls 1.5 cut to 1 exact.
	if field.CanUint() && !v.AsBigFloat().IsInt() {
		return errs.ConfigErrorf(at, "value must be a whole number")
	}
	if err := gocty.FromCtyValue(v, field.Addr().Interface()); err != nil {
		if sensitive {
			return errs.ConfigErrorf(at, "it does not fit")
		}
		return errs.ConfigErrorf(at, "%v", err) // "value must be a whole number", "… between 0 and 255"
	}
	return nil
}
