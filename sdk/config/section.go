package config

import (
	"context"
	"fmt"
	"time"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/msgpack"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// Instance is whose configuration it is, and where its plugin may write.
type Instance struct {
	ID          string // "" for the plugin itself; else as in the calls that mean it, with the sandbox's id and the block's label
	StateDir    string // kept over reboots
	RunDir      string // gone after one
	CallTimeout time.Duration
	BootID      string
	// StateRoot tells one core's sandboxes from another's: an id, a name or a stack means
	// something together with it. It is no path.
	StateRoot string
}

// Configurer is told its configuration. The schema is derived from C, a struct.
// An error made with errs.ConfigErrorf is shown at the line that it is about.
type Configurer[C any] interface {
	Configure(ctx context.Context, in Instance, c C) error
}

// Func is a function as a Configurer.
type Func[C any] func(ctx context.Context, in Instance, c C) error

// Configure calls f.
func (f Func[C]) Configure(ctx context.Context, in Instance, c C) error { return f(ctx, in, c) }

// Section is a Configurer of whatever type. To makes one.
type Section interface {
	// Schema fails if the tags of the configuration's type are wrong.
	Schema() (*Block, error)
	// Configure takes a value in cty's msgpack. It is decoded into a fresh value,
	// so that nothing of an earlier configuration stays.
	Configure(ctx context.Context, in Instance, value []byte) error
}

// To makes a Section of a Configurer. Its type says what C is:
//
//	config.To(&provider{})
//	config.To(config.Func[Settings](func(ctx context.Context, in config.Instance, c Settings) error { … }))
func To[C any](c Configurer[C]) Section { return section[C]{c} }

type section[C any] struct{ c Configurer[C] }

func (s section[C]) Schema() (*Block, error) { return Of[C]() }

func (s section[C]) Configure(ctx context.Context, in Instance, value []byte) error {
	b, err := Of[C]()
	if err != nil {
		return err
	}
	v, err := b.Unmarshal(value)
	if err != nil {
		return &errs.Error{Code: errs.Config, Err: err}
	}
	ds := b.Check(v)
	var checked error
	if len(ds) > 0 {
		checked = &errs.Error{Code: errs.Config, Diagnostics: ds}
	}
	if _, harmless := errs.Warnings(checked); !harmless {
		return checked
	}
	var c C
	if err := b.Decode(v, &c); err != nil {
		return err
	}
	err = s.c.Configure(ctx, in, c)
	if err == nil {
		return checked
	}
	e := errs.Of(err)
	for i := range e.Diagnostics {
		e.Diagnostics[i].Path = b.Resolve(e.Diagnostics[i].Path)
	}
	e.Diagnostics = append(ds, e.Diagnostics...)
	return e
}

// Marshal encodes a body's value for the wire.
func (b *Block) Marshal(v cty.Value) ([]byte, error) { return msgpack.Marshal(v, b.Type()) }

// Unmarshal decodes one. No bytes at all are a body with nothing in it.
func (b *Block) Unmarshal(value []byte) (cty.Value, error) {
	if len(value) == 0 {
		return cty.NullVal(b.Type()), nil
	}
	v, err := msgpack.Unmarshal(value, b.Type())
	if err != nil {
		return cty.NilVal, fmt.Errorf("the configuration is not of the schema's type: %w", err)
	}
	return v, nil
}
