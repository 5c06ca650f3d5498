// Package plugins has the tests of the examples' programs, as a host starts them.
package plugins

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/zclconf/go-cty/cty"
	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// build builds all plugins into a directory.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir+"/", "-ldflags", "-X main.version=1.2.3", "./...")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// Every plugin says by hand what it is, and its schema can be derived.
func TestByHand(t *testing.T) {
	dir := build(t)
	for _, name := range []string{"dotenv", "curfew"} {
		program := filepath.Join(dir, "nucleus-plugin-"+name)
		out, err := exec.Command(program, "--version").Output()
		if want := name + " 1.2.3 (sdk " + plugin.SDKVersion + ")\n"; err != nil || string(out) != want {
			t.Errorf("--version: %q, %v, want %q", out, err, want)
		}
		out, err = exec.Command(program, "--schema").Output()
		var s config.Schema
		if err != nil || json.Unmarshal(out, &s) != nil || s.Plugin == nil {
			t.Errorf("--schema of %s: %v\n%s", name, err, out)
		}
	}
}

// What follows is what a host does: start, configure, call.

func TestDotenvServes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, []byte("DB_PASSWORD=hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, c, schema := start(t, filepath.Join(build(t), "nucleus-plugin-dotenv"))
	configure(ctx, t, c, "", "", schema.Plugin, map[string]cty.Value{"path": cty.StringVal(path)})
	configure(ctx, t, c, manifest.Secrets, "db", schema.Instance["secrets"], map[string]cty.Value{"key": cty.StringVal("DB_PASSWORD")})
	got, err := c.Secrets(nil).Fetch(ctx, secrets.Call{RequestID: "1"}, []secrets.Ref{{Name: "db", InstanceID: "db"}})
	if err != nil || len(got) != 1 || string(got[0].Value) != "hunter2" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestCurfewServes(t *testing.T) {
	ctx, c, schema := start(t, filepath.Join(build(t), "nucleus-plugin-curfew"))
	hour := int64(time.Now().Add(12 * time.Hour).Hour())
	configure(ctx, t, c, "", "", schema.Plugin, map[string]cty.Value{"from": cty.NumberIntVal(hour), "until": cty.NumberIntVal((hour + 1) % 24)})
	sub, err := c.Hooks().Describe(ctx, "curfew")
	if err != nil || sub.At != hooks.At(hooks.PreNamespaces, hooks.PreSecurity) {
		t.Errorf("subscribed to %+v, %v", sub, err)
	}
	a, err := c.Hooks().OnPhase(ctx, hooks.Call{RequestID: "1"}, hooks.Event{Boundary: hooks.PreNamespaces})
	if err != nil || a.Veto != "" {
		t.Errorf("half a day before the curfew: %+v, %v", a, err)
	}
	a, err = c.Hooks().OnPhase(ctx, hooks.Call{RequestID: "2"}, hooks.Event{Boundary: hooks.PreSecurity})
	if err != nil || a.Mutation.AddEnv["CURFEW"] == "" {
		t.Errorf("no variable: %+v, %v", a, err)
	}
}

// start starts a plugin as its host does. Each call needs a deadline; the context has it.
func start(t *testing.T, program string) (context.Context, *client.Client, config.Schema) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	cmd := exec.Command(program)
	host := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: handshake.Config(), Plugins: client.PluginSet(), Cmd: cmd, SkipHostEnv: true,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC}, Logger: hclog.NewNullLogger(),
		GRPCDialOptions: []grpc.DialOption{grpc.WithTransportCredentials(handshake.Credentials(handshake.Only(func() (int, uint32) {
			return cmd.Process.Pid, uint32(os.Geteuid())
		})))},
	})
	t.Cleanup(host.Kill)
	conn, err := host.Client()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := conn.Dispense(handshake.PluginName)
	if err != nil {
		t.Fatal(err)
	}
	c := raw.(*client.Client)
	schema, err := c.ConfigSchema(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return ctx, c, schema
}

func configure(ctx context.Context, t *testing.T, c *client.Client, s manifest.Service, id string, b *config.Block, v map[string]cty.Value) {
	t.Helper()
	value, err := b.Marshal(cty.ObjectVal(v))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Configure(ctx, client.Configuration{Instance: config.Instance{ID: id}, Service: s, Value: value}); err != nil {
		t.Fatal(err)
	}
}
