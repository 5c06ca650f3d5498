package pluginhost

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// SchemaCache remembers what plugins say of themselves, so that a run need not ask,
// and who checks a job need not start them. Its directory is the caller's alone, as a
// DigestCache's is: what is in there decides what is sent to a plugin, and what it may
// do. The zero value remembers nothing.
type SchemaCache struct{ Dir string }

const (
	// maxRemembered bounds the cache: each version of a plugin has a file.
	maxRemembered = 64
	// maxDescription bounds one of them. A plugin that says more is asked each time.
	maxDescription = 1 << 20
)

// schemaKey is all that an answer depends on. One program may be several plugins, by
// its name; and a plugin is told who asks.
func (h *Host) schemaKey(p *Program) string {
	return fmt.Sprintf("%s %s %q %v", p.Digest, p.Name, h.o.Version, ours)
}

func (*SchemaCache) name(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:]) + ".pb"
}

// read gives nil for what is not known. What is not as write left it, whyever, is not
// known.
func (c *SchemaCache) read(key string) *answers {
	if c == nil || c.Dir == "" || private(c.Dir) != nil {
		return nil
	}
	f, err := os.Open(filepath.Join(c.Dir, c.name(key)))
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDescription+1))
	if err != nil || len(b) > maxDescription {
		return nil
	}
	rest, ok := bytes.CutPrefix(b, sealOf(key, b[min(len(b), sha256.Size):]))
	if !ok {
		return nil
	}
	a, err := parseAnswers(rest)
	if err != nil {
		return nil
	}
	return a
}

// write is best effort: what cannot be remembered is asked for again.
func (c *SchemaCache) write(key string, a *answers) {
	if c == nil || c.Dir == "" {
		return
	}
	b, err := a.marshal()
	if err != nil || len(b) > maxDescription-sha256.Size {
		return
	}
	if store(c.Dir, c.name(key), append(sealOf(key, b), b...)) == nil {
		prune(c.Dir, maxRemembered)
	}
}

// sealOf ties content to its key: a file that is damaged, or has another's name, is
// told from a good one.
func sealOf(key string, content []byte) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d %s", len(key), key)
	h.Write(content)
	return h.Sum(nil)
}

// answers are what a plugin says of itself, as it came. It is a connection that knows
// no more than that, so that what is remembered takes the way of what is asked.
type answers struct {
	info   pluginv1.InfoResponse
	schema pluginv1.ConfigSchemaResponse
}

var errNotRemembered = errors.New("not remembered")

func (a *answers) Invoke(_ context.Context, method string, _, reply any, _ ...grpc.CallOption) error {
	switch method {
	case pluginv1.Base_Info_FullMethodName:
		proto.Merge(reply.(proto.Message), &a.info)
	case pluginv1.Base_ConfigSchema_FullMethodName:
		proto.Merge(reply.(proto.Message), &a.schema)
	default:
		return errNotRemembered
	}
	return nil
}

func (*answers) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errNotRemembered
}

func (a *answers) marshal() ([]byte, error) {
	info, err := proto.Marshal(&a.info)
	if err != nil {
		return nil, err
	}
	schema, err := proto.Marshal(&a.schema)
	if err != nil {
		return nil, err
	}
	return slices.Concat(binary.AppendUvarint(nil, uint64(len(info))), info, schema), nil
}

func parseAnswers(b []byte) (*answers, error) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return nil, errNotRemembered
	}
	info, schema := b[n:n+int(size)], b[n+int(size):]
	a := &answers{}
	if err := errors.Join(proto.Unmarshal(info, &a.info), proto.Unmarshal(schema, &a.schema)); err != nil {
		return nil, err
	}
	return a, checkSchema(&a.schema)
}

// describe makes of the answers what they say.
func (a *answers) describe(ctx context.Context) (*Description, error) {
	c := client.New(a)
	info, err := c.Info(ctx, "", nil)
	if err != nil {
		return nil, err
	}
	schema, err := c.ConfigSchema(ctx)
	if err != nil {
		return nil, err
	}
	return &Description{clean(info), schema}, nil
}

// recorder passes calls on, and keeps the answers.
type recorder struct {
	grpc.ClientConnInterface
	answers
}

func (r *recorder) Invoke(ctx context.Context, method string, req, reply any, opts ...grpc.CallOption) error {
	if err := r.ClientConnInterface.Invoke(ctx, method, req, reply, opts...); err != nil {
		return err
	}
	switch x := reply.(type) {
	case *pluginv1.InfoResponse:
		proto.Merge(&r.info, x)
	case *pluginv1.ConfigSchemaResponse:
		proto.Merge(&r.schema, x)
	}
	return nil
}

func (r *recorder) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return r.ClientConnInterface.NewStream(ctx, d, method, opts...)
}
