// Package fs owns the file system of a sandbox as seen from outside: it opens
// what comes from the host, compiles the plan's mounts into operations that
// init carries out, and says what must be found when they are done. It makes
// no mount in the host's namespace.
package fs

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// Error is a failure that belongs to one part of the plan.
type Error struct {
	Path   string // path inside the sandbox, or on the host
	Origin string // the job's path of the block, "" for a default
	Hint   string
	Err    error

	// unmappable: the file system of a source has no idmapped mounts.
	unmappable bool
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Options of Prepare.
type Options struct {
	// Privileged: this process may clone host mounts itself, and so can give the
	// sandbox what the sandbox's own root could not open.
	Privileged bool
	// Refused are host paths that no sandbox may have anything of, by whatever name or
	// mount: the state root, and where plugins have their sockets.
	Refused []string
	// Programs is where Nucleus's programs are. No job may bind it, but the host's
	// toolchain may show it.
	Programs string
	// Helper is a program that stops at once when traced, to hold the user
	// namespace of an idmapped mount.
	Helper string
	// Enclosure is what the root of a runtime plugin's program holds, if the plan names
	// one.
	Enclosure *Enclosure
	// UserNS opens the sandbox's own user namespace, which serves for
	// mounts whose ids are shifted as the sandbox's are. It may have to wait.
	UserNS func() (*os.File, error)
}

// Prepared is the compiled file system phase.
type Prepared struct {
	Ops   []initproto.Op
	Files []*os.File // descriptors that the operations name by index
	// Origins gives the job's path for each operation.
	Origins []string
	// Entries are the top-level entries of the rootfs, for Landlock.
	Entries []string
	// SecretOps gives the operation that makes a secret's file, by the secret's name.
	SecretOps map[string]int
	// ConfigOp is the operation that makes a runtime plugin's config.json.
	ConfigOp int
	// Created are host directories that were made because a volume said create.
	Created []string

	expect  []expectation
	want    expected // of them, once Expect was called
	streams []stream
	verify  *os.File // the context's source, method bind
	plan    *plan.Plan
	origin  string
	opts    Options
	// writable are the host directories that the job lends writable.
	writable map[inode]bool
	owns     []own
}

// Close closes all descriptors.
func (p *Prepared) Close() {
	for _, f := range p.Files {
		_ = f.Close() // opened for reading only
	}
	p.Files = nil
	for _, s := range p.streams {
		_ = s.source.Close()
		_ = s.pipe.Close()
	}
	p.streams = nil
	if p.verify != nil {
		_ = p.verify.Close()
		p.verify = nil
	}
}

// staging is a directory on the root tmpfs for what is only needed while the
// root is built. It is gone before the workload starts.
const staging = "/.nucleus"

// Prepare compiles the plan's file system, and attests the rootfs if the job
// pins its digest.
func Prepare(ctx context.Context, pl *plan.Plan, o Options) (_ *Prepared, err error) {
	p := &Prepared{plan: pl, opts: o, writable: writable(pl.Mounts)}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	p.op(initproto.Op{Code: initproto.OpRoot, FSType: "tmpfs", Data: fmt.Sprintf("mode=0755\x00size=%d", pl.Root.Size), Set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, FD: -1})
	p.op(initproto.Op{Code: initproto.OpMkdir, Target: staging, Mode: 0o700, UID: p.rootUID(), GID: p.rootGID(), FD: -1})
	files := pl.Files
	if pl.Root.Kind != plan.RootToolchain {
		p.origin = "rootfs" // in whose directories the files are put, too
		if files, err = p.rootfs(ctx); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		p.file(f)
	}
	for _, m := range pl.Mounts {
		p.origin = m.Origin
		if err := p.mount(m); err != nil {
			return nil, err
		}
	}
	p.origin = ""
	if pl.Runtime != nil {
		p.finish()
		return p, p.enclose()
	}
	for _, path := range pl.MaskedPaths {
		p.op(initproto.Op{Code: initproto.OpMask, Target: path, FD: -1})
	}
	for _, path := range pl.ReadonlyPaths {
		p.op(initproto.Op{Code: initproto.OpReadOnly, Target: path, Set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, FD: -1})
	}
	p.closeDev()
	p.finish()
	return p, nil
}

// closeDev makes /dev read-only, once all is in it.
func (p *Prepared) closeDev() {
	p.op(initproto.Op{Code: initproto.OpAttr, Target: "/dev", Set: unix.MOUNT_ATTR_RDONLY, FD: -1})
}

// finish clears up and makes read-only what nobody may write to.
func (p *Prepared) finish() {
	if p.plan.Network.Plugin {
		p.op(initproto.Op{Code: initproto.OpConnect, FD: -1})
	}
	if p.plan.Root.Kind == plan.RootOverlay {
		return // staging lies on the base, which is not in the root
	}
	if p.plan.Root.Kind == plan.RootRootfs {
		p.op(initproto.Op{Code: initproto.OpDetach, Target: lowerDir, FD: -1})
	}
	keep := false
	for _, m := range p.plan.Mounts {
		if m.Kind == plan.MountOverlay {
			keep = true // its layers live in staging: 0700, on a root that becomes read-only
		}
	}
	if !keep {
		p.op(initproto.Op{Code: initproto.OpRemove, Target: staging, Flags: initproto.FlagDir, FD: -1})
	}
	p.op(initproto.Op{Code: initproto.OpAttr, Target: "/", Set: unix.MOUNT_ATTR_RDONLY, FD: -1})
	p.expectMount("/", "tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_RDONLY)
}

func (p *Prepared) op(o initproto.Op) {
	p.Ops = append(p.Ops, o)
	p.Origins = append(p.Origins, p.origin)
}

// pass adds a descriptor to those that travel with the setup.
func (p *Prepared) pass(f *os.File) int32 {
	p.Files = append(p.Files, f)
	return int32(len(p.Files) - 1)
}

func (p *Prepared) file(f plan.File) {
	o := initproto.Op{Code: initproto.OpFile, Target: f.Path, Data: f.Content, Mode: f.Mode, FD: -1, UID: p.rootUID(), GID: p.rootGID()}
	if p.plan.Root.Kind == plan.RootOverlay {
		o.Flags |= initproto.FlagReplace
	}
	p.op(later(o, f))
}

// later marks a file that the network completes.
func later(o initproto.Op, f plan.File) initproto.Op {
	if f.Network {
		o.Flags |= initproto.FlagNetwork
		o.Source = f.Path
	}
	return o
}

// rootUID gives the owner of what belongs to nobody in particular: 0, or the
// only id there is.
func (p *Prepared) rootUID() uint32 { return zeroOrFirst(p.plan, true) }
func (p *Prepared) rootGID() uint32 { return zeroOrFirst(p.plan, false) }

func zeroOrFirst(pl *plan.Plan, uid bool) uint32 {
	if pl.IDs.Kind == "none" {
		return 0
	}
	maps := pl.IDs.GIDs
	if uid {
		maps = pl.IDs.UIDs
	}
	if _, ok := plan.HostID(maps, 0); ok {
		return 0
	}
	return maps[0].ContainerID
}

func (p *Prepared) mount(m plan.Mount) error {
	if m.Inside {
		p.place(m)
		return nil
	}
	switch m.Kind {
	case plan.MountLink:
		o := initproto.Op{Code: initproto.OpSymlink, Target: m.Destination, Source: m.Source, FD: -1}
		p.op(o)
	case plan.MountToolchain:
		if err := p.showable(m); err != nil {
			return err
		}
		set, _ := attrs(m.Options)
		p.op(initproto.Op{Code: initproto.OpBind, Target: m.Destination, Source: m.Source, Set: set, Flags: initproto.FlagRecursive | initproto.FlagFollow, FD: -1})
		p.expectMount(m.Destination, "", set)
	case plan.MountDevice:
		set, _ := attrs(m.Options)
		p.op(initproto.Op{Code: initproto.OpBind, Target: m.Destination, Source: m.Source, Set: set, Flags: initproto.FlagFile, FD: -1})
		p.expectMount(m.Destination, "", set)
	case plan.MountFS, plan.MountTmpfs:
		p.fresh(m)
	case plan.MountScratch:
		p.scratch(m)
	case plan.MountContext:
		return p.context(m)
	case plan.MountSecrets:
		p.secrets(m)
	case plan.MountNotify:
		p.notify(m)
	case plan.MountBind:
		return p.bind(m)
	case plan.MountOverlay:
		return p.workspaceOverlay(m)
	default:
		return fmt.Errorf("mount kind %q: unknown", m.Kind)
	}
	return nil
}

// fresh mounts a new file system.
func (p *Prepared) fresh(m plan.Mount) {
	set, rest := attrs(m.Options)
	o := initproto.Op{Code: initproto.OpMount, Target: m.Destination, FSType: m.Type, Data: strings.Join(rest, "\x00"), Set: set, FD: -1}
	if m.Optional {
		o.Flags |= initproto.FlagOptional
	}
	p.op(o)
	if m.Destination == "/dev" {
		set |= unix.MOUNT_ATTR_RDONLY // once its mount points are made
	}
	if m.Kind == plan.MountTmpfs {
		p.op(initproto.Op{Code: initproto.OpOwner, Target: m.Destination, Mode: m.Mode, UID: m.UID, GID: m.GID, FD: -1})
	}
	p.expect = append(p.expect, expectation{target: m.Destination, fstype: m.Type, set: set, optional: m.Optional})
}

// scratch makes a writable directory on the root tmpfs and mounts it over
// itself, so that it stays writable when the root becomes read-only.
func (p *Prepared) scratch(m plan.Mount) {
	p.op(initproto.Op{Code: initproto.OpMkdir, Target: m.Destination, Mode: m.Mode, UID: m.UID, GID: m.GID, FD: -1})
	if p.plan.Root.Kind == plan.RootOverlay {
		return
	}
	set, _ := attrs(m.Options)
	p.op(initproto.Op{Code: initproto.OpBind, Target: m.Destination, Source: m.Destination, Set: set, Flags: initproto.FlagInRoot, FD: -1})
	p.expectMount(m.Destination, "tmpfs", set)
}

// attrs splits mount options into MOUNT_ATTR_* bits and what the file system takes.
func attrs(options []string) (set uint64, rest []string) {
	for _, o := range options {
		switch o {
		case "ro":
			set |= unix.MOUNT_ATTR_RDONLY
		case "nosuid":
			set |= unix.MOUNT_ATTR_NOSUID
		case "nodev":
			set |= unix.MOUNT_ATTR_NODEV
		case "noexec":
			set |= unix.MOUNT_ATTR_NOEXEC
		case "rw", "bind", "rbind":
		default:
			rest = append(rest, o)
		}
	}
	return set, rest
}
