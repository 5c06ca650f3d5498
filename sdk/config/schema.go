// Package config owns what a plugin's configuration looks like: a schema derived
// from the tags of a Go struct, its checks, and the way from a checked value to a
// filled struct. Host and plugin share it, so that the host can name the line of a
// mistake without starting the plugin, and the plugin trusts no host to have
// checked.
//
// Values are cty's, as they are in HCL itself: absent, null and zero stay distinct,
// and numbers are exact. That is why go-cty is a dependency of the SDK.
package config

import (
	"encoding/json"
	"fmt"

	"github.com/zclconf/go-cty/cty"
)

// Block is the schema of an HCL body.
type Block struct {
	Description string   `json:"description,omitempty"`
	Attrs       []Attr   `json:"attrs,omitempty"`
	Blocks      []Nested `json:"blocks,omitempty"`
}

// Nesting says how often a block may stand, and how its values are held.
type Nesting uint8

// The nestings.
const (
	Single Nesting = iota + 1 // an object, or null where there is none
	List                      // a list of objects, in their order
	Map                       // a map of objects by the block's one label
)

var nestings = [...]string{"", "single", "list", "map"}

func (n Nesting) String() string {
	if int(n) < len(nestings) {
		return nestings[n]
	}
	return "unknown"
}

// MarshalText makes it readable in JSON.
func (n Nesting) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (n *Nesting) UnmarshalText(b []byte) error { return fromName(n, nestings[:], b) }

// Nested is a block within a body.
type Nested struct {
	Type    string  `json:"type"`
	Nesting Nesting `json:"nesting"`
	Min     uint32  `json:"min,omitempty"`
	Max     uint32  `json:"max,omitempty"` // 0 for any number
	Block   Block   `json:"block"`
}

// Attr is an attribute.
type Attr struct {
	Name        string          `json:"name"`
	Type        cty.Type        `json:"type"`
	Required    bool            `json:"required,omitempty"`
	Default     json.RawMessage `json:"default,omitempty"` // of that type; nil for null
	Description string          `json:"description"`
	Sensitive   bool            `json:"sensitive,omitempty"`  // never shown
	Deprecated  string          `json:"deprecated,omitempty"` // what to use instead
	Constraint  Constraint      `json:"constraint,omitzero"`
}

// Constraint restricts an attribute's value; of a list or map, each element.
type Constraint struct {
	Enum    []string `json:"enum,omitempty"`
	Pattern string   `json:"pattern,omitempty"` // RE2, of the whole value
	Min     *float64 `json:"min,omitempty"`
	Max     *float64 `json:"max,omitempty"`
	Format  Format   `json:"format,omitempty"`
}

// Format is a form that text must have.
type Format uint8

// The formats.
const (
	Free Format = iota
	CIDR
	IP
	Duration // "1m30s"
	Bytes    // "64MiB"
	AbsPath  // absolute and clean
)

var formats = [...]string{"", "cidr", "ip", "duration", "bytes", "abs_path"}

func (f Format) String() string {
	if int(f) < len(formats) {
		return formats[f]
	}
	return "unknown"
}

// MarshalText makes it readable in JSON.
func (f Format) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (f *Format) UnmarshalText(b []byte) error { return fromName(f, formats[:], b) }

func fromName[N ~uint8](n *N, names []string, b []byte) error {
	for i, name := range names {
		if name == string(b) {
			*n = N(i)
			return nil
		}
	}
	return fmt.Errorf("unknown name %q", b)
}

// Schema is all that a plugin can be told: its own configuration, and that of the
// blocks of a job that name it, by service. A nil Block takes no configuration.
type Schema struct {
	Plugin   *Block            `json:"plugin_config,omitempty"`
	Instance map[string]*Block `json:"instance_config,omitempty"`
}

// Type is the cty type of a body's value: an object. It is the one that HCL's
// hcldec implies for the same schema.
func (b *Block) Type() cty.Type {
	if b == nil {
		return cty.EmptyObject
	}
	atys := make(map[string]cty.Type, len(b.Attrs)+len(b.Blocks))
	for _, a := range b.Attrs {
		atys[a.Name] = a.Type
	}
	for _, n := range b.Blocks {
		atys[n.Type] = n.cty()
	}
	return cty.Object(atys)
}

func (n *Nested) cty() cty.Type {
	t := n.Block.Type()
	switch n.Nesting {
	case List:
		return cty.List(t)
	case Map:
		return cty.Map(t)
	default:
		return t
	}
}

// attr and nested find by name; nil for none.
func (b *Block) attr(name string) *Attr {
	for i := range b.Attrs {
		if b.Attrs[i].Name == name {
			return &b.Attrs[i]
		}
	}
	return nil
}

func (b *Block) nested(name string) *Nested {
	for i := range b.Blocks {
		if b.Blocks[i].Type == name {
			return &b.Blocks[i]
		}
	}
	return nil
}
