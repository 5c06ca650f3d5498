package config

import (
	"encoding/json"
	"fmt"
	"reflect" //nolint:depguard // a struct's tags can be read in no other way
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"
)

var durationType = reflect.TypeFor[time.Duration]()

// validName needs no regular expression: each start of a plugin would compile it.
func validName(s string) bool {
	return s != "" && s[0] >= 'a' && s[0] <= 'z' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// tag is the hcl tag of a field: its name, then attr (which may be left out),
// optional, block or label.
type tag struct {
	name                   string
	block, label, optional bool
}

func parseTag(f reflect.StructField) (t tag, ok bool, err error) {
	s, ok := f.Tag.Lookup("hcl")
	if !ok || s == "-" {
		return t, false, nil
	}
	if !f.IsExported() {
		return t, false, fmt.Errorf("%s: a field with an hcl tag must be exported", f.Name)
	}
	parts := strings.Split(s, ",")
	t.name = parts[0]
	if !validName(t.name) {
		return t, false, fmt.Errorf("%s: the name %q is not in lower case, with digits and underscores", f.Name, t.name)
	}
	for _, p := range parts[1:] {
		switch p {
		case "attr":
		case "optional":
			t.optional = true
		case "block":
			t.block = true
		case "label":
			t.label = true
		default:
			return t, false, fmt.Errorf("%s: unknown option %q in its hcl tag", f.Name, p)
		}
	}
	return t, true, nil
}

// Of derives the schema of the struct type C. Fields without an hcl tag are the
// author's own. The module's README lists the tags.
func Of[C any]() (*Block, error) {
	t := reflect.TypeFor[C]()
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("%v is no struct", t)
	}
	b, label, err := body(t)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", t, err)
	}
	if label != "" {
		return nil, fmt.Errorf("%v: only a block within has a label", t)
	}
	return &b, nil
}

func body(t reflect.Type) (b Block, label string, err error) {
	seen := map[string]bool{}
	for i := range t.NumField() {
		f := t.Field(i)
		tag, ok, err := parseTag(f)
		if err != nil {
			return b, "", err
		}
		if !ok {
			continue
		}
		if seen[tag.name] {
			return b, "", fmt.Errorf("%s: the name %q is there twice", f.Name, tag.name)
		}
		seen[tag.name] = true
		switch {
		case tag.label:
			if f.Type.Kind() != reflect.String || label != "" {
				return b, "", fmt.Errorf("%s: a label is one string", f.Name)
			}
			label = tag.name
		case tag.block:
			n, err := nested(f, tag)
			if err != nil {
				return b, "", fmt.Errorf("%s: %w", f.Name, err)
			}
			b.Blocks = append(b.Blocks, n)
		default:
			a, err := attribute(f, tag)
			if err != nil {
				return b, "", fmt.Errorf("%s: %w", f.Name, err)
			}
			b.Attrs = append(b.Attrs, a)
		}
	}
	return b, label, nil
}

func nested(f reflect.StructField, tag tag) (n Nested, err error) {
	n = Nested{Type: tag.name}
	t := f.Type
	switch {
	case t.Kind() == reflect.Struct:
		n.Nesting, n.Max = Single, 1
		if !tag.optional {
			n.Min = 1
		}
	case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct:
		n.Nesting, n.Max, t = Single, 1, t.Elem()
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		n.Nesting, t = List, t.Elem()
	default:
		return n, fmt.Errorf("a block is a struct, a pointer to one, or a slice of them, not %v", f.Type)
	}
	var label string
	if n.Block, label, err = body(t); err != nil {
		return n, err
	}
	n.Block.Description = f.Tag.Get("desc")
	if n.Block.Description == "" {
		return n, fmt.Errorf("it has no desc")
	}
	if label != "" {
		if n.Nesting != List {
			return n, fmt.Errorf("a block with a label can stand more than once: make it a slice")
		}
		n.Nesting = Map
	}
	if n.Nesting == Single {
		return n, nil
	}
	for key, to := range map[string]*uint32{"min_items": &n.Min, "max_items": &n.Max} {
		if s := f.Tag.Get(key); s != "" {
			v, err := strconv.ParseUint(s, 10, 32)
			if err != nil {
				return n, fmt.Errorf("%s %q is no number", key, s)
			}
			*to = uint32(v)
		}
	}
	return n, nil
}

