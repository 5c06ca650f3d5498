// Package wire translates between what authors and hosts see and what travels. It
// is the one place that knows both.
package wire

import (
	"errors"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

var toGRPC = map[errs.Code]codes.Code{
	errs.Internal:      codes.Internal,
	errs.Config:        codes.InvalidArgument,
	errs.NotFound:      codes.NotFound,
	errs.Exists:        codes.AlreadyExists,
	errs.Precondition:  codes.FailedPrecondition,
	errs.Exhausted:     codes.ResourceExhausted,
	errs.Unavailable:   codes.Unavailable,
	errs.Aborted:       codes.Aborted,
	errs.Denied:        codes.PermissionDenied,
	errs.Unimplemented: codes.Unimplemented,
	errs.Deadline:      codes.DeadlineExceeded,
	errs.Canceled:      codes.Canceled,
}

var fromGRPC = func() map[codes.Code]errs.Code {
	m := map[codes.Code]errs.Code{codes.Unauthenticated: errs.Denied, codes.OutOfRange: errs.Config}
	for e, g := range toGRPC {
		m[g] = e
	}
	return m
}()

// Status is an error as it travels. Domain is the plugin's name.
func Status(err error, domain string) *status.Status {
	if err == nil {
		return status.New(codes.OK, "")
	}
	e := errs.Of(err)
	st := status.New(toGRPC[e.Code], valid(e.Error()))
	var ds []protoadapt.MessageV1
	if len(e.Diagnostics) > 0 {
		ds = append(ds, protoadapt.MessageV1Of(&pluginv1.ConfigError{Diagnostics: Diagnostics(e.Diagnostics)}))
	}
	if e.RetryAfter > 0 || e.Code.Retryable() {
		ds = append(ds, protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)}))
	}
	if e.Reason != "" {
		m := make(map[string]string, len(e.Metadata))
		for k, v := range e.Metadata {
			m[valid(k)] = valid(v)
		}
		ds = append(ds, protoadapt.MessageV1Of(&errdetails.ErrorInfo{Reason: valid(e.Reason), Domain: domain, Metadata: m}))
	}
	if len(e.Leaked) > 0 {
		ds = append(ds, protoadapt.MessageV1Of(&pluginv1.Residue{Leaked: validAll(e.Leaked)}))
	}
	if e.Panic != nil {
		ds = append(ds, protoadapt.MessageV1Of(&pluginv1.PluginPanic{Message: valid(e.Panic.Message), Stack: valid(e.Panic.Stack)}))
	}
	with, err := st.WithDetails(ds...)
	if err != nil {
		return st // the code and the text still arrive
	}
	return with
}

// Error is what travelled as an error again: an *errs.Error, nil for OK. An error
// that never was a status, for instance of a connection that broke, is Unavailable.
func Error(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*errs.Error](err); ok {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return errs.Of(err)
	}
	return FromStatus(st)
}

// FromStatus is the inverse of Status.
func FromStatus(st *status.Status) error {
	if st.Code() == codes.OK {
		return nil
	}
	e := &errs.Error{Code: fromGRPC[st.Code()], Text: st.Message()}
	if e.Code == errs.Unset {
		e.Code = errs.Internal
	}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *pluginv1.ConfigError:
			e.Diagnostics = FromDiagnostics(d.GetDiagnostics())
		case *errdetails.RetryInfo:
			e.RetryAfter = d.GetRetryDelay().AsDuration()
		case *errdetails.ErrorInfo:
			e.Reason, e.Domain = d.GetReason(), d.GetDomain()
			if len(d.GetMetadata()) > 0 {
				e.Metadata = d.GetMetadata()
			}
		case *pluginv1.Residue:
			e.Leaked = d.GetLeaked()
		case *pluginv1.PluginPanic:
			e.Panic = &errs.Panic{Message: d.GetMessage(), Stack: d.GetStack()}
		}
	}
	return e
}

// Diagnostics as they travel.
func Diagnostics(in []errs.Diagnostic) []*pluginv1.Diagnostic {
	out := make([]*pluginv1.Diagnostic, 0, len(in))
	for _, d := range in {
		sev := pluginv1.Diagnostic_SEVERITY_ERROR
		if d.Severity == errs.Warning {
			sev = pluginv1.Diagnostic_SEVERITY_WARNING
		}
		out = append(out, &pluginv1.Diagnostic{Severity: sev, Summary: valid(d.Summary), Detail: valid(d.Detail), Path: steps(d.Path)})
	}
	return out
}

// FromDiagnostics is the inverse of Diagnostics.
func FromDiagnostics(in []*pluginv1.Diagnostic) []errs.Diagnostic {
	var out []errs.Diagnostic
	for _, d := range in {
		sev := errs.Fault
		if d.GetSeverity() == pluginv1.Diagnostic_SEVERITY_WARNING {
			sev = errs.Warning
		}
		out = append(out, errs.Diagnostic{Severity: sev, Summary: d.GetSummary(), Detail: d.GetDetail(), Path: fromSteps(d.GetPath())})
	}
	return out
}

func steps(in errs.Steps) []*pluginv1.PathStep {
	out := make([]*pluginv1.PathStep, 0, len(in))
	for _, s := range in {
		p := &pluginv1.PathStep{}
		switch s.Kind {
		case errs.Block:
			p.Step = &pluginv1.PathStep_Block{Block: valid(s.Name)}
		case errs.Index:
			p.Step = &pluginv1.PathStep_Index{Index: s.Index}
		case errs.Key:
			p.Step = &pluginv1.PathStep_Key{Key: valid(s.Name)}
		default:
			p.Step = &pluginv1.PathStep_Attr{Attr: valid(s.Name)}
		}
		out = append(out, p)
	}
	return out
}

func fromSteps(in []*pluginv1.PathStep) errs.Steps {
	var out errs.Steps
	for _, p := range in {
		switch s := p.GetStep().(type) {
		case *pluginv1.PathStep_Attr:
			out = append(out, errs.Step{Kind: errs.Attr, Name: s.Attr})
		case *pluginv1.PathStep_Block:
			out = append(out, errs.Step{Kind: errs.Block, Name: s.Block})
		case *pluginv1.PathStep_Index:
			out = append(out, errs.Step{Kind: errs.Index, Index: s.Index})
		case *pluginv1.PathStep_Key:
			out = append(out, errs.Step{Kind: errs.Key, Name: s.Key})
		}
	}
	return out
}

// valid makes text of what may be any bytes: protobuf refuses a whole message for
// one string that is not UTF-8, and the error with it.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func validAll(in []string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = valid(s)
	}
	return out
}
