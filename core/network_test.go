package core_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
	sdk "github.com/nucleus-runtime/nucleus/sdk/network"
)

// backend is a network backend within the test, and the link of its one sandbox.
type backend struct {
	prepare   sdk.PrepareResponse
	response  sdk.AttachResponse
	openErr   error
	attachErr error
	detachErr error
	denials   []sdk.Denial
	hang      bool // Prepare waits for the end of its context

	mu      sync.Mutex
	want    network.Want
	place   network.Place
	calls   []string
	asked   func(detached bool) // by Status
	gone    chan struct{}
	serve   func(place network.Place)
	records []network.Record
	keep    map[string]network.Record
}

func (b *backend) called(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, what)
}

func (b *backend) Open(_ context.Context, _ string, w network.Want) (network.Link, error) {
	b.called("open")
	b.want = w
	if b.openErr != nil {
		return nil, b.openErr
	}
	return b, nil
}

func (b *backend) Prepare(ctx context.Context, _ bool) (*sdk.PrepareResponse, error) {
	b.called("prepare")
	if b.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &b.prepare, nil
}

func (b *backend) Attach(_ context.Context, at network.Place) (*sdk.AttachResponse, error) {
	b.called("attach")
	b.place = at
	if b.attachErr != nil {
		return nil, b.attachErr
	}
	if b.serve != nil {
		b.serve(at)
	}
	return &b.response, nil
}

func (b *backend) Detach(context.Context) error {
	b.called("detach")
	return b.detachErr
}

// byRecord is a backend that pays what the sandbox of another supervisor is owed.
type byRecord struct{ *backend }

func (b byRecord) Detach(_ context.Context, _ string, r network.Record) error {
	b.records = append(b.records, r)
	return nil
}

func (b byRecord) Collect(_ context.Context, keep map[string]network.Record) ([]network.Collected, error) {
	b.keep = keep
	return nil, nil
}

func (b *backend) Collect(context.Context, map[string]network.Record) ([]network.Collected, error) {
	return nil, errors.New("not by the sandbox's own")
}

func (b *backend) Record() network.Record {
	return network.Record{Backend: "lan", IfName: network.IfName, Config: []byte("as configured")}
}

func (b *backend) Watch(ctx context.Context, tell func(sdk.Denial)) error {
	for _, d := range b.denials {
		tell(d)
	}
	<-ctx.Done()
	return nil
}

func (b *backend) Status(context.Context) (*sdk.Status, error) {
	if b.asked != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.asked(slices.Contains(b.calls, "detach"))
	}
	return &sdk.Status{OK: true, Denied: 7, Flows: []sdk.FlowStats{{Name: "a.example", Connections: 2, RxBytes: 10, TxBytes: 20}}}, nil
}

func (b *backend) DialsMembers() bool    { return true }
func (b *backend) Gone() <-chan struct{} { return b.gone }
func (b *backend) Close()                { b.called("close") }

func withNetwork(t *testing.T, b *backend, events *bytes.Buffer) *core.Runtime {
	t.Helper()
	testutil.Needs(t, testutil.UserNS)
	o := options
	o.Networks = byRecord{b}
	if events != nil {
		o.Events = append(o.Events, events)
	}
	rt, err := core.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return rt
}

const lan = `network "lan" {
  dns = ["192.0.2.53"]
  publish {
    host = "127.0.0.1:8080"
    container = 80
  }
  egress {
    allow {
      names = ["a.example"]
      ports = ["443/tcp"]
    }
    allow { cidrs = ["10.0.0.0/8", "fd00::/8"] }
  }
}`

// greet serves the listener of a name with a greeting.
func greet(t *testing.T, name, greeting string) func(network.Place) {
	return func(at network.Place) {
		for _, f := range at.Files {
			if f.Name() != name {
				continue
			}
			l, err := net.FileListener(f)
			if err != nil {
				t.Error(err)
				continue
			}
			go func() {
				defer l.Close()
				c, err := l.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				fmt.Fprintln(c, greeting)
				c.Close()
			}()
		}
	}
}

