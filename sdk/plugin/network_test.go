package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nucleus-runtime/nucleus/sdk/contract"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

func networkPlugin() plugin.Plugin {
	return plugin.Plugin{Name: "fake", Version: "1.2.3", Network: wires{}, HandleVersions: []uint32{1, 2}}
}

// wires does what the name of the interface says.
type wires struct{}

func (wires) Prepare(_ context.Context, r *network.PrepareRequest) (*network.PrepareResponse, error) {
	return &network.PrepareResponse{
		Handle: network.Handle{Version: 1, Opaque: []byte("prepared " + r.Call.SandboxID)}, Openings: []network.Opening{{Name: "tap", Kind: network.Tap, IfName: "eth0"}},
	}, nil
}

func (wires) Attach(_ context.Context, r *network.AttachRequest) (*network.AttachResponse, error) {
	resp := &network.AttachResponse{
		Handle: network.Handle{Version: 2, Opaque: []byte(r.Call.SandboxID), Info: map[string]string{"prepared": string(r.Prepared.Opaque)}},
		IPs:    []network.IPConfig{{Address: netip.MustParsePrefix("10.42.0.7/24"), Gateway: netip.MustParseAddr("10.42.0.1"), IfName: r.IfName}},
		DNS:    r.DNS,
	}
	switch r.IfName {
	case "panic":
		panic("attach went wrong")
	case "fail":
		return nil, errs.Preconditionf("no module")
	case "nothing":
		return nil, nil
	case "hold": // until the host closes its end
		effect("attach begins")
		_, err := io.Copy(io.Discard, r.Files[0])
		effect("attach ends")
		return resp, err
	case "large":
		resp.Handle.Opaque = make([]byte, contract.MaxHandle)
	case "other":
		resp.Handle.Version = 7
	}
	for _, f := range r.Files {
		fmt.Fprint(f, f.Name())
		f.Close()
	}
	effect("attach")
	return resp, nil
}

func (wires) Detach(_ context.Context, r *network.DetachRequest) ([]string, error) {
	effect("detach " + string(r.Handle.Opaque))
	switch r.IfName {
	case "gone":
		return nil, errs.NotFoundf("no interface")
	case "stuck":
		return nil, errs.Residue(errors.New("busy"), "veth7")
	case "panic":
		panic("detach went wrong")
	}
	return []string{"veth7"}, nil
}

func (wires) Status(_ context.Context, r *network.StatusRequest) (*network.Status, error) {
	return &network.Status{Drift: []string{"no route for " + r.SandboxID}, Stats: []network.IfStats{{IfName: r.IfName, RxBytes: 1 << 40}}}, nil
}

func (wires) Watch(ctx context.Context, r *network.WatchRequest, tell func(network.Denial) error) error {
	switch r.SandboxID {
	case "broken":
		return errs.Preconditionf("nothing is watched")
	case "panic":
		panic("watch went wrong")
	case "down":
		return errs.Retry(errors.New("the monitor is down"), time.Second)
	case "hangs":
		effect("watch")
		<-ctx.Done()
		effect("watch over")
		return ctx.Err()
	case "leaves": // a thread that tells
		go func() {
			for {
				if err := tell(network.Denial{Rule: -1}); err != nil {
					effect("late: " + err.Error())
					return
				}
			}
		}()
		return nil
	}
	for _, d := range denials() {
		if err := tell(d); err != nil {
			return err
		}
	}
	<-ctx.Done()
	effect("watch ended")
	return nil
}

func denials() []network.Denial {
	return []network.Denial{
		{At: time.Unix(1, 0).UTC(), Protocol: "tcp", Dst: netip.MustParseAddrPort("[2001:db8::1]:443"), Name: "a.example", Rule: 3, Reason: network.ReasonPort, Count: 2},
		{At: time.Unix(2, 0).UTC(), Protocol: "dns", Name: "b.example", Rule: -1, Reason: network.ReasonDefault, Count: 1},
	}
}

