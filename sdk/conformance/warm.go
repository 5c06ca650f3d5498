package conformance

import (
	"context"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// keepTime is long enough for a host to connect again on a busy machine.
const keepTime = 2 * time.Second

func warm(ctx context.Context, k *Checker) error {
	p, err := k.start(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	if _, err := p.lifeline.Write(handshake.Keep(keepTime)); err != nil {
		return err
	}
	p.lifeline.Close()
	if k.known.info.GetLifetime() != pluginv1.Lifetime_LIFETIME_WARM_OK {
		if p.ended(deathLimit) {
			return nil
		}
		return k.deafOrWarm(ctx)
	}
	// The first connection is still there.
	if p.ended(keepTime + keepTime/2) {
		return broken("it ended with the lifeline (%s)%s", p.fate, p.said())
	}
	return p.served(ctx)
}

// deafOrWarm tells a plugin that stays because it was told to from one that never ends
// with its lifeline, which another rule is about.
func (k *Checker) deafOrWarm(ctx context.Context) error {
	p, err := k.start(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	p.lifeline.Close()
	if !p.ended(deathLimit) {
		return skip("it does not end with its lifeline: see base/lifeline")
	}
	return broken("with lifetime %s it outlives the lifeline", k.known.info.GetLifetime())
}

// served connects to a plugin that was kept once more, and leaves it.
func (p *process) served(ctx context.Context) error {
	first := p.conn
	defer first.Close()
	if err := p.connect(ctx); err != nil {
		return broken("connecting once more: %s", err)
	}
	_ = first.Close()
	if err := p.healthy(ctx); err != nil {
		return broken("to a later host: %s", err)
	}
	alone := time.Now()
	_ = p.conn.Close()
	if !p.ended(keepTime + startLimit) {
		return broken("it still runs %s after its last connection, and was to stay for %s", time.Since(alone).Round(time.Second), keepTime)
	}
	if stayed := time.Since(alone); stayed < keepTime {
		return broken("it ended %s after its last connection, and was to stay for %s", stayed.Round(time.Millisecond), keepTime)
	}
	return p.socketGone()
}