// newAddress is a netlink message that gives loopback an address.
func newAddress(t *testing.T, a string, flags uint16) []byte {
	t.Helper()
	ip := netip.MustParseAddr(a).As4()
	b := make([]byte, 16+8+8+8)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.RTM_NEWADDR)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_CREATE|flags)
	binary.NativeEndian.PutUint32(b[8:], 1)
	b[16], b[17] = unix.AF_INET, 32
	binary.NativeEndian.PutUint32(b[20:], 1)
	for i, kind := range []uint16{unix.IFA_LOCAL, unix.IFA_ADDRESS} {
		at := b[24+8*i:]
		binary.NativeEndian.PutUint16(at, 8)
		binary.NativeEndian.PutUint16(at[2:], kind)
		copy(at[4:], ip[:])
	}
	return b
}

// What a backend wants is opened in the sandbox's network namespace, after what it
// sets up there, and the workload knows of its network.
func TestNetworkIsAttachedBeforeTheWorkload(t *testing.T) {
	for _, lines := range [][]string{{`user = "0"`}, {`user = "1000"`}, {"init = false"}} {
		b := &backend{
			prepare: sdk.PrepareResponse{
				Handle: sdk.Handle{Version: 1, Opaque: []byte("prepared")},
				Setups: []sdk.Setup{
					{Name: "base", Protocol: unix.NETLINK_ROUTE, Messages: newAddress(t, "192.0.2.8", unix.NLM_F_ACK)},
					{Name: "address", Protocol: unix.NETLINK_ROUTE, Messages: newAddress(t, "192.0.2.7", unix.NLM_F_ACK), After: "base"},
					{Name: "new", Protocol: unix.NETLINK_AUDIT, Messages: newAddress(t, "192.0.2.9", unix.NLM_F_ACK), Optional: true},
					{Name: "newer", Protocol: unix.NETLINK_ROUTE, Messages: newAddress(t, "203.0.113.1", unix.NLM_F_ACK), After: "new"},
					{Name: "newest", Protocol: unix.NETLINK_ROUTE, Messages: newAddress(t, "203.0.113.9", unix.NLM_F_ACK), Optional: true, After: "newer"},
				},
				Openings: []sdk.Opening{
					{Name: "door", Kind: sdk.ListenTCP, Address: netip.MustParseAddrPort("192.0.2.7:7000")},
					{Name: "door6", Kind: sdk.ListenTCP, Address: netip.MustParseAddrPort("[::1]:7000")},
					{Name: "any", Kind: sdk.ListenUDP, Address: netip.MustParseAddrPort("203.0.113.1:53"), Transparent: true},
					{Name: "pool", Kind: sdk.TCPSocket, Address: netip.MustParseAddrPort("0.0.0.0:0"), Count: 3},
					{Name: "raw", Kind: sdk.RawSocket, Address: netip.MustParseAddrPort("[::]:0")},
					{Name: "route", Kind: sdk.RouteSocket},
					{Name: "nft", Kind: sdk.NetfilterSocket},
					{Name: "ns", Kind: sdk.NetNS},
					{Name: "never", Kind: sdk.ListenTCP, Address: netip.MustParseAddrPort("203.0.113.9:1"), Optional: true},
				},
			},
			response: sdk.AttachResponse{
				Handle: sdk.Handle{Version: 1, Opaque: []byte("attached")},
				DNS:    &sdk.DNS{Servers: []netip.Addr{netip.MustParseAddr("127.0.0.53")}, Search: []string{"example"}, Options: []string{"edns0"}},
				IPs:    []sdk.IPConfig{{Address: netip.MustParsePrefix("192.0.2.7/32"), IfName: "lo"}},
			},
			denials: []sdk.Denial{
				{Protocol: "tcp", Dst: netip.MustParseAddrPort("198.51.100.1:25"), Rule: -1, Reason: sdk.ReasonDefault, Count: 1},
				{Protocol: "dns", Name: "b.example\n", Rule: 1, Reason: sdk.ReasonPort, Count: 3},
			},
		}
		b.serve = func(at network.Place) {
			greet(t, "door", "hello from outside")(at)
			greet(t, "door6", "hello by IPv6")(at)
		}
		var events bytes.Buffer
		rt := withNetwork(t, b, &events)
		j := secretJob(t, `cat /etc/resolv.conf; tail -n 1 /etc/hosts; exec bash -c 'cat </dev/tcp/192.0.2.7/7000; cat </dev/tcp/::1/7000'`, append([]string{lan, `hostname = "box"`}, lines...)...)
		res, out, err := runOf(t, rt, planFor(t, rt, j))
		if err != nil || res.ExitCode != 0 {
			t.Fatalf("%s: %+v, %v\n%s", lines, res, err, out)
		}
		if want := "nameserver 127.0.0.53\nsearch example\noptions edns0\n192.0.2.7\tbox\nhello from outside\nhello by IPv6\n"; out != want {
			t.Errorf("%s: output %q, want %q", lines, out, want)
		}
		if got := strings.Join(b.calls, " "); got != "open prepare attach detach close" {
			t.Errorf("%s: calls %s", lines, got)
		}
		var names []string
		for _, f := range b.place.Files {
			names = append(names, f.Name())
		}
		if got := strings.Join(names, " "); got != "door door6 any pool pool pool raw route nft ns" || strings.Join(b.place.Missing, " ") != "new newer newest never" {
			t.Errorf("%s: files %s, missing %s", lines, got, b.place.Missing)
		}
		if w := b.want; w.Backend != "lan" || w.Hostname != "box" || fmt.Sprint(w.Ports, w.DNS.Servers) != "[{127.0.0.1 8080 80 tcp}] [192.0.2.53]" ||
			fmt.Sprint(w.Egress) != "{0 [{[a.example] [] [{tcp 443 443}] [] []} {[] [10.0.0.0/8 fd00::/8] [] [] []}]}" {
			t.Errorf("%s: asked for %+v", lines, w)
		}
		if n := res.Network; n == nil || n.Denied != 7 || len(n.Flows) != 1 || n.Flows[0].TxBytes != 20 ||
			fmt.Sprint(n.Denials) != "[{tcp 198.51.100.1:25  default job.hcl:9 1} {dns  b.example  port job.hcl:14 3}]" {
			t.Errorf("%s: network %+v", lines, n)
		}
		for _, want := range []string{
			`"type":"network.missing","detail":{"name":"never","why":"bind: cannot assign requested address"}`,
			`"type":"network.missing","detail":{"name":"newest","why":"it comes after \"newer\", which is missing"}`,
			`"type":"network.up","detail":{"addresses":["192.0.2.7/32"],"backend":"lan"`,
			`"type":"network.denied","detail":{"count":1,"destination":"198.51.100.1:25","protocol":"tcp","reason":"default","where":"job.hcl:9"}`,
			`"type":"network.denied","detail":{"count":3,"name":"b.example ","protocol":"dns","reason":"port","rule":1,"where":"job.hcl:14"}`,
			`"type":"network.stats"`,
		} {
			if !strings.Contains(events.String(), want) {
				t.Errorf("%s: no event %s in\n%s", lines, want, events.String())
			}
		}
		noneLeft(t)
	}
}

