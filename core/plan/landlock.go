package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/job"
)

// Landlock is the ruleset of the sandbox, by the kernel's access rights.
type Landlock struct {
	ABI       int    `json:"abi"` // 0: none
	HandledFS uint64 `json:"handledFS,omitempty"`
	Scoped    uint64 `json:"scoped,omitempty"`
	// NoDefaults: only the job's own rules are there.
	NoDefaults bool           `json:"noDefaults,omitempty"`
	Rules      []LandlockRule `json:"rules,omitempty"`
	// HandledNet and Ports confine TCP; without them it is as the network
	// namespace has it.
	HandledNet uint64         `json:"handledNet,omitempty"`
	Ports      []LandlockPort `json:"ports,omitempty"`
}

// LandlockPort grants TCP on one port.
type LandlockPort struct {
	Port   uint16 `json:"port"`
	Rights uint64 `json:"rights"`
}

// LandlockRule grants access beneath a path inside the sandbox.
type LandlockRule struct {
	Path   string   `json:"path"`
	Access []string `json:"access"`
	Rights uint64   `json:"rights"`
	Origin string   `json:"origin,omitempty"`
	// Optional: where the path does not exist there is nothing to grant.
	Optional bool `json:"optional,omitempty"`
	// Entries: the rule is for every entry of the rootfs's top directory, not for
	// the directory itself, which would take in /proc and /dev (W32).
	Entries bool `json:"entries,omitempty"`
}

// Landlock's access rights (include/uapi/linux/landlock.h), by the ABI that has them.
const (
	llExecute    = 1 << 0
	llWriteFile  = 1 << 1
	llReadFile   = 1 << 2
	llReadDir    = 1 << 3
	llRemoveDir  = 1 << 4
	llRemoveFile = 1 << 5
	llMakeChar   = 1 << 6
	llMakeDir    = 1 << 7
	llMakeReg    = 1 << 8
	llMakeSock   = 1 << 9
	llMakeFifo   = 1 << 10
	llMakeBlock  = 1 << 11
	llMakeSym    = 1 << 12
	llRefer      = 1 << 13 // ABI 2
	llTruncate   = 1 << 14 // ABI 3
	llIoctlDev   = 1 << 15 // ABI 5

	llBindTCP    = 1 << 0 // ABI 4
	llConnectTCP = 1 << 1 // ABI 4

	llScopeAbstractUnix = 1 << 0 // ABI 6
	llScopeSignal       = 1 << 1 // ABI 6
)

// rights are the words of a job. "read" does not imply "execute" (W31).
var rights = map[string]uint64{
	"read":    llReadFile | llReadDir,
	"list":    llReadDir,
	"write":   llWriteFile | llTruncate,
	"create":  llMakeReg | llMakeDir | llMakeSym | llMakeSock | llMakeFifo | llRefer,
	"remove":  llRemoveFile | llRemoveDir,
	"execute": llExecute,
	"ioctl":   llIoctlDev,
}

func handledFS(abi int) uint64 {
	fs := uint64(llRefer) - 1 // all of ABI 1
	if abi >= 2 {
		fs |= llRefer
	}
	if abi >= 3 {
		fs |= llTruncate
	}
	if abi >= 5 {
		fs |= llIoctlDev
	}
	return fs
}

func (m *maker) landlock() {
	l := &m.p.Landlock
	l.ABI = m.h.LandlockABI
	if l.ABI == 0 {
		if len(m.j.Security.Landlock) > 0 || m.j.Security.LandlockTCP != nil {
			m.fail("security.landlock", "remove the block, or boot a kernel with Landlock", "Landlock rules cannot be enforced: this kernel has no Landlock")
		}
		return
	}
	m.landlockTCP()
	l.HandledFS = handledFS(l.ABI)
	if l.ABI >= 6 {
		l.Scoped = llScopeAbstractUnix | llScopeSignal
	}
	l.NoDefaults = m.j.Security.NoDefaultLandlock
	if !l.NoDefaults {
		m.defaultRules()
	}
	for i, r := range m.j.Security.Landlock {
		origin := fmt.Sprintf("security.landlock.rule[%d]", i)
		var set uint64
		for _, a := range r.Access {
			set |= rights[a]
		}
		if m.j.Mode == job.ModeProduction && set&llExecute != 0 && set&(llWriteFile|llMakeReg) != 0 {
			m.fail(origin, "split the rule, and execute only what cannot be written", "a Landlock rule that grants write and execute is refused in mode production")
		}
		for _, p := range r.Paths {
			m.rule(LandlockRule{Path: p, Access: r.Access, Origin: origin})
		}
	}
}

