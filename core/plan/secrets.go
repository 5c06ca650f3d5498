package plan

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/internal/pathname"
)

const (
	// MaxSecrets bounds the secrets of a job: each is a descriptor of the message
	// that a sandbox is set up with, of which the kernel takes 253 (SCM_MAX_FD).
	MaxSecrets = 64
	// secretDir is where all files of secrets are; the job's own mounts are kept
	// away from it when the job is read.
	secretDir = "/run/secrets"
)

// secrets plans the files and variables that hold values, and the file system of
// the files. It is a ramfs, whose pages are never swapped out: what tmpfs has for
// that, noswap, needs Linux 6.4 and is not given in user namespaces. That a ramfs
// has no limit of size is no matter where only init writes, and only values whose
// sizes are bounded, before it becomes read-only.
func (m *maker) secrets(id identity) {
	first := ""
	for i, s := range m.j.Secrets {
		origin := fmt.Sprintf("secret[%q]", s.Name)
		if i == MaxSecrets {
			m.fail(origin, "put several values into one secret", "secret %q: a job has at most %d secrets", s.Name, MaxSecrets)
			return
		}
		x := Secret{Name: s.Name, Provider: s.Provider, Config: s.Config, Eval: m.j.EvalContext(), UID: id.uid, GID: id.gid, Origin: origin, Env: s.Env}
		if s.Env == "" {
			x.Target, x.Mode = s.Target, s.Mode
			if s.Mode&^0o777 != 0 {
				m.fail(origin+".mode", `write mode = "0400"`, "secret %q: mode %#o has more than permissions", s.Name, s.Mode)
			}
			if first == "" {
				first = origin
			}
			m.secretPath(s.Target, origin)
		}
		m.p.Secrets = append(m.p.Secrets, x)
	}
	if first != "" && m.in.Secrets {
		m.p.Mounts = append(m.p.Mounts, Mount{
			Mount: specs.Mount{Destination: secretDir, Type: "ramfs", Source: "secrets", Options: []string{"ro", "nosuid", "nodev", "noexec", "mode=0755"}},
			Kind:  MountSecrets, Origin: first, UID: m.owner(0, id.uid, m.p.IDs.UIDs), GID: m.owner(0, id.gid, m.p.IDs.GIDs), Mode: 0o755,
		})
	}
}

// secretPath holds for jobs that no file was read for, too: init makes what is
// missing on the way to a target, which it may do only below the secrets' own
// mount, and nothing of the job may hide that one.
func (m *maker) secretPath(target, origin string) {
	if !strings.HasPrefix(target, secretDir+"/") || strings.Contains(target+"/", "/../") || strings.Contains(target+"/", "/./") || strings.Contains(target+"/", "//") {
		m.fail(origin+".target", fmt.Sprintf("write target = %q", secretDir+"/NAME"), "%q is not a clean path below %s", target, secretDir)
	}
	for _, t := range targets(m.j) {
		if pathname.Within(t.path, secretDir) {
			m.fail(t.origin, "choose another target", "%q is in %s, where the secrets are", t.path, secretDir)
		}
	}
	for _, o := range m.p.Secrets {
		if o.Target != "" && (pathname.Within(target, o.Target) || pathname.Within(o.Target, target)) {
			m.fail(origin+".target", "choose another target", "%q and the target of secret %q, %q, are in each other's way", target, o.Name, o.Target)
		}
	}
}

// secretNames refuses variables that Nucleus sets itself (the command is looked
// for along PATH, so that one is no secret, nor is any other) and those that
// something else sets.
func (m *maker) secretNames(ours map[string]string) {
	seen := map[string]bool{}
	for _, s := range m.j.Secrets {
		why := ""
		_, own := ours[s.Env]
		_, given := m.j.Env[s.Env]
		switch {
		case s.Env == "":
			continue
		case own, m.j.SocketActivation && strings.HasPrefix(s.Env, "LISTEN_"):
			why = "is set by Nucleus"
		case given || seen[s.Env]:
			why = "is set twice"
		case strings.ContainsAny(s.Env, "=\x00"):
			why = "is no name of a variable"
		}
		seen[s.Env] = true
		if why != "" {
			m.fail(fmt.Sprintf("secret[%q].env", s.Name), "choose another variable", "secret %q: %q %s", s.Name, s.Env, why)
		}
	}
}

// Warnings are what a plan does as asked, and whoever asked should know.
func (p *Plan) Warnings() []string {
	var out []string
	for _, s := range p.Secrets {
		if s.Env != "" {
			out = append(out, fmt.Sprintf("secret %q is in the environment: every program of the sandbox sees it", s.Name))
		}
	}
	return append(out, p.OwnFileWarnings()...)
}

func (e *explainer) secrets() {
	for _, s := range e.p.Secrets {
		if s.Env != "" {
			e.add("secret "+s.Name, fmt.Sprintf("variable %s, from %s", s.Env, s.Provider),
				"sealed memfd, read by init; every program of the sandbox sees it", s.Origin)
			continue
		}
		e.add("secret "+s.Name, fmt.Sprintf("%s (mode=%04o, owner %d:%d), from %s", s.Target, s.Mode, s.UID, s.GID, s.Provider),
			"sealed memfd, written by init, never swapped, then read-only", s.Origin)
	}
}
