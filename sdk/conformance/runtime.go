package conformance

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

func runtimeSuite() suite {
	return suite{name: "runtime", service: manifest.Runtime, verbs: runtimeVerbs, learn: learnRuntime, rules: []Rule{
		{"runtime/prepare", "Prepare of a simple sandbox succeeds, and says the same again: to the same request_id, to another, and from another process", "answer from the request and the configuration alone", configured, preparesAlike},
		{"runtime/nothing-left", "Prepare leaves no process and no file, and starts nothing that stays", "make nothing: there is no call that would undo it", configured, preparesNothing},
		{"runtime/answer", "for each network, with a terminal and without, as root and as an ordinary user, the answer is within the bounds of Prepared.Check, or says with FAILED_PRECONDITION or INVALID_ARGUMENT what can't be had", "see Prepared.Check in sdk/runtime", configured, answersWithinBounds},
		{"runtime/unknown", "a network of a newer contract, and a spec that is none, are refused with FAILED_PRECONDITION or INVALID_ARGUMENT", "refuse what you don't know: it may be a demand", configured, refusesUnknown},
		{"runtime/program", "the program is a regular executable ELF file of the named digest that nobody but root and the caller can write to; it needs the host's libraries if, and only if, the answer says so", "name the program itself, and look at its PT_INTERP", configured, namesProgram},
		{"runtime/run", "Run runs the workload with its arguments, variables, directory and user, on the standard streams that it is given, and ends with its exit status", "run the bundle in the foreground", configured, runsWorkload},
		{"runtime/root", "the workload sees nothing of the program's root but what is below " + runtime.RootPath, "make the spec's root the workload's", configured, confinesWorkload},
		{"runtime/terminal", "where the spec wants a terminal, and Prepare does not refuse it, the workload is on one", "give it the terminal that Run is started on, or one of your own that is joined to it", configured, runsOnTerminal},
		{"runtime/signal", "a signal reaches the workload: to one that it expects it can answer; another ends it, unless it is the first of a pid namespace, and Run with 128 and its number", "say in Signal how one is sent, or pass on what the program gets", configured, passesSignals},
		{"runtime/exec", "with Exec a further process, read from " + runtime.ProcessPath + ", runs beside the workload in its root, and Exec ends with its exit status", "leave Exec out if there are none", configured, runsFurther},
		{"runtime/exec-signal", "with Exec: SIGKILL ends the further process that is meant, and no other, and Exec with 137", "write its number inside down in " + runtime.WordPIDFile + ", and send it to that", configured, killsFurther},
		{"runtime/checkpoint", "with Checkpoint: Pause stops the workload where it is, Save writes regular files and leaves it so, Resume lets it go on, and what Restore starts goes on where Pause had stopped it", "save the memory of the workload's processes, or leave Checkpoint out", configured, savesState},
		{"runtime/exec-group", "with SignalGroup: SIGKILL ends what the further process has started, too, and not the workload", "let the process lead a group of its own, and send it to that", configured, killsGroup},
		{"runtime/end", "the end of Run is the end of everything that it has started", "end what is left before the program ends", configured, endsAll},
	}}
}

// simple is a sandbox of the kind that the core asks for. The workload is args.
type simple struct {
	args     []string
	terminal bool
	network  pluginv1.SandboxNetwork
	user     int

	checkpoint bool
}

// object is one of JSON.
type object = map[string]any

// user whom workloads are, where there is another than root.
const user = 1000

func (s simple) process() object {
	none := []string{}
	return object{
		"terminal": s.terminal, "user": object{"uid": s.user, "gid": s.user}, "args": s.args, "cwd": "/tmp", "env": []string{"PATH=/bin", "CHECK=a b"},
		"noNewPrivileges": true, "capabilities": object{"bounding": none, "effective": none, "permitted": none},
	}
}

func (s simple) spec() ([]byte, error) {
	return json.Marshal(object{
		"ociVersion": "1.2.0", "hostname": "conformance", "root": object{"path": runtime.RootPath, "readonly": false}, "process": s.process(), "linux": object{},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc", "options": []string{"nosuid", "noexec", "nodev"}},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "noexec", "mode=755", "size=65536"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		},
	})
}

