package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// The test binary is the plugin, too: what is tested are real processes. A plugin's
// environment is clean, so that how it behaves is told by the name it is called by.
const (
	asHost      = "as-host"
	asWarmHost  = "as-warm-host"
	asCaller    = "as-caller"
	envPrograms = "PLUGINHOST_TEST_PROGRAMS"
)

var programs string // a plugin directory that can be trusted

func init() {
	if called("noisy") {
		fmt.Println("noise of an init function")
	}
}

func called(name string) bool { return filepath.Base(os.Args[0]) == Prefix+name }

func TestMain(m *testing.M) {
	if name, ok := strings.CutPrefix(filepath.Base(os.Args[0]), Prefix); ok {
		behave(name)
	}
	if len(os.Args) == 4 && os.Args[1] == asHost {
		host(os.Args[2], os.Args[3])
	}
	if len(os.Args) == 5 && os.Args[1] == asWarmHost {
		warmHost(os.Args[2], os.Args[3], os.Args[4])
	}
	if len(os.Args) == 3 && os.Args[1] == asCaller {
		call(os.Args[2])
	}
	if len(os.Args) == 2 && os.Args[1] == asFull {
		startWhereFull()
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if programs, err = copies(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(programs)
	if err := firstUse(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// firstUse opens what stays open: a descriptor of the library behind core/cgroups,
// and one of Go's.
func firstUse() error {
	run, err := os.MkdirTemp("", "ph")
	if err != nil {
		return err
	}
	defer os.RemoveAll(run)
	h := New(Options{Finder: &Finder{Dirs: []string{programs}, Host: &hostconfig.Config{}}, RunDirs: []string{run}})
	if err := os.Chmod(run, 0o755); err != nil {
		return err
	}
	p, err := h.Start(context.Background(), "good", manifest.Secrets)
	if err != nil {
		return err
	}
	p.Close()
	return nil
}

// copies gives the test binary the names of all behaviours.
func copies() (string, error) {
	// Not a test's own directory, which other users cannot enter.
	dir, err := os.MkdirTemp("", "pluginhost")
	if err != nil {
		return "", err
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer self.Close()
	first := filepath.Join(dir, Prefix+"good")
	f, err := os.OpenFile(first, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, self)
	err = errors.Join(err, f.Close(), os.Chmod(dir, 0o755))
	for name := range behaviours {
		if name != "good" {
			err = errors.Join(err, os.Link(first, filepath.Join(dir, Prefix+name)))
		}
	}
	return dir, err
}

// host starts a plugin, tells its pid, and waits to be killed.
func host(name, runDir string) {
	h := New(Options{Finder: &Finder{Dirs: []string{os.Getenv(envPrograms)}, Host: &hostconfig.Config{}}, RunDirs: []string{runDir}})
	p, err := h.Start(context.Background(), name, manifest.Secrets)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.Pid())
	select {}
}

// call connects to a plugin's socket, and tells whether it is served: a server of
// HTTP/2 is the first to speak.
func call(socket string) {
	c, err := net.Dial("unix", socket)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	switch {
	case err == nil:
		fmt.Print("served")
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		fmt.Print("refused")
	default:
		fmt.Print(err)
	}
	os.Exit(0)
}

// behave is a plugin's main.
func behave(name string) {
	do := behaviours[name]
	if do == nil {
		fmt.Fprintf(os.Stderr, "no behaviour %q\n", name)
		os.Exit(2)
	}
	if name == "squatter" || name == "impostor" {
		do(&fake{name: name}) // it has no host
	}
	if !strings.HasPrefix(name, "warm") { // the SDK has to hear what is said there
		go func() {
			_, _ = io.Copy(io.Discard, os.NewFile(lifelineFD, "lifeline"))
			os.Exit(1)
		}()
	}
	do(&fake{name: name})
	select {}
}

// sdk serves as an author would.
func sdk(f func(ctx context.Context, call secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error)) func(*fake) {
	return func(p *fake) { plugin.Serve(plugin.Plugin{Name: p.name, Version: "1", Secrets: provider(f)}) }
}

type provider func(ctx context.Context, call secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error)

func (f provider) Fetch(ctx context.Context, call secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
	return f(ctx, call, refs)
}

func telling(what func(call secrets.Call) string) func(*fake) {
	return sdk(func(_ context.Context, call secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
		out := make([]secrets.Secret, len(refs))
		for i := range out {
			out[i].Value = []byte(what(call))
		}
		return out, nil
	})
}

// fake is a plugin that was not made with the SDK, and keeps none of its promises.
type fake struct {
	pluginv1.UnimplementedBaseServer
	pluginv1.UnimplementedSecretsServer
	name      string
	info      func(*pluginv1.InfoResponse) error
	schema    func(*pluginv1.ConfigSchemaResponse) error
	configure func() error
	fetch     func(*pluginv1.FetchRequest, *pluginv1.FetchResponse) error
}

func (f *fake) Info(context.Context, *pluginv1.InfoRequest) (*pluginv1.InfoResponse, error) {
	r := &pluginv1.InfoResponse{Name: f.name, Version: "1", Services: []*pluginv1.ServiceVersion{{Service: pluginv1.Service_SERVICE_SECRETS, Version: "1.0"}}}
	if f.info != nil {
		return r, f.info(r)
	}
	return r, nil
}

func (f *fake) ConfigSchema(context.Context, *pluginv1.ConfigSchemaRequest) (*pluginv1.ConfigSchemaResponse, error) {
	r := &pluginv1.ConfigSchemaResponse{}
	if f.schema != nil {
		return r, f.schema(r)
	}
	return r, nil
}

func (f *fake) Configure(context.Context, *pluginv1.ConfigureRequest) (*pluginv1.ConfigureResponse, error) {
	if f.configure != nil {
		return &pluginv1.ConfigureResponse{}, f.configure()
	}
	return &pluginv1.ConfigureResponse{}, nil
}

func (f *fake) Health(context.Context, *pluginv1.HealthRequest) (*pluginv1.HealthResponse, error) {
	return &pluginv1.HealthResponse{State: pluginv1.HealthResponse_STATE_OK}, nil
}

func (f *fake) Fetch(_ context.Context, q *pluginv1.FetchRequest) (*pluginv1.FetchResponse, error) {
	r := &pluginv1.FetchResponse{}
	for _, ref := range q.GetRefs() {
		r.Secrets = append(r.Secrets, &pluginv1.Secret{Name: ref.GetName(), Value: []byte("value")})
	}
	if f.fetch != nil {
		return r, f.fetch(q, r)
	}
	return r, nil
}

func (f *fake) serve() {
	l := listen(f.name)
	s := grpc.NewServer(grpc.MaxHeaderListSize(1<<30), grpc.MaxSendMsgSize(1<<30))
	pluginv1.RegisterBaseServer(s, f)
	pluginv1.RegisterSecretsServer(s, f)
	announce(l)
	fmt.Fprintln(os.Stderr, s.Serve(l))
	os.Exit(1)
}

func listen(name string) net.Listener {
	l, err := net.Listen("unix", filepath.Join(os.Getenv(handshake.EnvSocketDir), name))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return l
}

func announce(l net.Listener) {
	fmt.Fprintf(stdout(), "1|%d|unix|%s|grpc|\n", handshake.AppProtocol, l.Addr())
}

// stdout is what the SDK, which is linked in, has hidden from whoever prints.
var stdout = sync.OnceValue(func() *os.File {
	stderr, _ := os.Readlink("/proc/self/fd/2")
	for fd := programFD + 1; fd < 64; fd++ {
		link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err == nil && strings.HasPrefix(link, "pipe:") && link != stderr {
			return os.NewFile(uintptr(fd), "stdout")
		}
	}
	fmt.Fprintln(os.Stderr, "no standard output")
	os.Exit(2)
	return nil
})

func crash() {
	fmt.Fprintln(os.Stderr, "first words")
	fmt.Fprintln(os.Stderr, "last words")
	os.Exit(9)
}

func hang() { time.Sleep(time.Hour) }

const nasty = "\x1b]0;owned\x07\x1b[2J\nnucleus: forged line"

// child starts a program that outlives its parent.
func child(ownSession bool) int {
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: ownSession}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return cmd.Process.Pid
}

func serving(change func(*fake)) func(*fake) {
	return func(f *fake) {
		change(f)
		f.serve()
	}
}

func fetching(do func(q *pluginv1.FetchRequest, r *pluginv1.FetchResponse) error) func(*fake) {
	return serving(func(f *fake) { f.fetch = do })
}

func describing(do func(*pluginv1.InfoResponse)) func(*fake) {
	return serving(func(f *fake) {
		f.info = func(r *pluginv1.InfoResponse) error { do(r); return nil }
	})
}

// down fails as an author would, until an attempt.
func down(until uint32, wait time.Duration) func(*fake) {
	return sdk(func(_ context.Context, call secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
		if call.Attempt < until {
			return nil, errs.Retry(fmt.Errorf("down at attempt %d", call.Attempt), wait)
		}
		out := make([]secrets.Secret, len(refs))
		for i := range out {
			out[i].Value = []byte(call.RequestID)
		}
		return out, nil
	})
}

var behaviours map[string]func(*fake)

func init() {
	behaviours = map[string]func(*fake){
		"good": telling(func(secrets.Call) string { return "value" }),
		"env":  telling(func(secrets.Call) string { return strings.Join(os.Environ(), "\n") }),
		"call": telling(func(c secrets.Call) string { return fmt.Sprintf("%s %s %d", c.RequestID, c.SandboxID, c.Attempt) }),
		"noisy": func(f *fake) {
			fmt.Println("noise of main")
			go func() {
				for {
					fmt.Println(strings.Repeat("noise for ever ", 1000))
					time.Sleep(time.Millisecond)
				}
			}()
			telling(func(secrets.Call) string { return "value" })(f)
		},
		// What it prints after its handshake goes where nobody who waits for lines is.
		"chatty": fetching(func(*pluginv1.FetchRequest, *pluginv1.FetchResponse) error {
			out := stdout()
			for range 200 {
				if _, err := out.WriteString(strings.Repeat("x", 10000)); err != nil {
					return err
				}
			}
			return nil
		}),

		"crash-info":      serving(func(f *fake) { f.info = func(*pluginv1.InfoResponse) error { crash(); return nil } }),
		"crash-schema":    serving(func(f *fake) { f.schema = func(*pluginv1.ConfigSchemaResponse) error { crash(); return nil } }),
		"crash-configure": serving(func(f *fake) { f.configure = func() error { crash(); return nil } }),
		"crash-fetch":     fetching(func(*pluginv1.FetchRequest, *pluginv1.FetchResponse) error { crash(); return nil }),
		"hang-info":       serving(func(f *fake) { f.info = func(*pluginv1.InfoResponse) error { hang(); return nil } }),
		"hang-schema":     serving(func(f *fake) { f.schema = func(*pluginv1.ConfigSchemaResponse) error { hang(); return nil } }),
		"hang-configure":  serving(func(f *fake) { f.configure = func() error { hang(); return nil } }),
		"hang-fetch":      fetching(func(*pluginv1.FetchRequest, *pluginv1.FetchResponse) error { hang(); return nil }),

		"down-once": down(2, 20*time.Millisecond),
		"down":      down(9, 0),
		"down-long": down(9, time.Hour),
		"crash-once": fetching(func(q *pluginv1.FetchRequest, r *pluginv1.FetchResponse) error {
			if q.GetCall().GetAttempt() == 1 {
				crash()
			}
			r.Secrets[0].Value = []byte(q.GetCall().GetRequestId())
			return nil
		}),
		"too-few": fetching(func(_ *pluginv1.FetchRequest, r *pluginv1.FetchResponse) error { r.Secrets = r.Secrets[1:]; return nil }),
		"too-many": fetching(func(_ *pluginv1.FetchRequest, r *pluginv1.FetchResponse) error {
			r.Secrets = append(r.Secrets, r.Secrets[0])
			return nil
		}),
		"misnamed": fetching(func(_ *pluginv1.FetchRequest, r *pluginv1.FetchResponse) error {
			r.Secrets[0].Name = "other"
			return nil
		}),
		"swapped": fetching(func(_ *pluginv1.FetchRequest, r *pluginv1.FetchResponse) error {
			r.Secrets[0], r.Secrets[1] = r.Secrets[1], r.Secrets[0]
			return nil
		}),
		"absent": fetching(func(_ *pluginv1.FetchRequest, r *pluginv1.FetchResponse) error {
			r.Secrets[0].Absent = true
			return nil
		}),
		"oversized": fetching(func(_ *pluginv1.FetchRequest, r *pluginv1.FetchResponse) error {
			r.Secrets[1].Value = make([]byte, secret.MaxValue+1)
			return nil
		}),
		"giant": fetching(func(_ *pluginv1.FetchRequest, r *pluginv1.FetchResponse) error {
			r.Secrets[0].Value = make([]byte, maxMessage+1)
			return nil
		}),

		"nasty-error": fetching(func(*pluginv1.FetchRequest, *pluginv1.FetchResponse) error {
			fmt.Fprint(os.Stderr, nasty)
			time.Sleep(200 * time.Millisecond) // the host is to have read it
			return status.Error(codes.Internal, nasty)
		}),
		"huge-error": fetching(func(*pluginv1.FetchRequest, *pluginv1.FetchResponse) error {
			return status.Error(codes.Internal, strings.Repeat("e", maxHeaders/2))
		}),
		"giant-error": fetching(func(*pluginv1.FetchRequest, *pluginv1.FetchResponse) error {
			return status.Error(codes.Internal, strings.Repeat("e", 4*maxHeaders))
		}),
		"nasty-configure": serving(func(f *fake) {
			f.configure = func() error {
				c := &pluginv1.ConfigError{}
				for range 100 {
					c.Diagnostics = append(c.Diagnostics, &pluginv1.Diagnostic{
						Severity: pluginv1.Diagnostic_SEVERITY_ERROR, Summary: nasty, Detail: strings.Repeat("d", 5000),
						Path: []*pluginv1.PathStep{{Step: &pluginv1.PathStep_Attr{Attr: nasty}}},
					})
				}
				st, err := status.New(codes.InvalidArgument, "bad").WithDetails(c)
				if err != nil {
					return err
				}
				return st.Err()
			}
		}),

		"other-name": describing(func(r *pluginv1.InfoResponse) { r.Name = nasty + strings.Repeat("n", 5000) }),
		"hooks-too": describing(func(r *pluginv1.InfoResponse) {
			r.Services = append(r.Services, &pluginv1.ServiceVersion{Service: pluginv1.Service_SERVICE_HOOKS, Version: "1.0"})
		}),
		"next-major": describing(func(r *pluginv1.InfoResponse) { r.Services[0].Version = "2.0" }),
		"next-minor": describing(func(r *pluginv1.InfoResponse) { r.Services[0].Version = "1.7" }),
		"no-secrets": describing(func(r *pluginv1.InfoResponse) { r.Services = nil }),
		"needs-caps": describing(func(r *pluginv1.InfoResponse) {
			r.Needs = &pluginv1.Privileges{Capabilities: []string{"CAP_SYS_ADMIN"}}
		}),
		"nasty-caps":  describing(func(r *pluginv1.InfoResponse) { r.Needs = &pluginv1.Privileges{Capabilities: []string{nasty}} }),
		"needs-root":  describing(func(r *pluginv1.InfoResponse) { r.Needs = &pluginv1.Privileges{Root: true} }),
		"nasty-info":  describing(func(r *pluginv1.InfoResponse) { r.Description, r.Features = nasty, []string{nasty} }),
		"bad-pattern": schemas(&pluginv1.Attr{Name: "a", TypeJson: `"string"`, Constraint: &pluginv1.Constraint{Pattern: "(("}}),
		"bad-default": schemas(&pluginv1.Attr{Name: "a", TypeJson: `"number"`, DefaultJson: `"many"`}),
		"bad-type":    schemas(&pluginv1.Attr{Name: "a", TypeJson: `["list",`}),
		"deep-type":   schemas(&pluginv1.Attr{Name: "a", TypeJson: strings.Repeat(`["list",`, 400) + `"string"` + strings.Repeat("]", 400)}),
		"twice":       schemas(&pluginv1.Attr{Name: "a", TypeJson: `"string"`}, &pluginv1.Attr{Name: "a", TypeJson: `"string"`}),
		"nasty-name":  schemas(&pluginv1.Attr{Name: nasty, TypeJson: `"string"`, Required: true}),
		"long-type":   schemas(&pluginv1.Attr{Name: "a", TypeJson: strings.Repeat(`["list",`, 5000) + `"string"` + strings.Repeat("]", 5000)}),
		"optional":    schemas(&pluginv1.Attr{Name: "a", TypeJson: `["object",{"b":"string"},["b"]]`, DefaultJson: `{}`}),
		"deep": serving(func(f *fake) {
			f.schema = func(r *pluginv1.ConfigSchemaResponse) error {
				b := &pluginv1.Block{}
				for range 1000 {
					b = &pluginv1.Block{Blocks: []*pluginv1.NestedBlock{{Type: "b", Nesting: pluginv1.NestedBlock_NESTING_LIST, Block: b}}}
				}
				r.PluginConfig = b
				return nil
			}
		}),

		// A server that is another process than the one that names its socket.
		"squatted": func(f *fake) {
			cmd := exec.Command("/proc/self/exe")
			cmd.Args[0] = Prefix + "squatter"
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				crash()
			}
			socket := filepath.Join(os.Getenv(handshake.EnvSocketDir), "squatter")
			for {
				if c, err := net.Dial("unix", socket); err == nil {
					_ = c.Close()
					break
				}
				time.Sleep(time.Millisecond)
			}
			fmt.Fprintf(stdout(), "1|%d|unix|%s|grpc|\n", handshake.AppProtocol, socket)
		},
		"squatter": func(f *fake) {
			l := listen(f.name)
			for {
				c, err := l.Accept()
				if err != nil {
					crash()
				}
				n, _ := c.Read(make([]byte, 1))
				fmt.Fprintf(os.Stderr, "heard %d bytes\n", n)
			}
		},
		"silent": func(f *fake) {
			l := listen(f.name)
			announce(l)
			for {
				if _, err := l.Accept(); err != nil {
					crash()
				}
			}
		},
		"no-http": func(f *fake) {
			l := listen(f.name)
			announce(l)
			for {
				c, err := l.Accept()
				if err != nil {
					crash()
				}
				_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\n")
				_ = c.Close()
			}
		},
		"leaves": func(f *fake) {
			announce(listen(f.name))
			os.Exit(0)
		},

		// Children, in the plugin's process group and in a session of their own.
		"family": telling(func(secrets.Call) string { return fmt.Sprint(child(false)) }),
		"bereft": fetching(func(_ *pluginv1.FetchRequest, _ *pluginv1.FetchResponse) error {
			fmt.Fprintln(os.Stderr, child(false))
			os.Exit(9)
			return nil
		}),
		"runaway": telling(func(secrets.Call) string { return fmt.Sprint(child(true)) }),
		"boxed":   telling(func(secrets.Call) string { return attempts() }),
		"glutton": telling(func(secrets.Call) string { return devour(300) }),
		"glutton-at-once": func(*fake) {
			devour(300)
			hang()
		},
		"daemon": func(f *fake) {
			daemon()
			f.serve()
		},
		"storm": telling(func(secrets.Call) string { return storm() }),
		"needs-path": describing(func(r *pluginv1.InfoResponse) {
			r.Needs = &pluginv1.Privileges{WritablePaths: []string{"/var/lib/nucleus-test/x"}}
		}),
	}
	maps.Copy(behaviours, hooksBehaviours())
	maps.Copy(behaviours, networkBehaviours())
	maps.Copy(behaviours, runtimeBehaviours())
	maps.Copy(behaviours, bankBehaviours())
	maps.Copy(behaviours, sideBehaviours())
	maps.Copy(behaviours, warmBehaviours())
}

func schemas(attrs ...*pluginv1.Attr) func(*fake) {
	return serving(func(f *fake) {
		f.schema = func(r *pluginv1.ConfigSchemaResponse) error {
			r.PluginConfig = &pluginv1.Block{Attrs: attrs}
			return nil
		}
	})
}
