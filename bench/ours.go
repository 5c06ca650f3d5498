package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ours lists the rows of Nucleus: the default job, then the same with plugins, each
// of which is a process that the start waits for.
func ours(f *fixture) []peer {
	return []peer{
		nucleusPeer(f, "nucleus", "all namespaces, filter, Landlock, posture check, init; "+f.nucleusLimitsText(), ""),
		nucleusPeer(f, "nucleus, 1 secret", "and a secret of provider file", secret("file")),
		nucleusPeer(f, "nucleus, 1 warm secret", "the same, of a process that an earlier run has left", secret("file")),
		nucleusPeer(f, "nucleus, 3 secrets", "and secrets of file, env and systemd", secret("file")+secret("env")+secret("systemd")),
		nucleusPeer(f, "nucleus, 1 hooks plugin", "and hooks plugin curfew, called twice", "  plugin_hook \"curfew\" {}\n"),
	}
}

// nucleusPeer runs a job to which blocks are added. One that names plugins needs what
// its operator has to say of them.
func nucleusPeer(f *fixture, name, isolation, blocks string) peer {
	p := peer{name: name, isolation: isolation, host: true, execs: true, coldOnly: blocks != ""}
	if f.nucleus == "" {
		p.skip = "no binary given"
		return p
	}
	p.make = func(argv ...string) (command, error) {
		job, err := f.job(argv, strings.ReplaceAll(name, " ", ""), strings.ReplaceAll(blocks, "DIR", f.secretDir()))
		if err != nil {
			return command{}, err
		}
		c := command{
			Argv:    []string{f.nucleus, "run", "-config", job, "-name", "{ID}"},
			Exec:    []string{f.nucleus, "exec", "{ID}", "/bin/true"},
			Env:     f.env,
			Cleanup: []string{f.nucleus, "gc"},
		}
		if blocks != "" {
			host, err := f.operator(strings.Contains(name, "warm"))
			if err != nil {
				return command{}, err
			}
			c.Argv = append(c.Argv, "-host-config", host)
		}
		return c, nil
	}
	return p
}

// secret is a job's block, with the fixture's directory in the place of DIR.
func secret(provider string) string {
	where := map[string]string{"file": `path = "DIR/key"`, "env": `name = "KEY"`, "systemd": `name = "key"`}[provider]
	return fmt.Sprintf("  secret %q {\n    provider = %q\n    config {\n      %s\n    }\n  }\n", "of-"+provider, provider, where)
}

func (f *fixture) secretDir() string { return filepath.Join(f.dir, fmt.Sprintf("secrets-%d", f.uid)) }

// operator writes what the plugins read, and a host configuration that lets them, and
// lets one stay for longer than it takes until its next turn.
func (f *fixture) operator(warm bool) (string, error) {
	dir := f.secretDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte("0123456789abcdef"), 0o400); err != nil {
		return "", err
	}
	if err := os.Chown(key, f.uid, f.gid); err != nil {
		return "", err
	}
	user := ""
	if f.root {
		user = "  user = \"root\"\n"
	}
	host, keep := filepath.Join(f.dir, fmt.Sprintf("host-%d.hcl", f.uid)), ""
	if warm {
		host, keep = filepath.Join(f.dir, fmt.Sprintf("warm-%d.hcl", f.uid)), "  keep_warm = \"1m\"\n"
	}
	installed := filepath.Join(filepath.Dir(filepath.Dir(f.nucleus)), "libexec", "nucleus")
	text := fmt.Sprintf("plugin_dirs = [%q, %q]\n\nplugin \"curfew\" {\n  config {\n    from  = %d\n    until = %d\n  }\n}\n\n",
		filepath.Join(installed, "plugins"), filepath.Join(installed, "examples"), (time.Now().Hour()+12)%24, (time.Now().Hour()+13)%24)
	text += fmt.Sprintf("plugin \"file\" {\n%s%s}\n\nplugin \"env\" {\n  env = { KEY = \"0123456789abcdef\" }\n  config {\n    allow = [\"KEY\"]\n  }\n}\n\n"+
		"plugin \"systemd\" {\n%s  config {\n    directory = %q\n  }\n}\n", user, keep, user, dir)
	return host, os.WriteFile(host, []byte(text), 0o644)
}
