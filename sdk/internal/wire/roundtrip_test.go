package wire_test

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/nucleus-runtime/nucleus/sdk/contract"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// filler gives every field a value of its own, so that one that is forgotten, or
// taken for another, is seen.
type filler struct{ n int }

func (f *filler) fill(t *testing.T, v reflect.Value) {
	t.Helper()
	f.n++
	switch v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.AddrFrom4([4]byte{10, 0, byte(f.n >> 8), byte(f.n)})))
		return
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(f.n >> 8), byte(f.n)}), 24)))
		return
	case netip.AddrPort:
		v.Set(reflect.ValueOf(netip.AddrPortFrom(netip.IPv6LinkLocalAllNodes(), uint16(f.n))))
		return
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(int64(f.n), 7).UTC()))
		return
	case manifest.Service:
		v.Set(reflect.ValueOf(manifest.Network))
		return
	case []*os.File:
		return // they do not travel here
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			f.fill(t, v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(t, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			f.fill(t, v.Index(i))
		}
	case reflect.Map:
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		f.fill(t, k)
		f.fill(t, e)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(k, e)
	case reflect.String:
		v.SetString(fmt.Sprint("s", f.n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8: // an enumeration, if not a byte: 1 is a value of each
		v.SetUint(1)
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(f.n))
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(f.n))
	default:
		t.Fatalf("no value is known for a %s", v.Type())
	}
}

// unset names the fields of a message that have no value. Of a oneof one is enough.
func unset(m protoreflect.Message, path string) []string {
	var out []string
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		name := path + "." + string(fd.Name())
		if !m.Has(fd) {
			if fd.ContainingOneof() == nil {
				out = append(out, name)
			}
			continue
		}
		switch v := m.Get(fd); {
		case fd.IsMap() && fd.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, e protoreflect.Value) bool {
				out = append(out, unset(e.Message(), name)...)
				return true
			})
		case fd.IsList() && fd.Message() != nil:
			for j := range v.List().Len() {
				out = append(out, unset(v.List().Get(j).Message(), name)...)
			}
		case fd.Message() != nil && !fd.IsMap() && fd.Message().ParentFile().Package() == "nucleus.plugin.v1":
			out = append(out, unset(v.Message(), name)...)
		}
	}
	return out
}

// travels is a conversion there and back. The fields that are known not to be set
// are given by name.
func travels[G any, P proto.Message](to func(G) P, from func(P) (G, error), not ...string) func(*testing.T) {
	return func(t *testing.T) {
		var want G
		f := &filler{}
		f.fill(t, reflect.ValueOf(&want).Elem())
		sent := to(want)
		for _, name := range unset(sent.ProtoReflect(), "") {
			if len(not) == 0 || name != not[0] {
				t.Errorf("%s has no counterpart", name)
			}
		}
		b, err := proto.Marshal(sent)
		if err != nil {
			t.Fatal(err)
		}
		came := sent.ProtoReflect().New().Interface().(P)
		if err := proto.Unmarshal(b, came); err != nil {
			t.Fatal(err)
		}
		got, err := from(came)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}

		var none G // nothing, too, stays what it is
		if v := reflect.ValueOf(&none).Elem(); v.Kind() == reflect.Pointer {
			v.Set(reflect.New(v.Type().Elem()))
		}
		if got, err := from(to(none)); err != nil || !proto.Equal(to(got), to(none)) {
			t.Errorf("of nothing came %+v, %v", got, err)
		}
	}
}

func sure[G, P any](f func(P) G) func(P) (G, error) {
	return func(p P) (G, error) { return f(p), nil }
}

type phase struct {
	Call  contract.Call
	Event hooks.Event
}

