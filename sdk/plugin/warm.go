package plugin

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/stats"

	"github.com/nucleus-runtime/nucleus/sdk/plugin/internal/launch"
)

// warm ends a process that outlives the host that started it, as soon as no host has
// been connected for so long.
type warm struct {
	end func()

	mu    sync.Mutex
	conns int
	keep  time.Duration // 0 while the first host is there
	timer *time.Timer   // runs while nobody is connected
}

func newWarm(end func()) *warm {
	// A host that is killed takes the readers of our output along a moment before we
	// know. Not signal.Ignore, which what we start would inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return &warm{end: end}
}

// begin is called when the first host is gone, and wants the process to stay.
func (w *warm) begin(keep time.Duration) error {
	if err := launch.Mute(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keep = keep
	w.rest()
	return nil
}

// rest is called with the lock held.
func (w *warm) rest() {
	if w.keep == 0 || w.conns > 0 {
		return
	}
	w.timer = time.AfterFunc(w.keep, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.conns == 0 {
			w.end()
		}
	})
}

// HandleConn counts the connections whose peers were accepted.
func (w *warm) HandleConn(_ context.Context, s stats.ConnStats) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch s.(type) {
	case *stats.ConnBegin:
		w.conns++
		if w.timer != nil {
			w.timer.Stop()
		}
	case *stats.ConnEnd:
		w.conns--
		w.rest()
	}
}

// TagConn, TagRPC and HandleRPC are the rest of a stats.Handler.
func (*warm) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// TagRPC changes nothing.
func (*warm) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC hears nothing that matters.
func (*warm) HandleRPC(context.Context, stats.RPCStats) {}
