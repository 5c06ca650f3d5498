package pluginhost

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/core/pluginhost/rundir"
	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// warmBehaviours are those of plugins that may be kept. What they give is their pid,
// the word of their operator, and the id of the instance.
func warmBehaviours() map[string]func(*fake) {
	type operator struct {
		Word string `hcl:"word,optional" desc:"Told back."`
	}
	serve := func(fetch func(n int64) error, health func(context.Context) manifest.Health) func(*fake) {
		return func(f *fake) {
			word, calls := "", atomic.Int64{}
			plugin.Serve(plugin.Plugin{
				Name: f.name, Version: "1", Lifetime: plugin.WarmOK, Health: health,
				Config: config.To(config.Func[operator](func(_ context.Context, _ config.Instance, c operator) error {
					word = c.Word
					return nil
				})),
				Secrets: provider(func(_ context.Context, _ secrets.Call, refs []secrets.Ref) (out []secrets.Secret, err error) {
					if fetch != nil {
						err = fetch(calls.Add(1))
					}
					for _, r := range refs {
						out = append(out, secrets.Secret{Value: fmt.Appendf(nil, "%d %q %s", os.Getpid(), word, r.InstanceID)})
					}
					return out, err
				}),
			})
		}
	}
	warmOK := func(r *pluginv1.InfoResponse) { r.Lifetime = pluginv1.Lifetime_LIFETIME_WARM_OK }
	telling := func(f *fake) {
		f.info = func(r *pluginv1.InfoResponse) error { warmOK(r); return nil }
		f.fetch = func(_ *pluginv1.FetchRequest, r *pluginv1.FetchResponse) error {
			for _, s := range r.GetSecrets() {
				s.Value = fmt.Appendf(nil, "%d", os.Getpid())
			}
			return nil
		}
	}
	return map[string]func(*fake){
		"warm":             serve(nil, nil),
		"warm-hang-health": serve(nil, func(context.Context) manifest.Health { hang(); return manifest.Health{} }),
		"warm-failed":      serve(nil, func(context.Context) manifest.Health { return manifest.Health{State: manifest.Failed} }),
		"warm-dies-second": serve(func(n int64) error {
			if n == 2 {
				crash()
			}
			return nil
		}, nil),
		"warm-down":   serve(func(int64) error { return errs.Retry(errors.New("down"), 0) }, nil),
		"warm-absent": serve(func(int64) error { return errs.NotFoundf("no such secret") }, nil),
		// Made without the SDK: one stays whatever it is told, the other never.
		"warm-liar":     serving(telling),
		"ends-with-all": serving(telling),
		"impostor": func(f *fake) {
			telling(f)
			s := grpc.NewServer()
			pluginv1.RegisterBaseServer(s, f)
			pluginv1.RegisterSecretsServer(s, f)
			_ = s.Serve(listen(f.name)) // until it is killed
		},
		"warm-hooks": func(f *fake) {
			h := &handler{at: hooks.At(hooks.PreFS), onPhase: func(call hooks.Call, _ hooks.Event) (hooks.Answer, error) {
				return hooks.Answer{Mutation: hooks.Mutation{AddEnv: map[string]string{"PID": fmt.Sprint(os.Getpid()), "WHO": call.InstanceID}}}, nil
			}}
			plugin.Serve(plugin.Plugin{Name: f.name, Version: "1", Lifetime: plugin.WarmOK, Hooks: h, HooksConfig: config.To(h)})
		},
		"warm-bank": func(f *fake) {
			b := &bank{}
			plugin.Serve(plugin.Plugin{Name: f.name, Version: "1", Lifetime: plugin.WarmOK, Secrets: b, SecretsConfig: config.To(b)})
		},
	}
}

