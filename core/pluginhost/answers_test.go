package pluginhost

import (
	"errors"
	"strings"
	"testing"

	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// A schema is bounded before it is decoded, wherever its size is hidden.
func TestCheckBlock(t *testing.T) {
	attr := func(typ, def string) *pluginv1.Block {
		return &pluginv1.Block{Attrs: []*pluginv1.Attr{{Name: "a", TypeJson: typ, DefaultJson: def}}}
	}
	nest := func(n int) string { return strings.Repeat(`["list",`, n) + `"string"` + strings.Repeat("]", n) }
	deep := &pluginv1.Block{}
	for range maxDepth {
		deep = &pluginv1.Block{Blocks: []*pluginv1.NestedBlock{{Type: "b", Block: deep}}}
	}
	wide := &pluginv1.Block{}
	for range maxNames/10 + 1 {
		wide.Blocks = append(wide.Blocks, &pluginv1.NestedBlock{Block: &pluginv1.Block{Attrs: make([]*pluginv1.Attr, 9)}})
	}
	for name, c := range map[string]struct {
		block *pluginv1.Block
		want  string
	}{
		"none":         {nil, ""},
		"nested":       {attr(nest(maxTypeDepth), `["x"]`), ""},
		"deep type":    {attr(nest(maxTypeDepth+1), ""), "its type nests deeper than 32"},
		"long type":    {attr(`"`+strings.Repeat("s", maxTypeText)+`"`, ""), "too long"},
		"long default": {attr(`"string"`, strings.Repeat("s", maxDefault+1)), "too long"},
		"deep":         {deep, errDeep.Error()},
		"wide":         {wide, errWide.Error()},
	} {
		left := maxNames
		err := checkBlock(c.block, maxDepth, &left)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
	if !errors.Is(checkBlock(deep, 1, new(int)), errWide) {
		t.Error("nothing is left, and a block is taken")
	}
}
