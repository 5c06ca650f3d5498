package pluginhost

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// unfit is the error of a plugin that does not serve what a job wants of it.
func unfit(name string, as manifest.Service) error {
	look := ": nucleus plugin info " + name + " tells what this one serves"
	switch as {
	case manifest.Hooks:
		return &Error{name, errors.New("it is no hooks plugin"), "name one that is" + look}
	case manifest.Network:
		return &Error{name, errors.New("it connects no networks"), "name a plugin that does" + look}
	case manifest.Runtime:
		return &Error{name, errors.New("it runs no sandboxes"), "name a plugin that does" + look}
	}
	return &Error{name, errors.New("it gives no secrets"), ""}
}

// ready tells a plugin what its operator says to it, and gives the schema of the blocks
// that jobs have for the service it was started for.
func (h *Host) ready(ctx context.Context, p *Plugin) (*Description, *Schema, error) {
	d, err := h.Describe(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	if !d.Serves(p.Service) {
		return nil, nil, unfit(p.Name, p.Service)
	}
	if err := h.configureSelf(ctx, p, d); err != nil {
		return nil, nil, err
	}
	schema, err := NewSchema(d.Schema.Instance[string(p.Service)])
	if err != nil {
		return nil, nil, &Error{Plugin: p.Name, Err: err}
	}
	return d, schema, nil
}

// open starts a plugin and has it configured for one sandbox; one that cannot be is
// ended.
func (h *Host) open(ctx context.Context, name string, as manifest.Service, configure func(*Plugin, *Schema) error) (_ *Plugin, _ *Description, err error) {
	p, err := h.Start(ctx, name, as)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	d, schema, err := h.ready(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	return p, d, configure(p, schema)
}

// settle configures the instance of a block, and gives what of it may be written down.
func (h *Host) settle(ctx context.Context, p *Plugin, schema *Schema, body hcl.Body, eval *hcl.EvalContext, id string) ([]byte, error) {
	value, err := h.configure(ctx, p, schema, body, eval, p.Service, id)
	if err != nil {
		return nil, err
	}
	recorded, err := schema.Public(value)
	if len(recorded) > maxRecorded {
		err = &Error{p.Name, fmt.Errorf("its configuration has %d bytes, and may have %d", len(recorded), maxRecorded), ""}
	}
	return recorded, err
}

// remind configures an instance with what a record has of its block. What must not be
// written down is missing there; that this may be too little is no error: all that is
// still wanted may be found by the sandbox's id.
func (h *Host) remind(ctx context.Context, p *Plugin, schema *Schema, recorded []byte, id string) error {
	err := h.send(ctx, p, schema, nil, recorded, p.Service, id)
	var bad *ConfigError
	if errors.As(err, &bad) {
		return nil
	}
	return err
}

// stateRoot is what plugins are told of the state root. Its path would be the same for
// one that was made anew, whose earlier sandboxes may live still, and in a container that
// shares the host's network; an inode's number is soon another's.
func (h *Host) stateRoot() string {
	var x unix.Statx_t
	_ = unix.Statx(unix.AT_FDCWD, h.o.StateRoot, unix.AT_STATX_SYNC_AS_STAT, unix.STATX_INO|unix.STATX_BTIME, &x) // one that is not there has no sandboxes
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%d %d %d.%d", x.Dev_major, x.Dev_minor, x.Ino, x.Btime.Sec, x.Btime.Nsec))
	return hex.EncodeToString(sum[:16])
}
