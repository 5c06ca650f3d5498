package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	sdknet "github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// wire is a network plugin made with the SDK. It tells what it was called with in the
// handle, and in the file that Detach is told of.
type wire struct {
	attach func(r *sdknet.AttachRequest) (*sdknet.AttachResponse, error)
	detach func(r *sdknet.DetachRequest) error
	conf   wireConfig
}

type wireConfig struct {
	Subnet string `hcl:"subnet,optional" desc:"The sandbox's."`
	Log    string `hcl:"log,optional" desc:"Where Detach tells."`
	Token  string `hcl:"token,optional" desc:"Nobody's business." sensitive:"true"`
}

func (w *wire) Configure(_ context.Context, _ config.Instance, c wireConfig) error {
	w.conf = c
	return nil
}

func (w *wire) Prepare(_ context.Context, r *sdknet.PrepareRequest) (*sdknet.PrepareResponse, error) {
	return &sdknet.PrepareResponse{
		Handle:   sdknet.Handle{Version: 1, Opaque: fmt.Appendf(nil, "prepared %s %t", r.Call.SandboxID, r.OwnStack)},
		Openings: []sdknet.Opening{{Name: "tap", Kind: sdknet.Tap, Transparent: true, Optional: true}},
		Setups:   []sdknet.Setup{{Name: "s", Protocol: 12, Messages: []byte("m"), Optional: true}},
	}, nil
}

func (w *wire) Attach(_ context.Context, r *sdknet.AttachRequest) (*sdknet.AttachResponse, error) {
	if w.attach != nil {
		return w.attach(r)
	}
	said, _ := io.ReadAll(r.Files[0])
	for _, f := range r.Files {
		_ = f.Close()
	}
	what := fmt.Sprintf("%t %s %s %s %s %v %v %v %s %s", r.OwnStack, r.Call.RequestID, r.Call.InstanceID, r.IfName, r.Hostname, r.Egress.Allow, r.Missing, r.Ports, said, w.conf.Token)
	return &sdknet.AttachResponse{Handle: sdknet.Handle{Version: 1, Opaque: []byte(what)}}, nil
}

