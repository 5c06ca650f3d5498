package plugin_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// The test binary is the plugin, too: what is tested is a real process.
const (
	envRole    = "SDK_TEST_ROLE"
	envEffects = "SDK_TEST_EFFECTS" // a file with a line for each effect
)

func init() {
	if os.Getenv(envRole) == "noisy" {
		fmt.Println("noise of an init function")
	}
}

func TestMain(m *testing.M) {
	switch role := os.Getenv(envRole); role {
	case "":
		os.Exit(m.Run())
	case "dial":
		os.Exit(dial(os.Args[1]))
	default:
		fake(role)
	}
}

// dial tells on standard output what a connection gives.
func dial(path string) int {
	fmt.Print(answer(path))
	return 0
}

// answer connects and says whether the server speaks. It must be the first to: an
// HTTP/2 server sends its settings at once.
func answer(path string) string {
	c, err := net.Dial("unix", path)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err.Error()
	}
	switch n, err := c.Read(make([]byte, 1)); {
	case n > 0:
		return "served"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return "refused"
	default:
		return err.Error()
	}
}

type settings struct {
	Address string            `hcl:"address" desc:"Where the server is." pattern:"https?://.+"`
	Token   string            `hcl:"token,optional" desc:"What to log in with." sensitive:"true" pattern:"[a-z]+"`
	Mode    string            `hcl:"mode,optional" desc:"How to read." enum:"kv1,kv2" default:"kv2"`
	Tries   uint8             `hcl:"tries,optional" desc:"How often to try." min:"1" max:"9" default:"3"`
	Wait    time.Duration     `hcl:"wait,optional" desc:"How long to wait for an answer." default:"2s"`
	Labels  map[string]string `hcl:"labels,optional" desc:"Sent along."`
	Old     string            `hcl:"old,optional" desc:"The former name of address." deprecated:"Write address."`
	Routes  []route           `hcl:"route,block" desc:"A way to the server."`
}

type route struct {
	Dst string `hcl:"dst" desc:"The network." format:"cidr"`
	Via string `hcl:"via,optional" desc:"The next hop." format:"ip"`
}

func fake(role string) {
	p := plugin.Plugin{
		Name: "fake", Version: "1.2.3", Description: "a plugin for tests", DocsURL: "https://example.org/fake",
		Secrets: &provider{}, Hooks: handler{},
		SecretsConfig: config.To(config.Func[settings](configure)),
		Health: func(context.Context) manifest.Health {
			return manifest.Health{State: manifest.Degraded, Message: "slow today", LiveObjects: 2}
		},
	}
	switch role {
	case "warm":
		p.Lifetime = plugin.WarmOK
		p.Close = func(context.Context) error { effect("close"); return nil }
	case "warm and noisy":
		p.Lifetime = plugin.WarmOK
		go func() {
			for {
				fmt.Println("noise for ever")
				fmt.Fprintln(os.Stderr, "noise for ever")
				time.Sleep(100 * time.Microsecond)
			}
		}()
	case "noisy":
		fmt.Println("noise of main")
		fmt.Fprintln(os.NewFile(1, "stdout"), "noise by number")
		go func() {
			for {
				fmt.Println("noise for ever")
				time.Sleep(time.Millisecond)
			}
		}()
	case "closing":
		p.Close = func(context.Context) error {
			effect("close")
			return fmt.Errorf("the server keeps %s", longSecret)
		}
	case "closing for ever":
		p.Close = func(context.Context) error {
			effect("close")
			select {}
		}
	case "panicking at the close":
		p.Close = func(context.Context) error {
			effect("close")
			panic("close went wrong")
		}
	case "network":
		p = networkPlugin()
	case "runtime":
		p = runtimePlugin()
	case "broken":
		p.Secrets, p.Hooks, p.SecretsConfig = nil, nil, nil
	}
	plugin.Serve(p)
}

