package pluginhost

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"

	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// Bounds of a schema as it travels. What decodes a type parses what is left of it
// once for each level: five thousand lists of lists take seconds, which no deadline
// of a call ends.
const (
	maxTypeDepth = 32
	maxTypeText  = 4 << 10
	maxDefault   = 64 << 10
)

// checkAnswer looks at answers before anything is made of them.
func checkAnswer(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := invoke(ctx, method, req, reply, cc, opts...); err != nil {
		return err
	}
	if r, ok := reply.(*pluginv1.ConfigSchemaResponse); ok {
		return checkSchema(r)
	}
	return nil
}

func checkSchema(r *pluginv1.ConfigSchemaResponse) error {
	left := maxNames
	blocks := []*pluginv1.Block{r.GetPluginConfig()}
	for _, b := range r.GetInstanceConfig() {
		blocks = append(blocks, b)
	}
	for _, b := range blocks {
		if err := checkBlock(b, maxDepth, &left); err != nil {
			return fmt.Errorf("configuration schema: %w", err)
		}
	}
	return nil
}

func checkBlock(b *pluginv1.Block, depth int, left *int) error {
	if depth == 0 {
		return errDeep
	}
	if *left -= len(b.GetAttrs()) + len(b.GetBlocks()); *left < 0 {
		return errWide
	}
	for _, a := range b.GetAttrs() {
		if err := checkText(a); err != nil {
			return fmt.Errorf("attribute %q: %w", a.GetName(), err)
		}
	}
	for _, n := range b.GetBlocks() {
		if err := checkBlock(n.GetBlock(), depth-1, left); err != nil {
			return err
		}
	}
	return nil
}

var (
	errDeep = fmt.Errorf("blocks nest deeper than %d", maxDepth)
	errWide = fmt.Errorf("more than %d attributes and blocks", maxNames)
)

func checkText(a *pluginv1.Attr) error {
	if len(a.GetTypeJson()) > maxTypeText || len(a.GetDefaultJson()) > maxDefault {
		return errors.New("its type or its default is too long")
	}
	depth := 0
	for _, c := range a.GetTypeJson() {
		switch c {
		case '[', '{':
			if depth++; depth > maxTypeDepth {
				return fmt.Errorf("its type nests deeper than %d", maxTypeDepth)
			}
		case ']', '}':
			depth--
		}
	}
	return nil
}
