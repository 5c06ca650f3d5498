package fs

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// sealed compiles a file system that is filled, and then read-only.
func (p *Prepared) sealed(m plan.Mount, fill func()) {
	set, rest := attrs(m.Options)
	p.op(initproto.Op{Code: initproto.OpMount, Target: m.Destination, FSType: m.Type, Data: strings.Join(rest, "\x00"), Set: set &^ unix.MOUNT_ATTR_RDONLY, FD: -1})
	p.op(initproto.Op{Code: initproto.OpOwner, Target: m.Destination, Mode: m.Mode, UID: m.UID, GID: m.GID, FD: -1})
	fill()
	p.origin = m.Origin
	p.op(initproto.Op{Code: initproto.OpAttr, Target: m.Destination, Set: set, FD: -1})
	p.expectMount(m.Destination, m.Type, set)
}

// notify compiles the socket that the sandbox tells of itself by. Every user of the
// sandbox may write to it, as to a service manager's: a server may have given up the
// user that it was started as before it is ready.
func (p *Prepared) notify(m plan.Mount) {
	p.sealed(m, func() {
		p.op(initproto.Op{Code: initproto.OpSocket, Target: p.plan.Notify.Socket, Mode: 0o666, UID: m.UID, GID: m.GID, FD: -1})
	})
}
