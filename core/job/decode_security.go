package job

import (
	"fmt"
	"slices"

	"github.com/nucleus-runtime/nucleus/core/job/internal/grammar"
	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
)

func (d *decoder) security(b hclread.Block) {
	s := &d.j.Security
	d.r.Read(b, hclread.Schema{
		Attrs: []hclread.Attr{
			{Name: "lockdown", Read: enum(&s.Lockdown, "integrity", "confidentiality")},
			{Name: "no_default_landlock", Read: boolean(&s.NoDefaultLandlock)},
		},
		Blocks: []hclread.Nested{
			{Name: "capabilities", Read: d.capabilities},
			{Name: "seccomp", Read: d.seccomp},
			{Name: "landlock", Read: d.landlock},
		},
	})
}

func (d *decoder) capabilities(b hclread.Block) {
	s := &d.j.Security
	s.CapabilitiesGiven = true
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{{Name: "keep", Read: func(v hclread.Value) {
		es, ok := v.Elements()
		if !ok {
			return
		}
		names, ok := v.Strings()
		if !ok {
			return
		}
		for i, n := range names {
			c, known := grammar.Capability(n)
			switch {
			case !known:
				detail := fmt.Sprintf("There is no capability %s.%s", hclread.Quote(n), hclread.SuggestOr(c, grammar.Capabilities()))
				if c == "CAP_ALL" {
					detail = "Capabilities are kept one by one: name those that the program needs."
				}
				es[i].Error("Unknown capability", detail)
			case slices.Contains(s.Keep, c):
				es[i].Error("Capability given twice", fmt.Sprintf("%s is in the list already: remove one.", c))
			default:
				d.j.Ranges[fmt.Sprintf("security.capabilities.keep[%d]", len(s.Keep))] = es[i].Range()
				s.Keep = append(s.Keep, c)
			}
		}
	}}}, Hints: map[string]string{
		"add": `Write keep = ["NET_BIND_SERVICE"].`, "drop": "Everything is dropped that keep does not name.",
	}})
}

func (d *decoder) seccomp(b hclread.Block) {
	s := &Seccomp{Mode: "enforce"}
	d.j.Security.Seccomp = s
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "profile", Read: d.hostPath(&s.Profile)},
		{Name: "sha256", Read: d.sha256(&s.SHA256)},
		{Name: "mode", Read: enum(&s.Mode, "enforce", "trace")},
		{Name: "record", Read: d.hostPath(&s.Record)},
		{Name: "allow", Read: func(v hclread.Value) {
			s.Allow = each(v, `allow = ["io_uring_setup"]`, func(v hclread.Value, name string) (string, bool) {
				ok := isSyscallName(name)
				if !ok {
					v.Error("Not a system call", fmt.Sprintf("%s is no name of a system call: write it as its man page does, for instance \"io_uring_setup\".", hclread.Quote(name)))
				}
				return name, ok
			})
			if es, ok := v.Elements(); ok {
				d.elements("security.seccomp.allow", es)
			}
		}},
	}})
	if s.Record != "" && s.Mode != "trace" {
		d.r.Error(d.at(b.Child("record")), "Record without a trace", `A trace writes it: write mode = "trace" beside it, or remove record.`)
	}
	if s.SHA256 != "" && s.Profile == "" {
		d.r.Error(d.at(b.Child("sha256")), "Digest without a profile", `Write profile = "web.seccomp.json" beside it, or remove sha256.`)
	}
}

// isSyscallName accepts the form; which names exist depends on the architecture.
func isSyscallName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && c != '_' && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

func (d *decoder) landlock(b hclread.Block) {
	d.r.Read(b, hclread.Schema{Blocks: []hclread.Nested{{Name: "rule", Many: true, Read: func(b hclread.Block) {
		var r LandlockRule
		d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
			{Name: "paths", Required: `paths = ["/data"]`, Read: func(v hclread.Value) {
				r.Paths = each(v, `paths = ["/data"]`, func(v hclread.Value, s string) (string, bool) {
					why := badSandboxPath(s)
					if why != "" {
						v.Error("Not a sandbox path", fmt.Sprintf("%s %s", hclread.Quote(s), why))
					}
					return s, why == ""
				})
			}},
			{Name: "access", Required: `access = ["read"]`, Read: func(v hclread.Value) {
				r.Access = each(v, `access = ["read"]`, func(v hclread.Value, _ string) (string, bool) {
					return v.Enum("read", "write", "create", "remove", "execute")
				})
			}},
		}})
		d.j.Security.Landlock = append(d.j.Security.Landlock, r)
	}}, {Name: "tcp", Read: d.landlockTCP}}})
}

func (d *decoder) landlockTCP(b hclread.Block) {
	t := &LandlockTCP{}
	d.j.Security.LandlockTCP = t
	ports := func(dst *[]uint16, low int64) func(hclread.Value) {
		return func(v hclread.Value) {
			es, _ := v.Elements()
			for _, e := range es {
				n, ok := e.Int(low, 65535)
				switch {
				case !ok:
				case slices.Contains(*dst, uint16(n)):
					e.Error("Port given twice", fmt.Sprintf("%d is in the list already: remove one.", n))
				default:
					*dst = append(*dst, uint16(n))
				}
			}
		}
	}
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "connect", Read: ports(&t.Connect, 1)},
		{Name: "bind", Read: ports(&t.Bind, 0)}, // 0: the kernel chooses the port
	}, Hints: map[string]string{"ports": "Write connect = [443], bind = [8080], or both.", "listen": "Write bind = [8080]."}})
}