func (k *Checker) runtimeRequest(id string, s simple) (*pluginv1.RuntimePrepareRequest, error) {
	spec, err := s.spec()
	if err != nil {
		return nil, err
	}
	if s.network == 0 {
		s.network = pluginv1.SandboxNetwork_SANDBOX_NETWORK_NONE
	}
	r := &pluginv1.RuntimePrepareRequest{Call: call(id), SpecJson: spec, Network: s.network, Rootless: os.Geteuid() != 0, Checkpoint: s.checkpoint}
	if is := k.instances(manifest.Runtime); len(is) > 0 {
		r.Call.InstanceId = is[0].instance()
	}
	return r, nil
}

func runtimeVerbs(k *Checker) []verb {
	if len(k.instances(manifest.Runtime)) == 0 {
		return nil
	}
	return []verb{{"Prepare", false, func(ctx context.Context, p *process, id string) error {
		r, err := k.runtimeRequest(id, simple{args: []string{"true"}})
		if err == nil {
			_, err = pluginv1.NewRuntimeClient(p.conn).Prepare(ctx, r)
		}
		return err
	}}}
}

// prepare asks for a sandbox.
func (k *Checker) prepare(ctx context.Context, p *process, r *pluginv1.RuntimePrepareRequest) (out *pluginv1.RuntimePrepareResponse, err error) {
	err = within(ctx, func(ctx context.Context) error {
		out, err = pluginv1.NewRuntimeClient(p.conn).Prepare(ctx, r)
		return err
	})
	return out, err
}

// learnRuntime tries whether a sandbox can be prepared at all.
func learnRuntime(ctx context.Context, k *Checker, p *process) {
	if len(k.instances(manifest.Runtime)) == 0 {
		return
	}
	r, err := k.runtimeRequest(k.id(), simple{args: []string{"true"}})
	if err == nil {
		k.known.prepared, err = k.prepare(ctx, p, r)
	}
	if err != nil {
		k.known.prepare = broken("Prepare: %s%s", tell(err), p.said())
	}
}

// withRuntime starts a process that has an instance.
func (k *Checker) withRuntime(ctx context.Context, rule func(p *process) error) error {
	if len(k.instances(manifest.Runtime)) == 0 {
		return skip(`no instance was given: write instance "runtime" "NAME" { … }`)
	}
	p, err := k.ready(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	return rule(p)
}

// canPrepare is for rules that rest on it.
func (k *Checker) canPrepare() error {
	if k.known.prepare != nil {
		return skip("Prepare fails: see runtime/prepare")
	}
	return nil
}

func preparesAlike(ctx context.Context, k *Checker) error {
	return k.withRuntime(ctx, func(p *process) error {
		if k.known.prepare != nil {
			return k.known.prepare
		}
		if err := repeated(k, func(id string) (proto.Message, error) {
			r, err := k.runtimeRequest(id, simple{args: []string{"true"}})
			if err != nil {
				return nil, err
			}
			return k.prepare(ctx, p, r)
		}); err != nil {
			return err
		}
		r, err := k.runtimeRequest(k.id(), simple{args: []string{"true"}})
		if err != nil {
			return err
		}
		switch got, err := k.prepare(ctx, p, r); {
		case err != nil:
			return broken("for another request: %s", tell(err))
		case !proto.Equal(got, k.known.prepared):
			return broken("another process says something else of the same sandbox:\n%v\n%v", got, k.known.prepared)
		}
		return nil
	})
}

func preparesNothing(ctx context.Context, k *Checker) error {
	return k.withRuntime(ctx, func(p *process) error {
		if err := k.canPrepare(); err != nil {
			return err
		}
		before, err := files(p.work)
		if err != nil {
			return err
		}
		r, err := k.runtimeRequest(k.id(), simple{args: []string{"true"}})
		if err != nil {
			return err
		}
		if _, err := k.prepare(ctx, p, r); err != nil {
			return broken("%s", tell(err))
		}
		if left := descendants(p.pid); len(left) > 0 {
			return broken("it has started process %d, which runs on", left[0].pid)
		}
		after, err := files(p.work)
		if err != nil {
			return err
		}
		if after != before {
			return broken("files before: %q, and after: %q", before, after)
		}
		return nil
	})
}

// files are the names of all below a directory.
func files(dir string) (string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		out = append(out, path)
		return err
	})
	return strings.Join(out, " "), err
}