// Whatever fails ends the start at the job's line; the backend undoes what it has made,
// and nothing is left.
func TestNetworkFailuresEndTheStart(t *testing.T) {
	open := func(o ...sdk.Opening) sdk.PrepareResponse { return sdk.PrepareResponse{Openings: o} }
	for name, x := range map[string]struct {
		b       *backend
		network string // lan if it is ""
		lines   []string
		want    string
		calls   string
	}{
		"no plugin":      {b: &backend{openErr: &network.Error{Backend: "lan", Err: errors.New("not installed")}}, want: `job.hcl:3: network: network plugin "lan": not installed`, calls: "open"},
		"attach refuses": {b: &backend{attachErr: errors.New("pool\x1b[2J exhausted")}, want: "job.hcl:3: network: pool [2J exhausted", calls: "open prepare attach detach close"},
		"attach refuses a port": {
			b:       &backend{attachErr: sdk.AtPort(1, errors.New("the port is in use"))},
			network: "network \"lan\" {\n publish {\n host = \"127.0.0.1:8000\"\n container = 80\n }\n publish {\n host = \"127.0.0.1:8001\"\n container = 81\n }\n}",
			want:    "job.hcl:8: network: the port is in use", calls: "open prepare attach detach close",
		},
		"attach refuses a port of nobody": {b: &backend{attachErr: sdk.AtPort(7, errors.New("the port is in use"))}, want: "job.hcl:3: network: the port is in use", calls: "open prepare attach detach close"},
		"an opening": {
			b:    &backend{prepare: open(sdk.Opening{Name: "x", Kind: sdk.ListenTCP, Address: netip.MustParseAddrPort("203.0.113.9:1")})},
			want: `opening "x" for the network: bind: cannot assign requested address`, calls: "open prepare detach close",
		},
		"an opening by the name of what jobs are asked for on": {b: &backend{prepare: open(sdk.Opening{Name: sdk.MembersFile, Kind: sdk.RouteSocket})}, want: `"members", which is another descriptor's`, calls: "open prepare detach close"},
		"an opening of another time":                           {b: &backend{prepare: open(sdk.Opening{Name: "x", Kind: 99})}, want: "opening of kind 99", calls: "open prepare detach close"},
		"a setup": {
			b:    &backend{prepare: sdk.PrepareResponse{Setups: []sdk.Setup{{Name: "s", Protocol: unix.NETLINK_ROUTE, Messages: newAddress(t, "0.0.0.0", unix.NLM_F_ACK)[:24]}}}},
			want: `opening "s" for the network: `, calls: "open prepare detach close",
		},
		"a setup that wants no answer": {
			b:    &backend{prepare: sdk.PrepareResponse{Setups: []sdk.Setup{{Name: "s", Protocol: unix.NETLINK_ROUTE, Messages: newAddress(t, "192.0.2.1", 0)}}}},
			want: "asks for no answer", calls: "open prepare detach close",
		},
		"a setup of the audit system": {
			b:    &backend{prepare: sdk.PrepareResponse{Setups: []sdk.Setup{{Name: "s", Protocol: unix.NETLINK_AUDIT, Messages: newAddress(t, "192.0.2.1", unix.NLM_F_ACK)}}}},
			want: "netlink protocol 9", calls: "open prepare detach close",
		},
		"a setup after nobody": {
			b:    &backend{prepare: sdk.PrepareResponse{Setups: []sdk.Setup{{Name: "s", Protocol: unix.NETLINK_ROUTE, Messages: newAddress(t, "192.0.2.1", unix.NLM_F_ACK), Optional: true, After: "x"}}}},
			want: `setup "s" comes after "x"`, calls: "open prepare detach close",
		},
		"no file system": {b: &backend{hang: true}, lines: []string{"volume \"x\" {\n source = \"/nowhere-at-all\"\n target = \"/data\"\n}"}, want: "nowhere-at-all", calls: "open prepare detach close"},
		"no command":     {b: &backend{}, lines: []string{`hook "createRuntime" {` + "\n" + `command = ["/bin/false"]` + "\n}"}, want: "createRuntime", calls: "open prepare attach detach close"},
	} {
		b := x.b
		rt := withNetwork(t, b, nil)
		j := secretJob(t, "exit 0", append([]string{cmp.Or(x.network, lan)}, x.lines...)...)
		began := time.Now()
		res, _, err := runOf(t, rt, planFor(t, rt, j))
		if res.ExitCode != 125 || err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
		if got := strings.Join(b.calls, " "); got != x.calls {
			t.Errorf("%s: calls %q, want %q", name, got, x.calls)
		}
		if took := time.Since(began); took > testutil.Patient(20*time.Second) {
			t.Errorf("%s: it took %s", name, took)
		}
		noneLeft(t)
	}
}