func configure(_ context.Context, in config.Instance, c settings) error {
	switch {
	case c.Mode == "kv1":
		return errors.Join(
			errs.ConfigErrorf(errs.Path("mode"), "kv1 is not for %s", in.ID),
			errs.ConfigErrorf(errs.Path("labels", errs.MapKey("team")), "no such team"),
		)
	case len(c.Routes) > 0 && c.Routes[0].Dst == "10.0.0.0/8":
		return errs.ConfigErrorf(errs.Path("route", 0, "dst"), "not routed: %q", c.Routes[0].Dst)
	}
	effect(fmt.Sprintf("configured %s tries=%d wait=%s mode=%s routes=%d", in.ID, c.Tries, c.Wait, c.Mode, len(c.Routes)))
	return nil
}

// effect does something that can be counted.
func effect(what string) {
	f, err := os.OpenFile(os.Getenv(envEffects), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, what)
}

const (
	longSecret  = "pa$$ w\"ord/+9\n"
	shortSecret = "k9"
)

type provider struct{}

func (*provider) Fetch(ctx context.Context, call secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
	one := func(v string) ([]secrets.Secret, error) {
		return []secrets.Secret{{Value: []byte(v), Version: "7", NotAfter: time.Unix(1e9, 0).UTC(), Lease: secrets.Lease{ID: "l1", Duration: time.Hour, Renewable: true}}}, nil
	}
	switch refs[0].Name {
	case "panic":
		panic("fetch went wrong")
	case "nil":
		writeTo(nil)
	case "slow":
		time.Sleep(300 * time.Millisecond)
		effect("fetch")
		return one(fmt.Sprint(time.Now().UnixNano()))
	case "busy":
		effect("busy")
		time.Sleep(300 * time.Millisecond)
	case "hang":
		effect("hang")
		time.Sleep(time.Hour)
	case "counted":
		effect("fetch")
		return one(fmt.Sprint(time.Now().UnixNano()))
	case "refused":
		effect("fetch")
		return nil, errs.Deniedf("no policy")
	case "down":
		effect("fetch")
		return nil, errs.Because(errs.Retry(errors.New("backend is down"), 250*time.Millisecond), "BACKEND_DOWN", map[string]string{"host": "a"})
	case "dumpable":
		d, _, _ := syscall.Syscall(syscall.SYS_PRCTL, syscall.PR_GET_DUMPABLE, 0, 0)
		return one(fmt.Sprint(d))
	case "child":
		out, err := exec.CommandContext(ctx, "/bin/sh", "-c", "ls -l /proc/self/fd; env; echo to-stdout >&1").CombinedOutput()
		if err != nil {
			return nil, err
		}
		return one(string(out))
	case "long":
		return one(longSecret)
	case "short":
		return one(shortSecret)
	case "leaky":
		b := []byte(longSecret)
		t := strings.TrimSpace(longSecret)
		err := fmt.Errorf("raw %s trimmed %s. quoted %q b64 %s hex %s url %s key %s keys k99", longSecret, t, longSecret,
			base64.StdEncoding.EncodeToString(b), hex.EncodeToString([]byte(t)), url.QueryEscape(t), shortSecret)
		return nil, errs.Because(errs.Residue(errors.Join(err, errs.ConfigErrorf(errs.Path("a"), "bad %s", t)), t), "LEAKY", map[string]string{"value": t})
	case "panicky":
		panic("with " + longSecret)
	case "few":
		return nil, nil
	case "absent":
		return []secrets.Secret{{Name: "absent", Absent: true}}, nil
	}
	return one("plain for " + call.SandboxID)
}

func writeTo(m map[string]int) { m["x"] = 1 }

func (*provider) Renew(_ context.Context, call secrets.Call, id string, by time.Duration) (secrets.Lease, error) {
	if id == "panic" {
		panic("renew went wrong")
	}
	effect("renew " + call.InstanceID)
	return secrets.Lease{ID: id, Duration: 2 * by, Renewable: true}, nil
}