// Denials come while the call lasts, and its end reaches the plugin.
func TestDenialsAreTold(t *testing.T) {
	h := start(t, "network")
	n := h.Network([]string{network.FeatureWatch})
	ctx, cancel := context.WithCancel(soon(t))
	var got []network.Denial
	err := n.Watcher.Watch(ctx, &network.WatchRequest{SandboxID: "sb"}, func(d network.Denial) error {
		if got = append(got, d); len(got) == 2 {
			cancel()
		}
		return nil
	})
	if errs.Of(err).Code != errs.Canceled || !reflect.DeepEqual(got, denials()) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := n.Watcher.Watch(soon(t), &network.WatchRequest{SandboxID: "broken"}, nil); errs.Of(err).Code != errs.Precondition {
		t.Errorf("got %v", err)
	}
}

func (wires) GC(_ context.Context, r *network.GCRequest) (*network.GCResponse, error) {
	effect("gc")
	return &network.GCResponse{Removed: []string{fmt.Sprint("all but ", len(r.Valid))}, Failed: []string{"\xff"}}, nil
}

func (h *host) network() client.Network {
	return h.Network([]string{network.FeaturePrepare, network.FeatureStatus, network.FeatureGC})
}

func call(id string) contract.Call { return contract.Call{RequestID: id, SandboxID: "sb"} }

// pipe gives an end to send, and one that tells what is written to it, and when
// nobody has it any more.
func pipe(t *testing.T) (send, watch *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return w, r
}

// readAll fails if somebody keeps the other end.
func readAll(t *testing.T, f *os.File) string {
	t.Helper()
	if err := f.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		t.Errorf("after %q: %v", b, err)
	}
	return string(b)
}

