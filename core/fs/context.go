package fs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/tree"
)

// stream is a tree that is packed outside while init unpacks it inside.
type stream struct {
	source *os.File
	pipe   *os.File
	o      tree.PackOptions
	origin string
}

// context compiles the context: a copy that is streamed in, or a read-only bind.
func (p *Prepared) context(m plan.Mount) error {
	c := p.plan.Context
	f, real, err := p.source(c.Source, m.Origin)
	if err != nil {
		return err
	}
	dir, err := openDir(int(f.Fd()), ".")
	if err != nil {
		_ = f.Close()
		return &Error{Path: real, Origin: m.Origin, Hint: "name a directory", Err: fmt.Errorf("context %q: %w", c.Source, err)}
	}
	set, _ := attrs(m.Options)
	if c.Method == "bind" {
		p.verify = dir
		idmap, err := p.lentAs(m, f)
		if err != nil {
			_ = f.Close()
			return &Error{Path: real, Origin: m.Origin, Err: err}
		}
		if err := p.bindOp(f, real, m.Destination, set, idmap); err != nil {
			return &Error{Path: real, Origin: m.Origin, Err: err}
		}
		p.expectMount(m.Destination, "", set)
		return nil
	}
	_ = f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		_ = dir.Close()
		return err
	}
	p.streams = append(p.streams, stream{source: dir, pipe: w, o: tree.PackOptions{Exclude: c.Exclude, MaxBytes: min(p.plan.Root.Size, tree.DefaultMaxBytes)}, origin: m.Origin})
	o := initproto.Op{Code: initproto.OpMkdir, Target: m.Destination, Mode: m.Mode, UID: m.UID, GID: m.GID, FD: -1}
	p.op(o)
	o.Code, o.FD = initproto.OpUnpack, p.pass(r)
	if c.Verify {
		o.Flags |= initproto.FlagVerify
	}
	p.op(o)
	if p.plan.Root.Kind == plan.RootOverlay {
		set |= unix.MOUNT_ATTR_RDONLY
	}
	p.op(initproto.Op{Code: initproto.OpBind, Target: m.Destination, Source: m.Destination, Set: set, Flags: initproto.FlagInRoot, FD: -1})
	p.expectMount(m.Destination, "", set)
	return nil
}

// Stream gives a function that packs the trees that init unpacks, and owns them from
// now on; nil for none. It returns what they hold once all have been read, or the reader has gone.
func (p *Prepared) Stream() func(context.Context) ([]tree.Summary, error) {
	if len(p.streams) == 0 {
		return nil
	}
	streams := p.streams
	p.streams = nil
	return func(ctx context.Context) ([]tree.Summary, error) { return pack(ctx, streams) }
}

func pack(ctx context.Context, streams []stream) ([]tree.Summary, error) {
	var sums []tree.Summary
	var first error
	for _, s := range streams {
		sum, err := tree.Pack(ctx, s.source, s.pipe, s.o)
		_ = s.source.Close()
		if cerr := s.pipe.Close(); err == nil {
			err = cerr
		}
		if err != nil && first == nil {
			first = &Error{Path: s.source.Name(), Origin: s.origin, Hint: packHint(err), Err: fmt.Errorf("copying the context: %w", err)}
		}
		sums = append(sums, sum)
	}
	return sums, first
}

// packHint says what to do about a tree that cannot be copied, if that is known.
func packHint(err error) string {
	var (
		limit   *tree.LimitError
		mount   *tree.MountPointError
		changed *tree.ChangedError
	)
	switch {
	case errors.As(err, &limit) && limit.What == "bytes" && limit.Limit < tree.DefaultMaxBytes:
		return `leave out what is not needed (exclude), write method = "bind", or raise resources { rootfs_size = … }`
	case errors.As(err, &limit):
		return `leave out what is not needed (exclude), or write method = "bind"`
	case errors.As(err, &mount):
		return "leave it out (exclude), or unmount it"
	case errors.As(err, &changed):
		return "start again when nobody writes to the tree"
	case errors.Is(err, fs.ErrPermission):
		return "leave it out (exclude), or make it readable"
	}
	return ""
}

// VerifyBind attests that a bound context is, inside, the tree that was named.
// inside is the sandbox's root.
func (p *Prepared) VerifyBind(ctx context.Context, inside *os.File) error {
	c := p.plan.Context
	if p.verify == nil || !c.Verify {
		return nil
	}
	want, err := tree.Digest(ctx, p.verify)
	if err != nil {
		return &Error{Path: c.Source, Origin: "context.source", Err: fmt.Errorf("context: %w", err)}
	}
	d, err := openDir(int(inside.Fd()), c.Target)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := tree.Verify(ctx, d, want, 0); err != nil {
		return &Error{Path: c.Target, Origin: "context", Err: fmt.Errorf("context: %w", err)}
	}
	return nil
}