func (*provider) Revoke(_ context.Context, _ secrets.Call, id string) error {
	switch id {
	case "panic":
		panic("revoke went wrong")
	case "gone":
		return errs.NotFoundf("lease %s", id)
	case "stuck":
		return errs.Residue(errors.New("the server says no"), "token a", "token b")
	}
	effect("revoke")
	return nil
}

type handler struct{}

func (handler) Describe(_ context.Context, id string) (hooks.Subscription, error) {
	if id == "panic" {
		panic("describe went wrong")
	}
	return hooks.Subscription{At: hooks.At(hooks.PreFS, hooks.Cleanup), Order: -3}, nil
}

func (handler) OnPhase(_ context.Context, call hooks.Call, e hooks.Event) (hooks.Answer, error) {
	if e.SandboxName == "panic" {
		panic("hook went wrong")
	}
	return hooks.Answer{Veto: "not " + e.SandboxName, Mutation: hooks.Mutation{
		AddEnv: map[string]string{"A": call.InstanceID}, DropCapabilities: []string{"CAP_CHOWN"},
		LowerRlimits: map[string]uint64{"nofile": 10}, Annotations: map[string]string{"cause": e.Cause, "plan": string(e.Plan)},
	}}, nil
}

// host is one plugin process and its host.
type host struct {
	*client.Client
	conn     *grpc.ClientConn
	sender   *descriptors.Sender
	proc     *goplugin.Client
	cmd      *exec.Cmd
	socket   string
	lifeline *os.File
	stderr   *bytes.Buffer
	effects  string
}

func command(t *testing.T, role string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", envRole + "=" + role}, env...)
	return cmd
}

// socketDir is short: a test's own directory is named after it.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sdk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func start(t *testing.T, role string, env ...string) *host {
	t.Helper()
	h := &host{stderr: &bytes.Buffer{}, effects: t.TempDir() + "/effects"}
	h.cmd = command(t, role, append([]string{handshake.EnvDescriptorsFD + "=6"}, append(env, envEffects+"="+h.effects, handshake.EnvSocketDir+"="+socketDir(t), handshake.EnvLifelineFD+"=3")...)...)
	side, theirs, err := descriptors.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { side.Close() })
	h.sender = side
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// A host leaves more descriptors open than it names: the program's own, say.
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	h.cmd.ExtraFiles, h.lifeline = []*os.File{r, null, null, theirs}, w
	h.proc = goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: handshake.Config(), Plugins: client.PluginSet(), Cmd: h.cmd, SkipHostEnv: true,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC}, Logger: hclog.NewNullLogger(), Stderr: h.stderr,
		GRPCDialOptions: []grpc.DialOption{grpc.WithTransportCredentials(handshake.Credentials(handshake.Only(func() (int, uint32) {
			return h.cmd.Process.Pid, uint32(os.Geteuid())
		})))},
	})
	t.Cleanup(h.proc.Kill)
	t.Cleanup(func() { w.Close() })
	addr, err := h.proc.Start()
	r.Close()
	theirs.Close()
	if err != nil {
		t.Fatalf("starting the plugin: %v\n%s", err, h.stderr)
	}
	h.socket = addr.String()
	rpc, err := h.proc.Client()
	if err != nil {
		t.Fatalf("connecting: %v\n%s", err, h.stderr)
	}
	raw, err := rpc.Dispense(handshake.PluginName)
	if err != nil {
		t.Fatal(err)
	}
	h.Client = raw.(*client.Client).WithDescriptors(side)
	h.conn = rpc.(*goplugin.GRPCClient).Conn
	return h
}

func (h *host) secrets() secrets.Provider {
	return h.Secrets([]string{secrets.FeatureRenew, secrets.FeatureRevoke})
}

// count gives the effects that the plugin had.
func (h *host) count(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(h.effects)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}