func (w *wire) Detach(_ context.Context, r *sdknet.DetachRequest) ([]string, error) {
	if w.detach != nil {
		return nil, w.detach(r)
	}
	if w.conf.Log == "" {
		return nil, nil
	}
	f, err := os.OpenFile(w.conf.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(f, "%s|%s|%s|%v\n", r.Call.SandboxID, r.Prepared.Opaque, r.Handle.Opaque, r.Force)
	return nil, errors.Join(err, f.Close())
}

func (w *wire) Watch(ctx context.Context, r *sdknet.WatchRequest, tell func(sdknet.Denial) error) error {
	if err := tell(sdknet.Denial{At: time.Now(), Name: r.SandboxID, Rule: -1, Count: 1}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// sweeper is one that can remove what no sandbox has.
type sweeper struct {
	wire
	root string
}

func (w *sweeper) configure(_ context.Context, in config.Instance, _ struct{}) error {
	w.root = in.StateRoot
	return nil
}

func (w *sweeper) GC(_ context.Context, r *sdknet.GCRequest) (*sdknet.GCResponse, error) {
	out := &sdknet.GCResponse{Removed: []string{"of " + w.root}}
	for _, a := range r.Valid {
		out.Removed = append(out.Removed, fmt.Sprint("not ", a.SandboxID, " ", a.InstanceID, " ", a.IfName, " ", string(a.Handle.Opaque)))
	}
	if len(r.Valid) == 0 {
		out.Failed = []string{"link x: busy"}
	}
	return out, nil
}

func (w *wire) serve(f *fake) {
	plugin.Serve(plugin.Plugin{Name: f.name, Version: "1", Network: w, NetworkConfig: config.To(w), HandleVersions: []uint32{1}, Lifetime: plugin.Resident})
}

// networkBehaviours are those of network plugins.
func networkBehaviours() map[string]func(*fake) {
	return map[string]func(*fake){
		"net-good": (&wire{}).serve,
		"net-refuses": (&wire{attach: func(*sdknet.AttachRequest) (*sdknet.AttachResponse, error) {
			return nil, errs.ConfigErrorf(errs.Path("subnet"), "it collides with the host's own")
		}}).serve,
		"net-crashes": (&wire{attach: func(*sdknet.AttachRequest) (*sdknet.AttachResponse, error) {
			crash()
			return nil, nil
		}}).serve,
		"net-caps": func(f *fake) {
			w := &wire{}
			plugin.Serve(plugin.Plugin{Name: f.name, Version: "1", Network: w, NetworkConfig: config.To(w), Needs: plugin.Needs{Capabilities: []string{"CAP_NET_ADMIN"}}})
		},
		"net-gc": func(f *fake) {
			w := &sweeper{}
			plugin.Serve(plugin.Plugin{Name: f.name, Version: "1", Config: config.To(config.Func[struct{}](w.configure)), Network: w, NetworkConfig: config.To(&w.wire), HandleVersions: []uint32{1}})
		},
	}
}

func wantNetwork(t *testing.T, name, src string) network.Want {
	t.Helper()
	return network.Want{
		Backend: name, Config: body(t, src), Hostname: "box", Ports: []sdknet.PortMap{{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 80, ContainerPort: 8080, Protocol: "tcp"}},
		Egress: sdknet.Egress{Allow: []sdknet.Rule{{Names: []string{"a.example"}}}},
	}
}

// somewhere is a network namespace of which only a file matters.
func somewhere(t *testing.T) network.Place {
	t.Helper()
	r, w, err := os.Pipe()
	if err == nil {
		_, err = io.WriteString(w, "through the side channel")
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	t.Cleanup(func() { _ = r.Close() })
	return network.Place{Files: []*os.File{os.NewFile(uintptr(dup(t, r)), "tap")}, Missing: []string{"s"}, OwnStack: true}
}

func attach(t *testing.T, l network.Link) (*sdknet.AttachResponse, error) {
	t.Helper()
	if _, err := l.Prepare(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	at := somewhere(t)
	defer at.Files[0].Close()
	return l.Attach(t.Context(), at)
}

// A backend is told what its job asks for, gets what init has opened, and another
// process of it undoes what there is, with what was written down.
func TestNetworkPluginIsCalled(t *testing.T) {
	dir, err := os.MkdirTemp("", "net")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	r := newRig(t, map[string]string{"net-good": fmt.Sprintf("writable = [%q]", dir)})
	n := &Networks{Host: r.Host}
	log := filepath.Join(dir, "log")
	l, err := n.Open(t.Context(), "id", wantNetwork(t, "net-good", fmt.Sprintf("log = %q\ntoken = \"canary\"\n", log)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := attach(t, l)
	if err != nil {
		t.Fatal(err)
	}
	const attached = "true id-attach id/net-good eth0 box [{[a.example] [] [] [] []}] [s] [{127.0.0.1 80 8080 tcp}] through the side channel"
	if string(got.Handle.Opaque) != attached+" canary" {
		t.Errorf("attached with %q", got.Handle.Opaque)
	}
	told := make(chan sdknet.Denial, 1)
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error)
	go func() { watched <- l.Watch(ctx, func(d sdknet.Denial) { told <- d }) }()
	if d := <-told; d.Name != "id" {
		t.Errorf("told %+v", d)
	}
	cancel()
	if err := <-watched; errs.Of(err).Code != errs.Canceled {
		t.Errorf("watch: %v", err)
	}
	if st, err := l.Status(t.Context()); st != nil || err != nil {
		t.Errorf("a status of a plugin that has none: %v, %v", st, err)
	}
	record := l.Record()
	if strings.Contains(string(record.Config), "canary") || record.Backend != "net-good" || record.Handle.IsZero() || record.Prepared.IsZero() {
		t.Errorf("record %+v", record)
	}
	if err := l.Detach(t.Context()); err != nil {
		t.Error(err)
	}
	gone := l.Gone()
	l.Close()
	<-gone
	if err := n.Detach(t.Context(), "id", record); err != nil {
		t.Error(err)
	}
	if err := n.Detach(t.Context(), "other", network.Record{Backend: "net-good", IfName: "eth0"}); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(log)
	line := "id|prepared id true|" + attached + " canary|true\n"
	if err != nil || string(b) != line+line {
		t.Errorf("detached with\n%s, %v, want twice\n%s", b, err, line)
	}
}

// What is wrong with a block is shown at its line; a process that ends is replaced for
// what is owed.
func TestNetworkPluginFailures(t *testing.T) {
	r := newRig(t, nil)
	n := &Networks{Host: r.Host}
	for name, x := range map[string]struct{ plugin, config, want string }{
		"the schema":  {"net-good", "subnett = \"10.0.0.0/8\"\n", `network plugin "net-good": job.hcl:1: Unsupported argument`},
		"not there":   {"net-nowhere", "", `no nucleus-plugin-net-nowhere in`},
		"no backend":  {"good", "", `it connects no networks`},
		"the request": {"net-refuses", "subnet = \"10.0.0.0/8\"\n", `network plugin "net-refuses": job.hcl:1: it collides with the host's own`},
		"a crash":     {"net-crashes", "", `network plugin "net-crashes": attaching: it ended (exit status 9)`},
	} {
		l, err := n.Open(t.Context(), "id", wantNetwork(t, x.plugin, x.config))
		if err == nil {
			_, err = attach(t, l)
		}
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", name, err)
		}
		var ne *network.Error
		if !errors.As(err, &ne) {
			t.Errorf("%s: %T", name, err)
		}
		if l != nil {
			if err := l.Detach(t.Context()); err != nil {
				t.Errorf("%s: detaching: %v", name, err)
			}
			l.Close()
		}
	}
}

// A backend that does not say so is not asked to connect jobs.
func TestNetworkPluginThatConnectsNoJobs(t *testing.T) {
	r := newRig(t, nil)
	w := wantNetwork(t, "net-good", "")
	w.Egress.Allow = append(w.Egress.Allow, sdknet.Rule{Jobs: []string{"db"}})
	l, err := (&Networks{Host: r.Host}).Open(t.Context(), "id", w)
	var ne *network.Error
	if !errors.As(err, &ne) || ne.Origin != "network.egress.allow[1].jobs" || ne.Hint == "" || !strings.Contains(err.Error(), "feature network.stack") {
		t.Errorf("%+v, %v", l, err)
	}
}

// An ordinary user learns that a plugin wants root; root's operator that it wants to be
// given something.
func TestNetworkPluginThatWantsCapabilities(t *testing.T) {
	r := newRig(t, nil)
	_, err := (&Networks{Host: r.Host}).Open(t.Context(), "id", wantNetwork(t, "net-caps", ""))
	want, hint := "it needs CAP_NET_ADMIN, which its operator does not give", `caps = ["CAP_NET_ADMIN"]`
	if os.Geteuid() != 0 {
		want, hint = "it needs CAP_NET_ADMIN, which only root can give", "run nucleus as root"
	}
	var ne *network.Error
	if !errors.As(err, &ne) || !strings.Contains(err.Error(), want) || !strings.Contains(ne.Hint, hint) {
		t.Errorf("%v, %+v", err, ne)
	}
	testutil.Needs(t, testutil.Root)
	r = newRig(t, map[string]string{"net-caps": `caps = ["CAP_NET_ADMIN"]`})
	l, err := (&Networks{Host: r.Host}).Open(t.Context(), "id", wantNetwork(t, "net-caps", ""))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// Whoever can remove what no sandbox has is asked to, if it was ever used; with the
// state root whose sandboxes it is told of, and with those that are its own.
func TestNetworkPluginsCollect(t *testing.T) {
	r := newRig(t, nil)
	r.o.Schemas = &SchemaCache{Dir: filepath.Join(t.TempDir(), "schema")}
	r.o.StateRoot = t.TempDir()
	n := &Networks{Host: r.Host}
	keep := map[string]network.Record{
		"mine":   {Backend: "net-gc", IfName: "eth0", Handle: sdknet.Handle{Version: 1, Opaque: []byte("handle")}},
		"others": {Backend: "net-good", IfName: "eth0"},
	}
	if got, err := n.Collect(t.Context(), keep); len(got) > 0 || err != nil {
		t.Errorf("a plugin that nobody has used: %+v, %v", got, err)
	}
	for _, name := range []string{"net-good", "net-gc", "good"} {
		if l, err := n.Open(t.Context(), "id", wantNetwork(t, name, "")); err == nil {
			l.Close()
		} else if name != "good" {
			t.Fatal(err)
		}
	}
	got, err := n.Collect(t.Context(), keep)
	if err != nil || len(got) != 1 || got[0].Backend != "net-gc" || len(got[0].Removed) != 2 || got[0].Removed[1] != "not mine mine/net-gc eth0 handle" {
		t.Fatalf("%+v, %v", got, err)
	}
	mine := got[0].Removed[0]
	got, err = n.Collect(t.Context(), nil)
	if len(got) != 1 || got[0].Removed[0] != mine || err == nil || !strings.Contains(err.Error(), "link x: busy") {
		t.Errorf("what could not be removed: %+v, %v", got, err)
	}
	// A state root that was made anew, at the same path, has other sandboxes.
	if err := errors.Join(os.Remove(r.o.StateRoot), os.Mkdir(r.o.StateRoot, 0o700)); err != nil {
		t.Fatal(err)
	}
	if got, _ = n.Collect(t.Context(), keep); len(got) != 1 || got[0].Removed[0] == mine || got[0].Removed[0] == "of " {
		t.Errorf("one that was made anew: %+v, and was %s", got, mine)
	}
}
