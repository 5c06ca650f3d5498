package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// base is what is asked of every plugin.
func base() suite {
	return suite{name: "base", verbs: baseVerbs, rules: []Rule{
		{"base/handshake", "the first line on standard output is 1|1|unix|SOCKET|grpc, with a socket in the directory of " + handshake.EnvSocketDir, "see \"What Serve does\" in docs/plugins.md", nothing, shakesHands},
		{"base/by-hand", "started without a host it exits with 1 and says on standard error what it is, with \"nucleus plugin check\"", "look for the cookie " + handshake.EnvCookie + " first, and print what to do instead", nothing, byHand},
		{"base/flags", "--version and --schema answer without a host, as Info and ConfigSchema do", "print NAME VERSION, and the schema as JSON, and exit with 0", described, flags},
		{"base/bare", "it starts with standard input closed and no variable but the handshake's", "read nothing from standard input, and nothing from HOME or PATH without a check", running, bare},
		{"base/long-path", "it works where its socket has a path of up to 107 bytes", "give the socket a name of at most 16 bytes, directly in the directory that the host names", running, longPath},
		{"base/describe", "Info and ConfigSchema answer before anything is configured, and the schema converts", "answer both from constants", running, describes},
		{"base/info", "Info has a name like the file's, a version, services with versions like 1.0, and known capabilities", "correct what Info says", described, infoForm},
		{"base/schema", "every attribute and block of the schema has a description, a name, a type, and a default and constraints that fit the type", "correct the schema", described, schemaForm},
		{"base/pure", "Info and ConfigSchema give the same bytes on every call and in every process", "answer both from constants: they are cached by the file's digest", described, pure},
		{"base/configure", "the configuration that the suite was given is accepted", "correct the configuration, or the plugin", described, accepts},
		{"base/wrong-values", "each wrong or missing value is refused with INVALID_ARGUMENT and a ConfigError whose path leads to it", "check values against the schema in Configure, and name the attribute", described, wrongValues},
		{"base/garbage", "a configuration that is no msgpack, or of another type, is refused with INVALID_ARGUMENT, and the process lives on", "return the decoder's error; recover from its panics", described, garbage},
		{"base/deadline", "a call without a deadline is refused with INVALID_ARGUMENT", "refuse it before any work is done", described, wantsDeadline},
		{"base/unknown", "services, boundaries and fields of a newer contract are ignored, or refused with an error that says so", "treat an unknown number as one that is not there", described, unknownValues},
		{"base/version-skew", "another major version of a service is refused with FAILED_PRECONDITION, a higher minor one accepted", "compare the major versions of Configure's selected with your own", described, versionSkew},
		{"base/health", "Health answers with a known state", "answer OK where nothing can fail", described, health},
		{"base/concurrent", "32 callers at once all get their answers", "guard what calls share", configured, concurrent},
		{"base/cancel", "a call that was cancelled, or whose deadline has passed, ends; the process answers on, and can be shut down at once", "pass the context on to everything that waits", configured, cancelled},
		{"base/growth", "descriptors, threads and memory stay bounded over many calls", "close what a call has opened, and keep nothing of it", configured, growth},
		{"base/crash", "after a SIGKILL in any call a new process works, teardown succeeds, and no process or file is left", "make nothing that outlives the process: it is ended by SIGKILL as a rule", configured, crash},
		{"base/shutdown", "Shutdown ends the process with exit status 0, and SIGTERM ends it; the socket is removed", "stop the server, remove the socket, return from main", running, shutdown},
		{"base/lifeline", "the process ends and its socket is removed when the lifeline closes, even in the middle of a call", "read from the descriptor " + handshake.EnvLifelineFD + " in a thread of its own, and exit at its end", running, hostDeath},
		{"base/warm", "with lifetime WARM_OK it stays after a lifeline by which it was told to, serves further connections, and ends after the time without one; with another it ends with the lifeline, whatever it was told", "read the lifeline to its end: a line of decimal milliseconds is the time to stay", described, warm},
		{"base/other-user", "a connection of another user is refused before HTTP/2 starts", "compare SO_PEERCRED's uid with your own and " + handshake.EnvPeerUID, running, otherUser},
		{"base/other-process", "a connection of another process is refused, unless the lifetime is WARM_OK", "compare SO_PEERCRED's pid with your parent's", described, otherProcess},
	}}
}

func baseVerbs(k *Checker) []verb {
	out := []verb{
		{"Info", false, func(ctx context.Context, p *process, _ string) error {
			_, err := p.base.Info(ctx, infoRequest())
			return err
		}},
		{"ConfigSchema", false, func(ctx context.Context, p *process, _ string) error {
			_, err := p.base.ConfigSchema(ctx, &pluginv1.ConfigSchemaRequest{})
			return err
		}},
		{"Health", false, func(ctx context.Context, p *process, _ string) error {
			_, err := p.base.Health(ctx, &pluginv1.HealthRequest{})
			return err
		}},
	}
	// That of the plugin comes once, before all others.
	if n := slices.IndexFunc(k.conf.Instances, func(i Instance) bool { return k.works() && k.serves(i.Service) }); n >= 0 {
		i := k.conf.Instances[n]
		out = append(out, verb{"Configure of " + place(i.Service, i.ID), false, func(ctx context.Context, p *process, _ string) error {
			r, err := k.request(p, i.Service, i.instance(), i.Config)
			if err == nil {
				_, err = p.base.Configure(ctx, r)
			}
			return err
		}})
	}
	return out
}

