package main

import (
	"os/exec"
	"path/filepath"
	"strings"
)

// peer is one runtime in one configuration: a row of the tables.
type peer struct {
	name string
	// isolation says in a few words what the row does and does not do.
	isolation string
	// host peers are started on the host's own cgroups, the others in a
	// private mount namespace with a fresh cgroup v2 mount, where one is needed.
	host bool
	// make spells the command that runs argv, a path inside the root file
	// system with its arguments, in a sandbox.
	make func(argv ...string) (command, error)
	// coldOnly rows say nothing new at the other measurements.
	coldOnly bool
	// execs says that it can run a further command in a sandbox.
	execs bool
	// skip says why the row cannot be measured here.
	skip string
}

// peers lists the rows in the order of the tables; ratios are to the first.
func peers(f *fixture) []peer {
	list := []peer{
		{
			name: "floor", isolation: "all namespaces; no filter, no limits",
			make: func(argv ...string) (command, error) {
				return command{Argv: append([]string{f.floor, f.rootfs}, argv...)}, nil
			},
		},
		{
			name: "floor + seccomp", isolation: "all namespaces, filter; no limits",
			make: func(argv ...string) (command, error) {
				return command{Argv: append([]string{f.floor, "-s", f.rootfs}, argv...), Filter: f.filterBPF}, nil
			},
		},
		{
			name: "bubblewrap", isolation: "all namespaces; no filter, no limits",
			make: func(argv ...string) (command, error) {
				return command{Argv: append(bubblewrap(f.rootfs), argv...)}, nil
			},
		},
		{
			name: "bubblewrap + seccomp", isolation: "all namespaces, filter; no limits",
			make: func(argv ...string) (command, error) {
				return command{Argv: append(append(bubblewrap(f.rootfs), "--seccomp", "3"), argv...), Filter: f.filterBPF}, nil
			},
		},
	}
	for _, runtime := range []string{"crun", "runc"} {
		list = append(list, ociPeer(f, runtime, false))
		if f.root {
			list = append(list, ociPeer(f, runtime, true))
		}
	}
	for i, p := range list {
		argv, err := p.make("/bin/true")
		if err != nil {
			list[i].skip = err.Error()
			continue
		}
		program, err := exec.LookPath(argv.Argv[0])
		if err != nil {
			list[i].skip = "not installed"
			continue
		}
		list[i].make = func(args ...string) (command, error) {
			c, err := p.make(args...)
			if err == nil {
				c.Argv[0] = program
				if p.execs {
					c.Exec[0] = program
				}
				c.Env = f.env
			}
			return c, err
		}
	}
	return append(list, ours(f)...)
}

func bubblewrap(rootfs string) []string {
	return strings.Fields("bwrap --unshare-user --unshare-pid --unshare-net --unshare-uts --unshare-ipc --unshare-cgroup" +
		" --ro-bind " + rootfs + " / --proc /proc --dev /dev --tmpfs /tmp --hostname sandbox --new-session --die-with-parent --cap-drop ALL")
}

// ociPeer is crun or runc on a bundle. As root they make a user namespace only
// when asked to; as a user they cannot do without.
func ociPeer(f *fixture, runtime string, userNamespace bool) peer {
	p := peer{name: runtime, execs: true, isolation: "all namespaces but user, filter, cgroup; " + f.limitsText()}
	if userNamespace {
		p.name += " + userns"
		p.isolation = "all namespaces, filter, cgroup; " + f.limitsText()
	}
	if !f.root {
		p.isolation = "all namespaces, filter; no limits"
		userNamespace = true
	}
	state := filepath.Join(f.runtimeDir, runtime)
	global := []string{runtime, "--root", state}
	if !f.root && runtime == "crun" {
		global = append(global, "--cgroup-manager=disabled")
	}
	p.make = func(argv ...string) (command, error) {
		bundle, err := f.bundle(userNamespace, argv)
		if err != nil {
			return command{}, err
		}
		return command{
			Argv:    append(global[:len(global):len(global)], "run", "-b", bundle, "{ID}"),
			Exec:    append(global[:len(global):len(global)], "exec", "{ID}", "/bin/true"),
			Cleanup: append(global[:len(global):len(global)], "delete", "-f", "{ID}"),
		}, nil
	}
	return p
}