func TestEveryFieldTravels(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"call":             travels(wire.Call, sure(wire.FromCall)),
		"handle":           travels(wire.Handle, sure(wire.FromHandle)),
		"manifest":         travels(wire.Info, sure(wire.FromInfo)),
		"secret refs":      travels(func(r []secrets.Ref) *pluginv1.FetchRequest { return &pluginv1.FetchRequest{Refs: wire.Refs(r)} }, sure(func(r *pluginv1.FetchRequest) []secrets.Ref { return wire.FromRefs(r.GetRefs()) }), ".call"),
		"secret":           travels(wire.Secret, sure(wire.FromSecret)),
		"hook's event":     travels(func(p phase) *pluginv1.OnPhaseRequest { return wire.Event(p.Call, p.Event) }, sure(func(r *pluginv1.OnPhaseRequest) phase { return phase{wire.FromCall(r.GetCall()), wire.FromEvent(r)} })),
		"hook's answer":    travels(wire.Answer, sure(wire.FromAnswer)),
		"network prepare":  travels(wire.NetworkPrepare, wire.FromNetworkPrepare),
		"network prepared": travels(wire.NetworkPrepared, wire.FromNetworkPrepared),
		"attach":           travels(wire.Attach, wire.FromAttach, ".descriptors"),
		"attached":         travels(wire.Attached, wire.FromAttached),
		"detach":           travels(wire.Detach, sure(wire.FromDetach)),
		"detached":         travels(wire.Detached, sure((*pluginv1.DetachResponse).GetRemoved)),
		"network status":   travels(wire.NetworkStatus, sure(wire.FromNetworkStatus)),
		"network state":    travels(wire.NetworkState, sure(wire.FromNetworkState)),
		"gc":               travels(wire.GC, sure(wire.FromGC)),
		"collected":        travels(wire.Collected, sure(wire.FromCollected)),
		"runtime prepare":  travels(wire.RuntimePrepare, sure(wire.FromRuntimePrepare)),
		"runtime prepared": travels(wire.RuntimePrepared, sure(wire.FromRuntimePrepared)),
	} {
		t.Run(name, test)
	}
}

func TestEveryValueTravels(t *testing.T) {
	for v := network.Deny; v <= network.Allow; v++ {
		r, err := wire.FromNetworkPrepare(wire.NetworkPrepare(&network.PrepareRequest{Egress: network.Egress{Default: v}}))
		if err != nil || r.Egress.Default != v {
			t.Errorf("verdict %d became %d, %v", v, r.Egress.Default, err)
		}
	}
	for k := network.OpeningKind(0); k <= network.UDPSocket; k++ {
		r, err := wire.FromNetworkPrepared(wire.NetworkPrepared(&network.PrepareResponse{Openings: []network.Opening{{Kind: k}}}))
		if err != nil || r.Openings[0].Kind != k {
			t.Errorf("opening %d became %d, %v", k, r.Openings[0].Kind, err)
		}
	}
	for n := runtime.Network(0); n <= runtime.NetworkOwn; n++ {
		if got := wire.FromRuntimePrepare(wire.RuntimePrepare(&runtime.PrepareRequest{Network: n})).Network; got != n {
			t.Errorf("network %d became %d", n, got)
		}
	}
	for _, s := range []manifest.Service{manifest.Network, manifest.Runtime, manifest.Secrets, manifest.Hooks} {
		if got := wire.FromService(wire.Service(s)); got != s {
			t.Errorf("service %q became %q", s, got)
		}
	}
	// What a newer contract adds is the safe thing to who does not know it.
	if r, _ := wire.FromNetworkPrepare(&pluginv1.NetworkPrepareRequest{Egress: &pluginv1.Egress{DefaultVerdict: 99}}); r.Egress.Default != network.Deny {
		t.Errorf("an unknown verdict became %d", r.Egress.Default)
	}
	if r := wire.FromRuntimePrepare(&pluginv1.RuntimePrepareRequest{Network: 99}); r.Network != 0 {
		t.Errorf("an unknown network became %d", r.Network)
	}
}

func TestAddressesOfOthersAreChecked(t *testing.T) {
	for name, from := range map[string]func() error{
		"an address": func() error {
			_, err := wire.FromAttach(&pluginv1.AttachRequest{IpHints: []string{"10.0.0.1", "ten"}})
			return err
		},
		"a block": func() error {
			_, err := wire.FromAttach(&pluginv1.AttachRequest{Egress: &pluginv1.Egress{Allow: []*pluginv1.EgressRule{{Cidrs: []string{"10.0.0.0"}}}}})
			return err
		},
		"a port": func() error {
			_, err := wire.FromNetworkPrepare(&pluginv1.NetworkPrepareRequest{Ports: []*pluginv1.PortMap{{HostPort: 1 << 16}}})
			return err
		},
		"an address with a port": func() error {
			_, err := wire.FromNetworkPrepared(&pluginv1.NetworkPrepareResponse{Openings: []*pluginv1.Opening{{Address: "10.0.0.1"}}})
			return err
		},
		"a gateway": func() error {
			_, err := wire.FromAttached(&pluginv1.AttachResponse{Ips: []*pluginv1.IPConfig{{Gateway: "x"}}})
			return err
		},
	} {
		if from() == nil {
			t.Errorf("%s that is none was taken", name)
		}
	}
}