// landlockTCP confines TCP to the ports that the job names, both ways: a list
// that is left out grants nothing.
func (m *maker) landlockTCP() {
	t := m.j.Security.LandlockTCP
	if t == nil {
		return
	}
	l := &m.p.Landlock
	if l.ABI < 4 {
		m.fail("security.landlock.tcp", "remove the tcp block, or use a kernel from 6.7 on", "Landlock rules for TCP cannot be enforced: this kernel has Landlock ABI %d, they need ABI 4", l.ABI)
		return
	}
	if c := m.j.Security.Seccomp; c != nil && slices.Contains(c.Allow, "io_uring_setup") {
		m.fail("security.seccomp.allow", "remove io_uring_setup, or the landlock { tcp } block", "io_uring can send over TCP in ways that Landlock's rules do not see: with landlock { tcp } it cannot be allowed")
		return
	}
	m.p.Seccomp.PlainTCP = true
	l.HandledNet = llBindTCP | llConnectTCP
	granted := map[uint16]uint64{}
	for _, n := range t.Connect {
		granted[n] |= llConnectTCP
	}
	for _, n := range t.Bind {
		granted[n] |= llBindTCP
	}
	for _, n := range slices.Sorted(maps.Keys(granted)) {
		l.Ports = append(l.Ports, LandlockPort{Port: n, Rights: granted[n]})
	}
}

func (m *maker) rule(r LandlockRule) {
	for _, a := range r.Access {
		r.Rights |= rights[a]
	}
	r.Rights &= m.p.Landlock.HandledFS
	m.p.Landlock.Rules = append(m.p.Landlock.Rules, r)
}

// defaultRules follow the mounts: what is mounted read-only may be read, what
// is mounted writable may be written, and so for execute. Landlock then holds
// where a mount flag alone would not, and for paths reached through a
// descriptor of the host's.
func (m *maker) defaultRules() {
	ro, rx := []string{"read"}, []string{"read", "execute"}
	rw := []string{"read", "write", "create", "remove"}
	rwx := append(append([]string(nil), rw...), "execute")
	switch m.p.Root.Kind {
	case RootRootfs:
		m.rule(LandlockRule{Path: "/", Access: rx, Entries: true})
	case RootOverlay:
		// All of it may be written; what lies on it is confined by its own mounts.
		m.rule(LandlockRule{Path: "/", Access: rwx})
	}
	// The root itself may be listed. Landlock's rules are hierarchical, so this
	// one takes in all below; that adds nothing here, for by the rules that
	// follow every directory may be read. Without the default rules there is no
	// such rule (W32).
	m.rule(LandlockRule{Path: "/", Access: []string{"list"}})
	m.rule(LandlockRule{Path: "/proc", Access: []string{"read", "write"}})
	m.rule(LandlockRule{Path: "/sys", Access: ro, Optional: true})
	m.rule(LandlockRule{Path: "/dev", Access: []string{"read", "write", "ioctl"}})
	m.rule(LandlockRule{Path: "/dev/shm", Access: rw})
	m.rule(LandlockRule{Path: "/dev/mqueue", Access: rw, Optional: true})
	m.rule(LandlockRule{Path: "/etc", Access: ro, Optional: true})
	for _, x := range m.p.Mounts {
		switch x.Kind {
		case MountToolchain:
			if strings.HasPrefix(x.Destination, "/etc/") {
				continue // below /etc, which is read-only as a whole
			}
			m.rule(LandlockRule{Path: x.Destination, Access: rx})
		case MountScratch, MountBind, MountContext, MountOverlay, MountTmpfs, MountSecrets:
			a := ro
			write, exec := !x.Has("ro"), !x.Has("noexec")
			switch {
			case write && exec:
				a = rwx
			case write:
				a = rw
			case exec:
				a = rx
			}
			m.rule(LandlockRule{Path: x.Destination, Access: a, Origin: x.Origin})
		}
	}
}

// Has reports whether a mount has an option.
func (x Mount) Has(option string) bool {
	for _, o := range x.Options {
		if o == option {
			return true
		}
	}
	return false
}
