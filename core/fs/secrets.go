package fs

import (
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// secrets compiles the file system of the secrets and its files. Where the values
// are is not known yet: whoever sends the operations sets the descriptors.
func (p *Prepared) secrets(m plan.Mount) {
	p.SecretOps = map[string]int{}
	p.sealed(m, func() {
		for _, s := range p.plan.Secrets {
			if s.Env != "" {
				continue
			}
			p.origin = s.Origin
			p.SecretOps[s.Name] = len(p.Ops)
			p.op(initproto.Op{Code: initproto.OpSecret, Target: s.Target, Mode: s.Mode, UID: s.UID, GID: s.GID, FD: -1})
		}
	})
}