func attribute(f reflect.StructField, tag tag) (a Attr, err error) {
	a = Attr{
		Name: tag.name, Required: !tag.optional, Description: f.Tag.Get("desc"), Deprecated: f.Tag.Get("deprecated"),
	}
	if a.Description == "" {
		return a, fmt.Errorf("it has no desc: users read it in the plugin's reference")
	}
	t := f.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if a.Type, err = typeOf(t); err != nil {
		return a, err
	}
	if a.Constraint, err = constraint(f, t); err != nil {
		return a, err
	}
	if s := f.Tag.Get("sensitive"); s != "" {
		if a.Sensitive, err = strconv.ParseBool(s); err != nil {
			return a, fmt.Errorf("sensitive is true or false, not %q", s)
		}
	}
	if s, ok := f.Tag.Lookup("default"); ok {
		if a.Required {
			return a, fmt.Errorf("what has a default is optional")
		}
		if a.Default, err = defaultJSON(s, &a); err != nil {
			return a, err
		}
	}
	return a, nil
}

func typeOf(t reflect.Type) (cty.Type, error) {
	if t == durationType {
		return cty.String, nil
	}
	switch t.Kind() {
	case reflect.String:
		return cty.String, nil
	case reflect.Bool:
		return cty.Bool, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
		reflect.Float32, reflect.Float64:
		return cty.Number, nil
	case reflect.Slice:
		e, err := typeOf(t.Elem())
		return cty.List(e), err
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			return cty.NilType, fmt.Errorf("the keys of a map are strings, not %v", t.Key())
		}
		e, err := typeOf(t.Elem())
		return cty.Map(e), err
	default:
		return cty.NilType, fmt.Errorf("%v can't be written in a configuration", t)
	}
}

func constraint(f reflect.StructField, t reflect.Type) (c Constraint, err error) {
	leaf := t
	for leaf.Kind() == reflect.Slice || leaf.Kind() == reflect.Map {
		leaf = leaf.Elem()
	}
	if leaf == durationType {
		c.Format = Duration
	}
	if s := f.Tag.Get("enum"); s != "" {
		c.Enum = strings.Split(s, ",")
	}
	if c.Pattern = f.Tag.Get("pattern"); c.Pattern != "" {
		if _, err := regexp.Compile(c.Pattern); err != nil {
			return c, err
		}
	}
	for key, to := range map[string]**float64{"min": &c.Min, "max": &c.Max} {
		if s := f.Tag.Get(key); s != "" {
			v, err := strconv.ParseFloat(s, 64)
			if err != nil {
				return c, fmt.Errorf("%s %q is no number", key, s)
			}
			*to = &v
		}
	}
	if s := f.Tag.Get("format"); s != "" {
		if err := c.Format.UnmarshalText([]byte(s)); err != nil {
			return c, fmt.Errorf("unknown format %q", s)
		}
	}
	isText := leaf.Kind() == reflect.String || leaf == durationType
	if (c.Enum != nil || c.Pattern != "" || c.Format != Free) && !isText {
		return c, fmt.Errorf("enum, pattern and format are for text, not for %v", leaf)
	}
	if (c.Min != nil || c.Max != nil) && (isText || leaf.Kind() == reflect.Bool) {
		return c, fmt.Errorf("min and max are for numbers, not for %v", leaf)
	}
	return c, nil
}

// defaultJSON takes a scalar as it stands, and a list or map as JSON. It must
// pass the attribute's own checks.
func defaultJSON(s string, a *Attr) (json.RawMessage, error) {
	var v cty.Value
	var err error
	if a.Type.IsPrimitiveType() {
		v, err = convert.Convert(cty.StringVal(s), a.Type)
	} else {
		v, err = ctyjson.Unmarshal([]byte(s), a.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("default %q: %w", s, err)
	}
	if ds := a.check(nil, v); len(ds) > 0 {
		return nil, fmt.Errorf("default %q: %s", s, ds[0].Summary)
	}
	return ctyjson.Marshal(v, a.Type)
}
