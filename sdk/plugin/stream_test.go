package plugin_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// watch is a call that lasts: it has no deadline.
func watch(ctx context.Context, h *host, r network.WatchRequest, tell func(network.Denial) error) error {
	return h.Network([]string{network.FeatureWatch}).Watcher.Watch(ctx, &r, tell)
}

func nothing(network.Denial) error { return nil }

func TestStreamsSurviveTheirErrors(t *testing.T) {
	h := start(t, "network")
	for _, tc := range []struct {
		name string
		req  network.WatchRequest
		tell func(network.Denial) error
		code errs.Code
		text string
	}{
		{"a panic", network.WatchRequest{SandboxID: "panic"}, nothing, errs.Internal, "the plugin panicked in /nucleus.plugin.v1.Network/Watch: watch went wrong"},
		{"an error", network.WatchRequest{SandboxID: "down"}, nothing, errs.Unavailable, "the monitor is down"},
		{"a handle of an unknown version", network.WatchRequest{Handle: network.Handle{Version: 7}}, nothing, errs.Precondition, "version 7"},
		{"who listens has enough", network.WatchRequest{}, func(network.Denial) error { return errs.Abortedf("enough") }, errs.Aborted, "enough"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := watch(t.Context(), h, tc.req, tc.tell)
			if errs.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v %v", errs.CodeOf(err), err)
			}
			if tc.code == errs.Internal {
				if e := as(t, err); e.Panic == nil || !strings.Contains(e.Panic.Stack, "wires.") {
					t.Errorf("the panic: %+v", e.Panic)
				}
			}
		})
	}
	if _, err := h.Health(soon(t)); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func TestStreamsEnd(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(t *testing.T, h *host, cancel context.CancelFunc)
		gone bool // with the plugin
		code errs.Code
	}{
		{"with their caller", func(_ *testing.T, _ *host, cancel context.CancelFunc) { cancel() }, false, errs.Canceled},
		{"with the connection", func(_ *testing.T, h *host, _ context.CancelFunc) { h.conn.Close() }, false, errs.Canceled},
		{"with the host", func(_ *testing.T, h *host, _ context.CancelFunc) { h.lifeline.Close() }, true, errs.Unavailable},
		{"with the plugin", func(t *testing.T, h *host, _ context.CancelFunc) {
			if err := h.Shutdown(soon(t)); err != nil {
				t.Error(err)
			}
		}, true, errs.Unavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := start(t, "network")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- watch(ctx, h, network.WatchRequest{SandboxID: "hangs"}, nothing) }()
			eventually(t, "the call", func() bool { return len(h.count(t)) == 1 })
			tc.end(t, h, cancel)
			if err := <-done; errs.CodeOf(err) != tc.code {
				t.Errorf("got %v", err)
			}
			if tc.gone {
				eventually(t, "the end of the plugin", h.proc.Exited)
			}
			if tc.name != "with the host" { // there the plugin has no time for more
				eventually(t, "the end of the call", func() bool { return len(h.count(t)) == 2 })
			}
		})
	}
}

// gRPC does not allow to send on a stream whose handler has returned.
func TestWhatIsToldTooLateIsRefused(t *testing.T) {
	h := start(t, "network")
	if err := watch(t.Context(), h, network.WatchRequest{SandboxID: "leaves"}, nothing); err != nil {
		t.Error(err)
	}
	eventually(t, "the end of the thread", func() bool { return slices.Contains(h.count(t), "late: io: read/write on closed pipe") })
	if _, err := h.Health(soon(t)); err != nil {
		t.Error(err)
	}
}