func TestNetworkInfo(t *testing.T) {
	h := start(t, "network")
	got, err := h.Info(soon(t), "0.1.0", nil)
	want := manifest.Info{
		Name: "fake", Version: "1.2.3", SDKVersion: "0.1.0", Services: []manifest.Version{{Service: manifest.Network, Version: "1.0"}},
		Features: []string{network.FeaturePrepare, network.FeatureStatus, network.FeatureGC, network.FeatureWatch}, HandleVersions: []uint32{1, 2},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

func TestFeaturesDecideWhatANetworkHas(t *testing.T) {
	for _, f := range []string{"", network.FeaturePrepare, network.FeatureStatus, network.FeatureGC, network.FeatureWatch, "network.future"} {
		n := client.New(nil).Network([]string{f})
		if n.Network == nil || (n.Preparer != nil) != (f == network.FeaturePrepare) || (n.Checker != nil) != (f == network.FeatureStatus) ||
			(n.Collector != nil) != (f == network.FeatureGC) || (n.Watcher != nil) != (f == network.FeatureWatch) {
			t.Errorf("%q: %+v", f, n)
		}
	}
}

func TestSandboxesAreAttachedAndDetached(t *testing.T) {
	h := start(t, "network")
	n := h.network()
	prepared, err := n.Preparer.Prepare(soon(t), &network.PrepareRequest{Call: call("1")})
	if err != nil || len(prepared.Openings) != 1 || prepared.Openings[0].Kind != network.Tap {
		t.Fatalf("got %+v, %v", prepared, err)
	}
	got, err := n.Attach(soon(t), &network.AttachRequest{Call: call("2"), IfName: "eth0", Prepared: prepared.Handle})
	want := &network.AttachResponse{
		Handle: network.Handle{Version: 2, Opaque: []byte("sb"), Info: map[string]string{"prepared": "prepared sb"}},
		IPs:    []network.IPConfig{{Address: netip.MustParsePrefix("10.42.0.7/24"), Gateway: netip.MustParseAddr("10.42.0.1"), IfName: "eth0"}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	st, err := n.Checker.Status(soon(t), &network.StatusRequest{SandboxID: "sb", IfName: "eth0", Handle: got.Handle})
	if err != nil || st.OK || !slices.Equal(st.Drift, []string{"no route for sb"}) || st.Stats[0].RxBytes != 1<<40 {
		t.Errorf("status: %+v, %v", st, err)
	}
	gc, err := n.Collector.GC(soon(t), &network.GCRequest{Call: call("3"), Valid: []network.Attachment{{SandboxID: "sb", Handle: got.Handle}}})
	if err != nil || !slices.Equal(gc.Removed, []string{"all but 1"}) || !slices.Equal(gc.Failed, []string{"\uFFFD"}) {
		t.Errorf("gc: %+v, %v", gc, err)
	}
	removed, err := n.Detach(soon(t), &network.DetachRequest{Call: call("4"), IfName: "eth0", Handle: got.Handle, Prepared: prepared.Handle})
	if err != nil || !slices.Equal(removed, []string{"veth7"}) {
		t.Errorf("detach: %q, %v", removed, err)
	}
	if got := h.count(t); !slices.Equal(got, []string{"attach", "gc", "detach sb"}) {
		t.Errorf("effects: %q", got)
	}
	// An author may have nothing to say.
	if got, err := n.Attach(soon(t), &network.AttachRequest{Call: call("5"), IfName: "nothing"}); err != nil || !got.Handle.IsZero() {
		t.Errorf("nothing: %+v, %v", got, err)
	}
}

func TestRepeatedAttachHasOneEffect(t *testing.T) {
	h := start(t, "network")
	var first *network.AttachResponse
	for attempt := range uint32(3) {
		w, watch := pipe(t)
		c := call("same")
		c.Attempt, c.TraceParent = attempt, fmt.Sprint(attempt)
		got, err := h.network().Attach(soon(t), &network.AttachRequest{Call: c, IfName: "eth0", Files: []*os.File{w}})
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = got
			w.Close()
			readAll(t, watch)
		}
		if !reflect.DeepEqual(got, first) {
			t.Errorf("got %+v, and %+v before", got, first)
		}
	}
	if got := h.count(t); !slices.Equal(got, []string{"attach"}) {
		t.Errorf("effects: %q", got)
	}
}

func TestDetachingWhatIsGoneSucceeds(t *testing.T) {
	h := start(t, "network")
	n := h.network()
	for i := range 2 {
		if _, err := n.Detach(soon(t), &network.DetachRequest{Call: call(fmt.Sprint(i)), IfName: "gone"}); err != nil {
			t.Errorf("gone: %v", err)
		}
	}
	_, err := n.Detach(soon(t), &network.DetachRequest{Call: call("3"), IfName: "stuck"})
	if e := as(t, err); e.Code != errs.Internal || !slices.Equal(e.Leaked, []string{"veth7"}) {
		t.Errorf("stuck: %+v", e)
	}
	_, err = n.Detach(soon(t), &network.DetachRequest{Call: call("4"), IfName: "panic"})
	if e := as(t, err); e.Panic == nil || !strings.Contains(e.Panic.Stack, "wires.Detach") {
		t.Errorf("panic: %+v", e)
	}
}

func TestHandlesAreChecked(t *testing.T) {
	h := start(t, "network")
	n, raw := h.network(), pluginv1.NewNetworkClient(h.conn)
	unknown := network.Handle{Version: 3, Opaque: []byte("?")}
	large := network.Handle{Version: 1, Opaque: make([]byte, contract.MaxHandle), Info: map[string]string{"a": "b"}}
	wired := func(h network.Handle) *pluginv1.Handle {
		return &pluginv1.Handle{Version: h.Version, Opaque: h.Opaque, Info: h.Info}
	}
	ids := 0
	detach := func(h network.Handle) error {
		ids++
		_, err := n.Detach(soon(t), &network.DetachRequest{Call: call(fmt.Sprint(ids)), Handle: h})
		return err
	}
	for _, tc := range []struct {
		name string
		call func() error
		code errs.Code
		text string
	}{
		{"of an unknown version", func() error { return detach(unknown) }, errs.Precondition, "version 3 was made by another version of this plugin, which knows [1 2]"},
		{"and in another field", func() error {
			_, err := n.Attach(soon(t), &network.AttachRequest{Call: call("a"), Prepared: unknown})
			return err
		}, errs.Precondition, "version 3"},
		{"and among others", func() error {
			_, err := n.Collector.GC(soon(t), &network.GCRequest{Call: call("b"), Valid: []network.Attachment{{}, {Handle: unknown}}})
			return err
		}, errs.Precondition, "version 3"},
		{"without a version", func() error { return detach(network.Handle{Opaque: []byte("x")}) }, errs.Config, "no version"},
		{"too large, in the host", func() error { return detach(large) }, errs.Config, "65538 bytes"},
		{"too large, past the host", func() error {
			_, err := raw.Detach(soon(t), &pluginv1.DetachRequest{Call: &pluginv1.Call{RequestId: "c"}, Handle: wired(large)})
			return client.FromStatus(status.Convert(err))
		}, errs.Config, "65538 bytes"},
		{"made too large", func() error {
			_, err := n.Attach(soon(t), &network.AttachRequest{Call: call("d"), IfName: "large"})
			return err
		}, errs.Internal, "the plugin's answer: a handle has 65544 bytes"},
		{"made of an unknown version", func() error {
			_, err := n.Attach(soon(t), &network.AttachRequest{Call: call("e"), IfName: "other"})
			return err
		}, errs.Internal, "a handle of version 7, which is none of its HandleVersions [1 2]"},
		{"none", func() error { return detach(network.Handle{}) }, errs.Unset, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.call(); errs.CodeOf(err) != tc.code || err != nil && !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v %v", errs.CodeOf(err), err)
			}
		})
	}
	if got := h.count(t); !slices.Equal(got, []string{"attach", "attach", "detach "}) {
		t.Errorf("effects: %q", got)
	}
}

// answers is a plugin that was not made with the SDK.
type answers struct {
	grpc.ClientConnInterface
	handle *pluginv1.Handle
}

func (a answers) Invoke(_ context.Context, _ string, _, reply any, _ ...grpc.CallOption) error {
	reply.(*pluginv1.AttachResponse).Handle = a.handle
	return nil
}

func TestHostChecksHandlesItself(t *testing.T) {
	for _, h := range []*pluginv1.Handle{{Opaque: []byte("x")}, {Version: 1, Opaque: make([]byte, contract.MaxHandle+1)}} {
		_, err := client.New(answers{handle: h}).Network(nil).Attach(soon(t), &network.AttachRequest{Call: call("1")})
		if errs.CodeOf(err) != errs.Internal {
			t.Errorf("got %v", err)
		}
	}
}

func TestNobodyWorksBesideAttach(t *testing.T) {
	h := start(t, "network")
	n := h.network()
	w, watch := pipe(t)
	attached := make(chan error, 1)
	go func() {
		_, err := n.Attach(soon(t), &network.AttachRequest{Call: call("1"), IfName: "hold", Files: []*os.File{watch}})
		attached <- err
	}()
	eventually(t, "the attach", func() bool { return len(h.count(t)) == 1 })
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	// What may work does so within the time in which the others wait in vain.
	if _, err := n.Collector.GC(short(), &network.GCRequest{Call: call("2")}); errs.CodeOf(err) != errs.Deadline {
		t.Errorf("gc: %v", err)
	}
	if _, err := n.Detach(short(), &network.DetachRequest{Call: call("3")}); errs.CodeOf(err) != errs.Deadline {
		t.Errorf("detach of the same sandbox: %v", err)
	}
	other := contract.Call{RequestID: "4", SandboxID: "other"}
	if _, err := n.Detach(soon(t), &network.DetachRequest{Call: other}); err != nil {
		t.Errorf("detach of another: %v", err)
	}
	w.Close()
	if err := <-attached; err != nil {
		t.Error(err)
	}
	for i, f := range []func() error{
		func() error { _, err := n.Detach(soon(t), &network.DetachRequest{Call: call("5")}); return err },
		func() error { _, err := n.Collector.GC(soon(t), &network.GCRequest{Call: call("6")}); return err },
	} {
		if err := f(); err != nil {
			t.Errorf("%d after it: %v", i, err)
		}
	}
	if got := h.count(t); !slices.Equal(got, []string{"attach begins", "detach ", "attach ends", "detach ", "gc"}) {
		t.Errorf("effects: %q", got)
	}
}

func TestDescriptorsReachTheirCall(t *testing.T) {
	h := start(t, "network")
	var files, watch []*os.File
	for range 3 {
		w, r := pipe(t)
		files, watch = append(files, os.NewFile(w.Fd(), fmt.Sprint("opening ", len(files)))), append(watch, r)
	}
	if _, err := h.network().Attach(soon(t), &network.AttachRequest{Call: call("1"), Files: files}); err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		f.Close() // they stayed the host's
		if got := readAll(t, watch[i]); got != fmt.Sprint("opening ", i) {
			t.Errorf("file %d: %q", i, got)
		}
	}
}