// networks are those of this contract.
func networks() map[string]pluginv1.SandboxNetwork {
	return map[string]pluginv1.SandboxNetwork{
		"no network": pluginv1.SandboxNetwork_SANDBOX_NETWORK_NONE, "the host's network": pluginv1.SandboxNetwork_SANDBOX_NETWORK_HOST,
		"a network plugin": pluginv1.SandboxNetwork_SANDBOX_NETWORK_OWN,
	}
}

func answersWithinBounds(ctx context.Context, k *Checker) error {
	return k.withRuntime(ctx, func(p *process) error {
		if err := k.canPrepare(); err != nil {
			return err
		}
		var bad []error
		for name, n := range networks() {
			for _, terminal := range []bool{false, true} {
				for _, rootless := range []bool{false, true} {
					r, err := k.runtimeRequest(k.id(), simple{args: []string{"true"}, terminal: terminal, network: n})
					if err != nil {
						return err
					}
					r.Rootless = rootless
					got, err := k.prepare(ctx, p, r)
					what := fmt.Sprintf("%s, terminal %t, rootless %t", name, terminal, rootless)
					switch {
					case err != nil && !typed(err):
						bad = append(bad, broken("%s: %s%s", what, tell(err), p.said()))
					case err == nil:
						if err := wire.FromRuntimePrepared(got).Check(); err != nil {
							bad = append(bad, broken("%s: %v", what, err))
						}
					}
				}
			}
		}
		return errors.Join(bad...)
	})
}

func refusesUnknown(ctx context.Context, k *Checker) error {
	return k.withRuntime(ctx, func(p *process) error {
		if err := k.canPrepare(); err != nil {
			return err
		}
		for what, change := range map[string]func(*pluginv1.RuntimePrepareRequest){
			"network 99":             func(r *pluginv1.RuntimePrepareRequest) { r.Network = 99 },
			"no spec":                func(r *pluginv1.RuntimePrepareRequest) { r.SpecJson = nil },
			"a spec that is cut off": func(r *pluginv1.RuntimePrepareRequest) { r.SpecJson = r.GetSpecJson()[:len(r.GetSpecJson())/2] },
		} {
			r, err := k.runtimeRequest(k.id(), simple{args: []string{"true"}})
			if err != nil {
				return err
			}
			change(r)
			if _, err := k.prepare(ctx, p, r); !typed(err) {
				return broken("%s: %s%s", what, tell(err), p.said())
			}
		}
		return p.healthy(ctx)
	})
}

func namesProgram(ctx context.Context, k *Checker) error {
	return k.withRuntime(ctx, func(*process) error {
		if err := k.canPrepare(); err != nil {
			return err
		}
		p := wire.FromRuntimePrepared(k.known.prepared).Program
		f, err := os.Open(p.Path)
		if err != nil {
			return broken("%v", err)
		}
		defer f.Close()
		switch st, err := f.Stat(); {
		case err != nil:
			return err
		case !st.Mode().IsRegular() || st.Mode()&0o111 == 0:
			return broken("%s is no regular executable file", p.Path)
		case st.Mode()&0o022 != 0:
			return broken("others can write to %s (mode %04o)", p.Path, st.Mode().Perm())
		}
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		if got := hex.EncodeToString(h.Sum(nil)); p.SHA256 != "" && !strings.EqualFold(got, p.SHA256) {
			return broken("%s has the SHA-256 %s, and the answer names %s", p.Path, got, p.SHA256)
		}
		dynamic, err := interpreted(p.Path)
		if err != nil {
			return broken("%s: %v", p.Path, err)
		}
		if dynamic != p.Libraries {
			return broken("%s has an interpreter: %t, and the answer says that it needs libraries: %t", p.Path, dynamic, p.Libraries)
		}
		return nil
	})
}

// interpreted tells whether a program needs one that loads its libraries.
func interpreted(path string) (bool, error) {
	e, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer e.Close()
	for _, x := range e.Progs {
		if x.Type == elf.PT_INTERP {
			return true, nil
		}
	}
	return false, nil
}
