package fs

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// secrets compiles the file system of the secrets and its files. Where the values
// are is not known yet: whoever sends the operations sets the descriptors.
func (p *Prepared) secrets(m plan.Mount) {
	set, rest := attrs(m.Options)
	p.op(initproto.Op{Code: initproto.OpMount, Target: m.Destination, FSType: m.Type, Data: strings.Join(rest, "\x00"), Set: set &^ unix.MOUNT_ATTR_RDONLY, FD: -1})
	p.op(initproto.Op{Code: initproto.OpOwner, Target: m.Destination, Mode: m.Mode, UID: m.UID, GID: m.GID, FD: -1})
	p.SecretOps = map[string]int{}
	for _, s := range p.plan.Secrets {
		if s.Env != "" {
			continue
		}
		p.origin = s.Origin
		p.SecretOps[s.Name] = len(p.Ops)
		p.op(initproto.Op{Code: initproto.OpSecret, Target: s.Target, Mode: s.Mode, UID: s.UID, GID: s.GID, FD: -1})
	}
	p.origin = m.Origin
	p.op(initproto.Op{Code: initproto.OpAttr, Target: m.Destination, Set: set, FD: -1})
	p.want(m.Destination, m.Type, set)
}
