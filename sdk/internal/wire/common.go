package wire

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nucleus-runtime/nucleus/sdk/contract"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// Call as it travels.
func Call(c contract.Call) *pluginv1.Call {
	return &pluginv1.Call{
		RequestId: c.RequestID, SandboxId: c.SandboxID, InstanceId: c.InstanceID, Attempt: c.Attempt, BootId: c.BootID, TraceParent: c.TraceParent,
	}
}

// FromCall is the inverse of Call.
func FromCall(in *pluginv1.Call) contract.Call {
	return contract.Call{
		RequestID: in.GetRequestId(), SandboxID: in.GetSandboxId(), InstanceID: in.GetInstanceId(), Attempt: in.GetAttempt(),
		BootID: in.GetBootId(), TraceParent: in.GetTraceParent(),
	}
}

// Handle as it travels; nil for none.
func Handle(h contract.Handle) *pluginv1.Handle {
	if h.IsZero() {
		return nil
	}
	return &pluginv1.Handle{Version: h.Version, Opaque: h.Opaque, Info: h.Info}
}

// FromHandle is the inverse of Handle.
func FromHandle(in *pluginv1.Handle) contract.Handle {
	return contract.Handle{Version: in.GetVersion(), Opaque: in.GetOpaque(), Info: in.GetInfo()}
}

func namespace(n contract.Namespace) *pluginv1.Namespace {
	return &pluginv1.Namespace{Path: n.Path, Dev: n.Dev, Ino: n.Ino}
}

func fromNamespace(in *pluginv1.Namespace) contract.Namespace {
	return contract.Namespace{Path: in.GetPath(), Dev: in.GetDev(), Ino: in.GetIno()}
}

func idMap(m contract.IDMap) *pluginv1.IDMap {
	return &pluginv1.IDMap{Inside: m.Inside, Outside: m.Outside, Count: m.Count}
}

func fromIDMap(in *pluginv1.IDMap) contract.IDMap {
	return contract.IDMap{Inside: in.GetInside(), Outside: in.GetOutside(), Count: in.GetCount()}
}

func fileNames(in []*os.File) []string {
	return all(in, func(f *os.File) string { return valid(f.Name()) })
}

// all translates a list; nothing becomes nil.
func all[A, B any](in []A, f func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i, a := range in {
		out[i] = f(a)
	}
	return out
}

func duration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func fromTimestamp(in *timestamppb.Timestamp) time.Time {
	if in == nil {
		return time.Time{}
	}
	return in.AsTime()
}

func validMap(in map[string]string) map[string]string {
	out := make(map[string]string, len(in))
	for k, v := range in {
		out[valid(k)] = valid(v)
	}
	return out
}

func text[T interface{ IsValid() bool }](v T, format func(T) string) string {
	if !v.IsValid() {
		return ""
	}
	return format(v)
}

func addr(a netip.Addr) string         { return text(a, netip.Addr.String) }
func prefix(p netip.Prefix) string     { return text(p, netip.Prefix.String) }
func addrPort(a netip.AddrPort) string { return text(a, netip.AddrPort.String) }

// reader gathers what is wrong with what came: the other side is another party, and
// addresses travel as text.
type reader struct{ errs []error }

func (r *reader) err() error { return errors.Join(r.errs...) }

func parse[T any](r *reader, s string, f func(string) (T, error)) T {
	var zero T
	if s == "" {
		return zero
	}
	v, err := f(s)
	if err != nil {
		r.errs = append(r.errs, err)
		return zero
	}
	return v
}

func (r *reader) addr(s string) netip.Addr         { return parse(r, s, netip.ParseAddr) }
func (r *reader) prefix(s string) netip.Prefix     { return parse(r, s, netip.ParsePrefix) }
func (r *reader) addrPort(s string) netip.AddrPort { return parse(r, s, netip.ParseAddrPort) }

func (r *reader) port(n uint32) uint16 {
	if n > math.MaxUint16 {
		r.errs = append(r.errs, fmt.Errorf("%d is no port", n))
		return 0
	}
	return uint16(n)
}

// both finds the partners of an enumeration's values in either direction. What is
// not known gives the zero value, which is to be the safe one.
type both[G, P comparable] map[G]P

func (b both[G, P]) from(p P) G {
	for g, q := range b {
		if q == p {
			return g
		}
	}
	var zero G
	return zero
}