// newWarmRig keeps plugins for an hour. What is kept in the end is ended.
func newWarmRig(t *testing.T, blocks map[string]string) *rig {
	t.Helper()
	all := map[string]string{}
	for n := range behaviours {
		all[n] = "keep_warm = \"1h\"\n" + blocks[n]
	}
	r := newRig(t, all)
	r.o.Schemas = &SchemaCache{Dir: filepath.Join(t.TempDir(), "schema")}
	r.greet = testutil.Patient(20 * time.Second) // whoever is slow is none of these tests' business
	t.Cleanup(func() {
		for _, rec := range r.records(t) {
			rec.touch(t, -2*time.Hour)
		}
		if err := rundir.Sweep([]string{r.run}); err != nil {
			t.Error(err)
		}
	})
	return r
}

// record is the record of a plugin that is kept.
type record struct {
	path string
	rundir.Warm
}

func (r *rig) records(t *testing.T) (out []*record) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(r.run, "*", "warm"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		rec := &record{path: path}
		_ = json.Unmarshal(b, &rec.Warm) // a torn one is none
		out = append(out, rec)
	}
	return out
}

func (r *rig) only(t *testing.T) *record {
	t.Helper()
	all := r.records(t)
	if len(all) != 1 {
		t.Fatalf("%d records, want one", len(all))
	}
	return all[0]
}