func shakesHands(ctx context.Context, k *Checker) error {
	p, err := k.start(ctx, launch{})
	if err != nil {
		return err
	}
	p.close()
	return nil
}

// printed runs it until it ends.
func (k *Checker) printed(l launch) (*process, error) {
	p, err := k.spawn(l)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if !p.ended(startLimit) {
		return nil, broken("it was still running after %s", startLimit)
	}
	return p, nil
}

func byHand(_ context.Context, k *Checker) error {
	p, err := k.printed(launch{byHand: true})
	if err != nil {
		return err
	}
	if !p.fate.exited || p.fate.status != 1 {
		return broken("%s", p.fate)
	}
	if text := p.stderr.String(); !strings.Contains(text, "nucleus plugin check") {
		return broken("it says %q", text)
	}
	return nil
}

func flags(_ context.Context, k *Checker) error {
	p, err := k.printed(launch{byHand: true, args: []string{"--version"}})
	if err != nil {
		return fmt.Errorf("--version: %w", err)
	}
	in := k.known.info
	if want := in.GetName() + " " + in.GetVersion(); p.fate != (fate{exited: true}) || !strings.HasPrefix(p.stdout.String(), want) {
		return broken("--version: %s, and it says %q, which does not begin with %q", p.fate, p.stdout, want)
	}
	if p, err = k.printed(launch{byHand: true, args: []string{"--schema"}}); err != nil {
		return fmt.Errorf("--schema: %w", err)
	}
	var s config.Schema
	if err := json.Unmarshal([]byte(p.stdout.String()), &s); err != nil || p.fate != (fate{exited: true}) {
		return broken("--schema: %s, and it prints no schema: %v", p.fate, err)
	}
	got, err := json.Marshal(s)
	if err != nil {
		return err
	}
	want, err := json.Marshal(k.known.schema)
	if err != nil {
		return err
	}
	if string(got) != string(want) {
		return broken("--schema: %s\nand ConfigSchema: %s", got, want)
	}
	return nil
}

func bare(ctx context.Context, k *Checker) error {
	p, err := k.start(ctx, launch{bare: true})
	if err != nil {
		return err
	}
	defer p.close()
	return p.healthy(ctx)
}

func longPath(ctx context.Context, k *Checker) error {
	// sun_path has 108 bytes with its NUL (unix(7)); go-plugin's longest name is that
	// of os.CreateTemp.
	const longest = 107 - len("/plugin4294967295")
	dir := filepath.Join(k.dir, strings.Repeat("x", max(1, longest-len(k.dir)-1)))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	p, err := k.start(ctx, launch{dir: dir})
	if err != nil {
		return err
	}
	defer p.close()
	return p.healthy(ctx)
}

func shutdown(ctx context.Context, k *Checker) error {
	for _, by := range []string{"Shutdown", "SIGTERM"} {
		p, err := k.start(ctx, launch{})
		if err != nil {
			return err
		}
		err = endedBy(ctx, p, by)
		p.close()
		if err != nil {
			return fmt.Errorf("%s: %w", by, err)
		}
	}
	return nil
}

func endedBy(ctx context.Context, p *process, by string) error {
	if by == "Shutdown" {
		if err := within(ctx, func(ctx context.Context) error {
			_, err := p.base.Shutdown(ctx, &pluginv1.ShutdownRequest{})
			return err
		}); err != nil {
			return broken("%s", tell(err))
		}
	} else if err := p.proc.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if !p.ended(startLimit) {
		return broken("it still runs %s later", startLimit)
	}
	if by == "Shutdown" && p.fate != (fate{exited: true}) {
		return broken("it ended with %s", p.fate)
	}
	return p.socketGone()
}

func hostDeath(ctx context.Context, k *Checker) error {
	for _, busy := range []bool{false, true} {
		p, err := k.start(ctx, launch{})
		if err != nil {
			return err
		}
		err = k.orphaned(ctx, p, busy)
		p.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// orphaned closes the lifeline: what the kernel does with it when a host is killed.
func (k *Checker) orphaned(ctx context.Context, p *process, busy bool) error {
	if f := k.learn(ctx); busy && f.describe == nil && k.works() {
		ctx, cancel := context.WithTimeout(ctx, callLimit)
		defer cancel()
		if _, err := k.configure(ctx, p); err != nil {
			return err
		}
		for _, v := range k.verbs() {
			id := k.id()
			p.readers.Go(func() { _ = v.call(ctx, p, id) }) // its host is gone
		}
	}
	p.lifeline.Close()
	if !p.ended(deathLimit) {
		return broken("it still runs %s after its host", deathLimit)
	}
	if err := p.socketGone(); err != nil {
		return fmt.Errorf("after the end of its host: %w", err)
	}
	return nil
}

func health(ctx context.Context, k *Checker) error {
	p, err := k.start(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	return within(ctx, func(ctx context.Context) error {
		r, err := p.base.Health(ctx, &pluginv1.HealthRequest{})
		if err != nil {
			return broken("%s", tell(err))
		}
		if _, ok := pluginv1.HealthResponse_State_name[int32(r.GetState())]; !ok || r.GetState() == pluginv1.HealthResponse_STATE_UNSPECIFIED {
			return broken("state %d", r.GetState())
		}
		return nil
	})
}

// pause is for what has no event to wait for.
const pause = 10 * time.Millisecond