func TestDescriptorsOfAFailedCallAreClosed(t *testing.T) {
	h := start(t, "network")
	for _, how := range []string{"fail", "panic"} {
		w, watch := pipe(t)
		if _, err := h.network().Attach(soon(t), &network.AttachRequest{Call: call(how), IfName: how, Files: []*os.File{w}}); err == nil {
			t.Errorf("%s: it succeeded", how)
		}
		w.Close()
		readAll(t, watch)
	}
}

func TestDescriptorsThatDoNotCome(t *testing.T) {
	request := func(id string) *pluginv1.AttachRequest {
		return &pluginv1.AttachRequest{Call: &pluginv1.Call{RequestId: id}, Descriptors: []string{"tap"}}
	}
	for _, tc := range []struct {
		name string
		env  []string
		do   func(t *testing.T, h *host) error
		code errs.Code
		text string
	}{
		{"under another tag", nil, func(t *testing.T, h *host) error {
			w, _ := pipe(t)
			if err := h.sender.Send(soon(t), "other", []*os.File{w}); err != nil {
				t.Fatal(err)
			}
			_, err := pluginv1.NewNetworkClient(h.conn).Attach(soon(t), request("1"))
			return client.FromStatus(status.Convert(err))
		}, errs.Precondition, `1 descriptors were to come under "1": they have not within 2s`},
		{"since the host has closed the channel", nil, func(t *testing.T, h *host) error {
			h.sender.Close()
			_, err := pluginv1.NewNetworkClient(h.conn).Attach(soon(t), request("1"))
			return client.FromStatus(status.Convert(err))
		}, errs.Precondition, "the other end of the side channel for descriptors is closed"},
		{"and the host sees it, too", nil, func(t *testing.T, h *host) error {
			h.sender.Close()
			w, _ := pipe(t)
			_, err := h.network().Attach(soon(t), &network.AttachRequest{Call: call("1"), Files: []*os.File{w}})
			return err
		}, errs.Unavailable, "the other end of the side channel for descriptors is closed"},
		{"to a plugin without a channel", []string{"NUCLEUS_DESCRIPTORS_FD="}, func(t *testing.T, h *host) error {
			_, err := pluginv1.NewNetworkClient(h.conn).Attach(soon(t), request("1"))
			return client.FromStatus(status.Convert(err))
		}, errs.Precondition, "the host has started this plugin without a side channel"},
		{"from a host without one", nil, func(t *testing.T, h *host) error {
			w, _ := pipe(t)
			_, err := client.New(h.conn).Network(nil).Attach(soon(t), &network.AttachRequest{Call: call("1"), Files: []*os.File{w}})
			return err
		}, errs.Precondition, "the plugin was started without a side channel"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := start(t, "network", tc.env...)
			err := tc.do(t, h)
			if errs.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v %v", errs.CodeOf(err), err)
			}
			if got := h.count(t); len(got) > 0 {
				t.Errorf("effects: %q", got)
			}
		})
	}
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	h := start(t, "network")
	raw := pluginv1.NewNetworkClient(h.conn)
	c := &pluginv1.Call{RequestId: "1"}
	_, err := raw.Attach(soon(t), &pluginv1.AttachRequest{Call: c, IpHints: []string{"ten"}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("attach: %v", err)
	}
	if _, err := raw.Prepare(soon(t), &pluginv1.NetworkPrepareRequest{Call: c, Ports: []*pluginv1.PortMap{{HostPort: 1 << 20}}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("prepare: %v", err)
	}
	if _, err := raw.Attach(context.Background(), &pluginv1.AttachRequest{Call: c}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("without a deadline: %v", err)
	}
	if _, err := raw.Detach(soon(t), &pluginv1.DetachRequest{}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "request_id") {
		t.Errorf("without a request_id: %v", err)
	}
	if got := h.count(t); len(got) > 0 {
		t.Errorf("effects: %q", got)
	}
}