// The end of a backend ends the run, unless the job wants it to go on without one.
func TestNetworkEnds(t *testing.T) {
	for mode, code := range map[string]int{"stop": 125, "closed": 4} {
		b := &backend{gone: make(chan struct{})}
		var events bytes.Buffer
		rt := withNetwork(t, b, &events)
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		fifo := dir + "/fifo"
		if err := unix.Mkfifo(fifo, 0o666); err != nil {
			t.Fatal(err)
		}
		go func() {
			f, err := os.OpenFile(fifo, os.O_WRONLY, 0) // until the workload is there
			if err != nil {
				t.Error(err)
				return
			}
			close(b.gone)
			if mode == "closed" {
				time.Sleep(100 * time.Millisecond)
				fmt.Fprintln(f, "go on")
			} else {
				time.Sleep(testutil.Patient(5 * time.Second))
			}
			f.Close()
		}()
		j := secretJob(t, "read x <"+fifo+"; exit 4", `network "lan" { on_failure = "`+mode+`" }`, fmt.Sprintf("volume \"v\" {\n source = %q\n target = %q\n}", dir, dir))
		res, _, err := runOf(t, rt, planFor(t, rt, j))
		if res.ExitCode != code || (err != nil) != (code == 125) {
			t.Errorf("%s: %+v, %v", mode, res, err)
		}
		if told := strings.Contains(res.NetworkError, "it has ended"); told != (mode == "closed") {
			t.Errorf("%s: told %q", mode, res.NetworkError)
		}
		if err != nil && !strings.Contains(err.Error(), `job.hcl:3: network: network plugin "lan": it has ended`) {
			t.Errorf("%s: %v", mode, err)
		}
		want := "open prepare attach detach close"
		if mode == "closed" {
			want = "open prepare attach detach close detach close"
		}
		if got := strings.Join(b.calls, " "); got != want {
			t.Errorf("%s: calls %s", mode, got)
		}
		if !strings.Contains(events.String(), `"type":"network.lost"`) {
			t.Errorf("%s: no event in\n%s", mode, events.String())
		}
		noneLeft(t)
	}
}

