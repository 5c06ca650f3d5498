package wire

import (
	"fmt"

	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// maxDepth of blocks within blocks: a schema comes from another party, and is
// walked by recursion.
const maxDepth = 16

// Schema as it travels.
func Schema(s config.Schema) (*pluginv1.ConfigSchemaResponse, error) {
	out := &pluginv1.ConfigSchemaResponse{InstanceConfig: map[string]*pluginv1.Block{}}
	var err error
	if s.Plugin != nil {
		if out.PluginConfig, err = block(s.Plugin); err != nil {
			return nil, err
		}
	}
	for service, b := range s.Instance {
		if out.InstanceConfig[service], err = block(b); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// FromSchema is the inverse of Schema, and refuses what cannot be used.
func FromSchema(in *pluginv1.ConfigSchemaResponse) (config.Schema, error) {
	s := config.Schema{Instance: map[string]*config.Block{}}
	if in.GetPluginConfig() != nil {
		b, err := fromBlock(in.GetPluginConfig(), 0)
		if err != nil {
			return s, fmt.Errorf("schema of the plugin: %w", err)
		}
		s.Plugin = &b
	}
	for service, pb := range in.GetInstanceConfig() {
		b, err := fromBlock(pb, 0)
		if err != nil {
			return s, fmt.Errorf("schema of %s: %w", service, err)
		}
		s.Instance[service] = &b
	}
	return s, nil
}

func block(b *config.Block) (*pluginv1.Block, error) {
	out := &pluginv1.Block{Description: b.Description}
	for _, a := range b.Attrs {
		t, err := ctyjson.MarshalType(a.Type)
		if err != nil {
			return nil, fmt.Errorf("type of %s: %w", a.Name, err)
		}
		out.Attrs = append(out.Attrs, &pluginv1.Attr{
			Name: a.Name, TypeJson: string(t), Required: a.Required, DefaultJson: string(a.Default), Description: a.Description,
			Sensitive: a.Sensitive, Deprecated: a.Deprecated,
			Constraint: &pluginv1.Constraint{
				Enum: a.Constraint.Enum, Pattern: a.Constraint.Pattern, Min: a.Constraint.Min, Max: a.Constraint.Max,
				Format: pluginv1.Constraint_Format(a.Constraint.Format),
			},
		})
	}
	for _, n := range b.Blocks {
		inner, err := block(&n.Block)
		if err != nil {
			return nil, err
		}
		out.Blocks = append(out.Blocks, &pluginv1.NestedBlock{
			Type: n.Type, Nesting: pluginv1.NestedBlock_Nesting(n.Nesting), MinItems: n.Min, MaxItems: n.Max, Block: inner,
		})
	}
	return out, nil
}

func fromBlock(in *pluginv1.Block, depth int) (config.Block, error) {
	b := config.Block{Description: in.GetDescription()}
	if depth > maxDepth {
		return b, fmt.Errorf("blocks are nested deeper than %d", maxDepth)
	}
	for _, a := range in.GetAttrs() {
		at, err := fromAttr(a)
		if err != nil {
			return b, fmt.Errorf("%s: %w", a.GetName(), err)
		}
		b.Attrs = append(b.Attrs, at)
	}
	for _, n := range in.GetBlocks() {
		inner, err := fromBlock(n.GetBlock(), depth+1)
		if err != nil {
			return b, fmt.Errorf("%s: %w", n.GetType(), err)
		}
		nesting := config.Nesting(n.GetNesting())
		if nesting < config.Single || nesting > config.Map {
			return b, fmt.Errorf("%s: unknown nesting %v", n.GetType(), n.GetNesting())
		}
		b.Blocks = append(b.Blocks, config.Nested{Type: n.GetType(), Nesting: nesting, Min: n.GetMinItems(), Max: n.GetMaxItems(), Block: inner})
	}
	return b, nil
}

func fromAttr(in *pluginv1.Attr) (config.Attr, error) {
	a := config.Attr{
		Name: in.GetName(), Required: in.GetRequired(), Description: in.GetDescription(),
		Sensitive: in.GetSensitive(), Deprecated: in.GetDeprecated(),
	}
	var err error
	if a.Type, err = ctyjson.UnmarshalType([]byte(in.GetTypeJson())); err != nil {
		return a, fmt.Errorf("its type: %w", err)
	}
	if a.Type.HasDynamicTypes() || a.Type == cty.NilType {
		return a, fmt.Errorf("its type is not fixed")
	}
	if d := in.GetDefaultJson(); d != "" {
		if _, err := ctyjson.Unmarshal([]byte(d), a.Type); err != nil {
			return a, fmt.Errorf("its default: %w", err)
		}
		a.Default = []byte(d)
	}
	if c := in.GetConstraint(); c != nil {
		a.Constraint = config.Constraint{Enum: c.GetEnum(), Pattern: c.GetPattern(), Min: c.Min, Max: c.Max}
		// A newer plugin's format: it checks that itself.
		if f := c.GetFormat(); f >= 0 && f <= pluginv1.Constraint_FORMAT_ABS_PATH {
			a.Constraint.Format = config.Format(f)
		}
	}
	return a, nil
}
