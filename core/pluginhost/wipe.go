package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that is looked up here
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// wiper knows all memory in which a connection has held what a plugin answers, and
// overwrites it: values of secrets come this way, and this process lives as long as
// the sandbox. gRPC has buffers of its own on the way from the socket to a message,
// and gives none of them back clean; so they are all taken from here, or noted as
// they are read into.
type wiper struct {
	mu    sync.Mutex
	held  [][]byte
	size  int // of what is held
	wiped bool
}

// maxHeld is room for two answers of the largest size. Whoever says more wants to
// fill our memory.
const maxHeld = 2 * maxMessage

var errFlood = fmt.Errorf("it has sent more than %d MiB", maxHeld>>20)

func (w *wiper) note(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wiped {
		clear(b)
		return
	}
	w.held = append(w.held, b)
	w.size += len(b)
}

func (w *wiper) full() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.size > maxHeld
}

// wipe overwrites everything. The connection is closed: nobody reads what is gone.
func (w *wiper) wipe() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.held {
		clear(b)
	}
	w.held, w.wiped = nil, true
}

// options make a connection that leaves nothing behind.
func (w *wiper) options(peers credentials.TransportCredentials) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(&wipingCredentials{peers, w}),
		// Without a buffer of its own the transport reads into what is noted.
		grpc.WithReadBufferSize(0),
		experimental.WithBufferPool(w),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(wipingCodec{encoding.GetCodecV2("proto")})),
	}
}

// Get and Put are a mem.BufferPool's.
func (w *wiper) Get(n int) *[]byte {
	b := make([]byte, n)
	w.note(b)
	return &b
}

// Put is for what is read no more.
func (*wiper) Put(b *[]byte) { clear((*b)[:cap(*b)]) }

// wipingCodec puts the parts of a message together in memory of its own.
type wipingCodec struct{ encoding.CodecV2 }

func (wipingCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return errors.New("an answer that is no message")
	}
	b := data.Materialize()
	defer clear(b)
	return proto.Unmarshal(b, m)
}

// wipingCredentials note what is read from the connections that they let pass.
type wipingCredentials struct {
	credentials.TransportCredentials
	w *wiper
}

func (c *wipingCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err == nil {
		conn = &notingConn{conn, c.w}
	}
	return conn, info, err
}

func (c *wipingCredentials) Clone() credentials.TransportCredentials {
	return &wipingCredentials{c.TransportCredentials.Clone(), c.w}
}

type notingConn struct {
	net.Conn
	w *wiper
}

func (c *notingConn) Read(b []byte) (int, error) {
	if c.w.full() {
		return 0, errFlood
	}
	n, err := c.Conn.Read(b)
	c.w.note(b[:n])
	return n, err
}