// What a backend could not undo is owed, with all that it has told.
func TestNetworkIsOwed(t *testing.T) {
	b := &backend{
		prepare:   sdk.PrepareResponse{Handle: sdk.Handle{Version: 1, Opaque: []byte("prepared")}},
		response:  sdk.AttachResponse{Handle: sdk.Handle{Version: 1, Opaque: []byte("attached")}},
		detachErr: errors.New("busy"),
	}
	rt := withNetwork(t, b, nil)
	res, _, err := runOf(t, rt, planFor(t, rt, secretJob(t, "exit 0", lan)))
	if res.ExitCode != 0 || err == nil || !strings.Contains(err.Error(), "undoing network: busy") {
		t.Fatalf("%+v, %v", res, err)
	}
	thin, err := core.New(options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := thin.Collect(t.Context()); !errors.Is(err, core.ErrNoPlugins) {
		t.Errorf("a build without plugins: %v", err)
	}
	if b.keep != nil {
		t.Error("nobody was there to ask, and the backend was")
	}
	if _, err := rt.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.keep == nil || len(b.keep) > 0 {
		t.Errorf("with nothing left to stay, the backend was told %v", b.keep)
	}
	if len(b.records) != 1 || string(b.records[0].Handle.Opaque) != "attached" || string(b.records[0].Prepared.Opaque) != "prepared" || string(b.records[0].Config) != "as configured" {
		t.Errorf("records %+v", b.records)
	}
	noneLeft(t)
}

// What networks have left that no sandbox names is for their backends to remove. They are
// told of all that is to stay: of a sandbox that lives, and of one that is still owed.
func TestNetworksAreCollected(t *testing.T) {
	b := &backend{response: sdk.AttachResponse{Handle: sdk.Handle{Version: 1, Opaque: []byte("attached")}}}
	rt := withNetwork(t, b, nil)
	p := planFor(t, rt, secretJob(t, "read x", lan))
	in, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	box, err := rt.Create(t.Context(), p, core.RunOptions{Streams: core.Streams{In: in, Out: os.Stderr, Err: os.Stderr}})
	if err == nil {
		err = box.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rt.Collect(t.Context()); err != nil {
		t.Error(err)
	}
	if r, ok := b.keep[box.ID()]; len(b.keep) != 1 || !ok || r.Backend != "lan" || string(r.Handle.Opaque) != "attached" {
		t.Errorf("beside %s the backend was told to keep %+v", box.ID(), b.keep)
	}
	_ = hold.Close()
	if _, err := box.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := rt.Collect(t.Context()); err != nil || len(b.keep) > 0 {
		t.Errorf("after its end: %+v, %v", b.keep, err)
	}
	noneLeft(t)
}