func (rec *record) write(t *testing.T) {
	t.Helper()
	b, err := json.Marshal(rec.Warm)
	if err == nil {
		err = os.WriteFile(rec.path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// touch makes it last used so long from now.
func (rec *record) touch(t *testing.T, by time.Duration) {
	t.Helper()
	at := time.Now().Add(by)
	if err := os.Chtimes(rec.path, at, at); err != nil {
		t.Error(err)
	}
}

// askOne fetches one secret for a sandbox, and gives the value, and the pid in it.
func (r *rig) askOne(t *testing.T, sandbox, name string) (pid int, value string) {
	t.Helper()
	value, err := fetchOne(t.Context(), r.Host, sandbox, name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	first, _, _ := strings.Cut(value, " ")
	return pidOf(t, first), value
}

func fetchOne(ctx context.Context, h *Host, sandbox, name string) (string, error) {
	got, err := (&Secrets{Host: h}).Fetch(ctx, secret.Request{Sandbox: sandbox, Groups: []secret.Group{{Provider: name, Refs: []secret.Ref{{Name: "a"}}}}})
	if err != nil {
		return "", err
	}
	v := got.Values["a"]
	defer v.Close()
	b := make([]byte, v.Size())
	_, err = syscall.Pread(v.FD(), b, 0)
	return string(b), err
}

// warmHost fetches a secret, tells it, and waits to be killed.
func warmHost(name, runDir, schemas string) {
	c, diags := hostconfig.Parse("nucleus.hcl", fmt.Appendf(nil, "plugin %q {\n keep_warm = \"1h\"\n}\n", name))
	if diags.HasErrors() {
		fmt.Println(diags)
		os.Exit(1)
	}
	h := New(Options{Finder: &Finder{Dirs: []string{os.Getenv(envPrograms)}, Host: c}, RunDirs: []string{runDir}, Schemas: &SchemaCache{Dir: schemas}, Version: "1"})
	v, err := fetchOne(context.Background(), h, "killed", name)
	fmt.Println(v, err)
	select {}
}

// gone kills nobody, and tells when a process has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "process", func() string { return ifAlive(pid) })
}

func kill(t *testing.T, pid int) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err == nil {
		err = errors.Join(p.Kill(), p.Release())
	}
	if err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
}

// A plugin that is kept serves later hosts, each sandbox by instances of its own, until
// nobody has come for so long.
func TestWarmPluginIsFoundAgain(t *testing.T) {
	r := newWarmRig(t, map[string]string{"warm": "config {\n word = \"w\"\n}\n"})
	first, got := r.askOne(t, "one", "warm")
	if want := fmt.Sprintf("%d %q one/a", first, "w"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	// What another process that is configured the same finds.
	later := New(r.o)
	later.greet = r.greet
	got, err := fetchOne(t.Context(), later, "two", "warm")
	if want := fmt.Sprintf("%d %q two/a", first, "w"); err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			id := fmt.Sprintf("s%d", i)
			if got, err := fetchOne(t.Context(), later, id, "warm"); err != nil || got != fmt.Sprintf("%d %q %s/a", first, "w", id) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	wg.Wait()
	if rec := r.only(t); rec.Uses != 10 || rec.PID != first || rec.Over {
		t.Errorf("record %+v", rec.Warm)
	}
	// Whoever sweeps leaves it, until it ought to have gone.
	for _, age := range []time.Duration{0, -time.Hour} {
		r.only(t).touch(t, age)
		if err := rundir.Sweep([]string{r.run}); err != nil || !alive(first) {
			t.Fatalf("swept %s after its last use: %v", -age, err)
		}
	}
	r.only(t).touch(t, -time.Hour-time.Minute)
	if err := rundir.Sweep([]string{r.run}); err != nil || alive(first) {
		t.Errorf("it stays for ever: %v", err)
	}
	second, _ := r.askOne(t, "three", "warm")
	if second == first {
		t.Error("the dead serve")
	}
	// A clock that was set back prolongs nothing.
	r.only(t).touch(t, time.Hour)
	if err := rundir.Sweep([]string{r.run}); err != nil || alive(second) {
		t.Errorf("it stays until its time comes again: %v", err)
	}
}

// A host that is killed leaves what it has kept.
func TestWarmPluginOfAHostThatIsKilled(t *testing.T) {
	r := newWarmRig(t, nil)
	r.o.Finder.Host.Plugins = nil // and so what is started here is the same
	c, diags := hostconfig.Parse("nucleus.hcl", []byte("plugin \"warm\" {\n keep_warm = \"1h\"\n}\n"))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	r.o.Finder.Host = c
	cmd := exec.Command("/proc/self/exe", asWarmHost, "warm", r.run, r.o.Schemas.Dir)
	cmd.Env = append(os.Environ(), envPrograms+"="+programs)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(line, " ")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if second, _ := r.askOne(t, "two", "warm"); second != pidOf(t, first) {
		t.Errorf("process %d, and its host has left %q", second, line)
	}
}

// What is not exactly the process that a record means, is not used; and nobody is ended
// who is not that process.
func TestWarmPluginThatIsAnother(t *testing.T) {
	type state struct {
		*rig
		rec      *record
		stranger int
	}
	for name, change := range map[string]func(t *testing.T, s *state){
		"its number is another's now": func(t *testing.T, s *state) {
			kill(t, s.rec.PID)
			s.rec.PID = s.stranger
			s.rec.write(t)
		},
		"of another boot": func(t *testing.T, s *state) { s.rec.Boot = "another"; s.rec.write(t) },
		"its number is of init": func(t *testing.T, s *state) {
			s.rec.PID = 1
			s.rec.write(t)
		},
		"of another start": func(t *testing.T, s *state) { s.rec.Start++; s.rec.write(t) },
		"of another user":  func(t *testing.T, s *state) { s.rec.UID++; s.rec.write(t) },
		"of another digest": func(t *testing.T, s *state) {
			s.rec.Digest = strings.Repeat("0", 64)
			s.rec.write(t)
		},
		"its record is torn": func(t *testing.T, s *state) {
			if err := os.Truncate(s.rec.path, 40); err != nil {
				t.Fatal(err)
			}
		},
		"others can read its record": func(t *testing.T, s *state) {
			if err := os.Chmod(s.rec.path, 0o644); err != nil {
				t.Fatal(err)
			}
		},
		"its record is a link": func(t *testing.T, s *state) {
			if err := errors.Join(os.Rename(s.rec.path, s.rec.path+".x"), os.Symlink(s.rec.path+".x", s.rec.path)); err != nil {
				t.Fatal(err)
			}
		},
		"its socket is elsewhere": func(t *testing.T, s *state) {
			link := filepath.Join(s.dir, "socket")
			if err := os.Symlink(s.rec.Socket, link); err != nil {
				t.Fatal(err)
			}
			s.rec.Socket = link
			s.rec.write(t)
		},
		"its socket is gone": func(t *testing.T, s *state) {
			if err := os.Remove(s.rec.Socket); err != nil {
				t.Fatal(err)
			}
		},
		"another process listens at its socket": func(t *testing.T, s *state) {
			if err := os.Remove(s.rec.Socket); err != nil {
				t.Fatal(err)
			}
			s.squat(t, s.rec)
		},
		"it has ended":       func(t *testing.T, s *state) { kill(t, s.rec.PID) },
		"it was used enough": func(t *testing.T, s *state) { s.rec.Over = true; s.rec.write(t) },
		"upgraded": func(t *testing.T, s *state) {
			b, err := os.ReadFile(filepath.Join(programs, Prefix+"warm"))
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(s.dir, Prefix+"warm"), string(b)+"2", 0o755)
			s.o.Finder.Dirs = []string{s.dir}
		},
		"configured otherwise": func(t *testing.T, s *state) {
			env := s.operator().Env
			c, diags := hostconfig.Parse("nucleus.hcl", []byte("plugin \"warm\" {\n keep_warm = \"1h\"\n config {\n  word = \"other\"\n }\n}\n"))
			if diags.HasErrors() {
				t.Fatal(diags)
			}
			s.o.Finder.Host = c
			s.operator().Env = env
		},
		"with other variables": func(_ *testing.T, s *state) {
			s.operator().Env = maps.Clone(s.operator().Env)
			s.operator().Env["X"] = "1"
		},
		"with another limit": func(t *testing.T, s *state) { s.operator().Memory = 300 << 20 },
		"with another box":   func(t *testing.T, s *state) { s.operator().Writable = []string{s.dir} },
		"of another core":    func(_ *testing.T, s *state) { s.o.Version = "2" },
	} {
		t.Run(name, func(t *testing.T) {
			r := newWarmRig(t, map[string]string{"warm": "config {\n word = \"w\"\n}\n"})
			first, _ := r.askOne(t, "one", "warm")
			sleep := exec.Command("/bin/sleep", "1000")
			if err := sleep.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = sleep.Process.Kill()
				_ = sleep.Wait()
			})
			// Nobody knows of it any more in some of these cases, and without a control
			// group it would wait for its hour.
			p, err := os.FindProcess(first)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = p.Kill()
				_ = p.Release()
			})
			change(t, &state{r, r.only(t), sleep.Process.Pid})
			second, got := r.askOne(t, "two", "warm")
			if second == first || !strings.HasSuffix(got, " two/a") {
				t.Errorf("process %d gave %q, and was not to be used", second, got)
			}
			if !alive(sleep.Process.Pid) {
				t.Error("a stranger was ended")
			}
			if third, _ := r.askOne(t, "three", "warm"); third != second {
				t.Errorf("process %d, and %d is kept", third, second)
			}
		})
	}
}

// operator is what the operator says of plugin warm.
func (r *rig) operator() *hostconfig.Plugin {
	for i := range r.o.Finder.Host.Plugins {
		if p := &r.o.Finder.Host.Plugins[i]; p.Name == "warm" {
			return p
		}
	}
	return nil
}

// squat serves in a plugin's place, as another process.
func (r *rig) squat(t *testing.T, rec *record) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = Prefix + "impostor"
	dir := filepath.Dir(rec.Socket)
	cmd.Env = []string{"PLUGIN_UNIX_SOCKET_DIR=" + dir}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "nobody at the socket", func() string {
		if err := os.Rename(filepath.Join(dir, "impostor"), rec.Socket); err != nil {
			return err.Error()
		}
		return ""
	})
}
