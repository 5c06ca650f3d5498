package wire_test

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

func TestErrorsTravel(t *testing.T) {
	for code := errs.Internal; code <= errs.Canceled; code++ {
		t.Run(code.String(), func(t *testing.T) {
			want := &errs.Error{
				Code: code, Text: "text", RetryAfter: 250 * time.Millisecond, Reason: "WHY", Domain: "p", Metadata: map[string]string{"a": "b"},
				Leaked: []string{"veth7"}, Panic: &errs.Panic{Message: "m", Stack: "s"},
				Diagnostics: []errs.Diagnostic{
					{Severity: errs.Warning, Summary: "s", Detail: "d", Path: errs.Path("b", 3, errs.MapKey("k"), "a")}, {Summary: "t"},
				},
			}
			if got := wire.FromStatus(wire.Status(want, "p")); !reflect.DeepEqual(got, want) { //nolint:govet // neither wraps an error
				t.Errorf("got  %#v\nwant %#v", got, want)
			}
		})
	}
}

func TestStatusCodes(t *testing.T) {
	for code, err := range map[codes.Code]error{
		codes.OK:                 nil,
		codes.Internal:           errors.New("x"),
		codes.InvalidArgument:    errs.ConfigErrorf(nil, "x"),
		codes.NotFound:           errs.NotFoundf("x"),
		codes.AlreadyExists:      errs.Existsf("x"),
		codes.FailedPrecondition: errs.Preconditionf("x"),
		codes.ResourceExhausted:  errs.Exhaust(errors.New("x"), 1),
		codes.Unavailable:        errs.Retry(errors.New("x"), 1),
		codes.Aborted:            errs.Abortedf("x"),
		codes.PermissionDenied:   errs.Deniedf("x"),
	} {
		if got := wire.Status(err, "p").Code(); got != code {
			t.Errorf("%v: got %v, want %v", err, got, code)
		}
	}
}

func TestBytesThatAreNoTextStillArrive(t *testing.T) {
	err := errs.Because(errs.Residue(errs.ConfigErrorf(errs.Path("\xff"), "\xff"), "\xff"), "\xff", map[string]string{"\xff": "\xff"})
	e := errs.Of(wire.FromStatus(wire.Status(err, "p")))
	if e.Code != errs.Config || len(e.Diagnostics) != 1 || e.Diagnostics[0].Summary != "\uFFFD" || e.Leaked[0] != "\uFFFD" || e.Metadata["\uFFFD"] != "\uFFFD" {
		t.Errorf("got %+v", e)
	}
}

func TestErrorsOfOthers(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want errs.Code
	}{
		{"none", nil, errs.Unset},
		{"a connection that broke", status.Error(codes.Unavailable, "x"), errs.Unavailable},
		{"a code that is not ours", status.Error(codes.DataLoss, "x"), errs.Internal},
		{"no status", errors.New("x"), errs.Internal},
		{"one that is translated already", errs.NotFoundf("x"), errs.NotFound},
	} {
		if got := errs.CodeOf(wire.Error(tc.err)); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestWhatIsNotKnownIsTheSafeThing(t *testing.T) {
	in := wire.FromInfo(&pluginv1.InfoResponse{Lifetime: 99, Services: []*pluginv1.ServiceVersion{{Service: 99}, {Service: pluginv1.Service_SERVICE_HOOKS, Version: "1.0"}}})
	if in.Lifetime != manifest.OneShot || len(in.Services) != 1 {
		t.Errorf("got %+v", in)
	}
	if h := wire.FromHealth(&pluginv1.HealthResponse{State: 99}); h.State != manifest.Failed {
		t.Errorf("got %+v", h)
	}
}

func TestSchemasOfOthersAreChecked(t *testing.T) {
	attr := func(a *pluginv1.Attr) *pluginv1.Block { return &pluginv1.Block{Attrs: []*pluginv1.Attr{a}} }
	deep := &pluginv1.Block{}
	for range 100 {
		deep = &pluginv1.Block{Blocks: []*pluginv1.NestedBlock{{Type: "b", Nesting: pluginv1.NestedBlock_NESTING_LIST, Block: deep}}}
	}
	for _, tc := range []struct {
		name string
		b    *pluginv1.Block
		ok   bool
	}{
		{"good", attr(&pluginv1.Attr{Name: "a", TypeJson: `["list","number"]`, DefaultJson: "[1]"}), true},
		{"a format of the future", attr(&pluginv1.Attr{Name: "a", TypeJson: `"string"`, Constraint: &pluginv1.Constraint{Format: 99}}), true},
		{"no type", attr(&pluginv1.Attr{Name: "a"}), false},
		{"an unknown type", attr(&pluginv1.Attr{Name: "a", TypeJson: `"text"`}), false},
		{"any type", attr(&pluginv1.Attr{Name: "a", TypeJson: `"dynamic"`}), false},
		{"a default of another type", attr(&pluginv1.Attr{Name: "a", TypeJson: `"number"`, DefaultJson: `"x"`}), false},
		{"an unknown nesting", &pluginv1.Block{Blocks: []*pluginv1.NestedBlock{{Type: "b", Nesting: 99}}}, false},
		{"too deep", deep, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, r := range []*pluginv1.ConfigSchemaResponse{{PluginConfig: tc.b}, {InstanceConfig: map[string]*pluginv1.Block{"secrets": tc.b}}} {
				if _, err := wire.FromSchema(r); (err == nil) != tc.ok {
					t.Errorf("got %v", err)
				}
			}
		})
	}
}
