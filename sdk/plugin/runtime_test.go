package plugin_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

func runtimePlugin() plugin.Plugin {
	return plugin.Plugin{Name: "fake", Version: "1.2.3", Runtime: boxes{}, HandleVersions: []uint32{1}}
}

// boxes does what the handle says, or the process.
type boxes struct{}

func (boxes) Capabilities(_ context.Context, instanceID string) (runtime.Capabilities, error) {
	return runtime.Capabilities{TTY: true, Networks: []string{instanceID}, Signals: []int{15}}, nil
}

func (boxes) Prepare(_ context.Context, r *runtime.PrepareRequest) (runtime.Handle, error) {
	for _, f := range r.Files {
		fmt.Fprint(f, f.Name())
		f.Close()
	}
	if len(r.Spec) == 0 {
		panic("prepare went wrong")
	}
	effect("prepare")
	return runtime.Handle{Version: 1, Opaque: r.Spec}, nil
}

func (boxes) Start(_ context.Context, r *runtime.StartRequest) (runtime.Started, error) {
	effect("start " + string(r.Handle.Opaque))
	return runtime.Started{Process: runtime.Process{PID: 7, StartTime: 8}, At: time.Unix(9, 0).UTC()}, nil
}

var ended = runtime.Exit{Code: 137, Signal: 9, OOMKilled: true, At: time.Unix(3, 0).UTC()}

func (boxes) Wait(ctx context.Context, r *runtime.WaitRequest, tell func(runtime.Event) error) (runtime.Exit, error) {
	if err := tell(runtime.Event{Kind: runtime.EventStarted, At: time.Unix(1, 0).UTC()}); err != nil {
		return runtime.Exit{}, err
	}
	switch r.SandboxID {
	case "panic":
		panic("wait went wrong")
	case "hangs":
		effect("wait")
		<-ctx.Done()
		effect("wait over")
		return runtime.Exit{}, ctx.Err()
	case "fails":
		return runtime.Exit{}, errs.Retry(errors.New("the monitor is down"), time.Second)
	}
	if err := tell(runtime.Event{Kind: runtime.EventOOM, At: time.Unix(2, 0).UTC()}); err != nil {
		return runtime.Exit{}, err
	}
	return ended, nil
}

func (boxes) Signal(context.Context, *runtime.SignalRequest) error {
	return errs.NotFoundf("nothing runs")
}

func (boxes) Stop(context.Context, *runtime.StopRequest) error { return errs.NotFoundf("nothing runs") }

func (boxes) Delete(context.Context, *runtime.DeleteRequest) error {
	return errs.NotFoundf("nothing is there")
}

func (boxes) Exec(ctx context.Context, r *runtime.ExecRequest, s runtime.Streams) (runtime.Exit, error) {
	effect("exec")
	switch string(r.Process) {
	case "cat":
		n, err := io.Copy(s.Stdout, s.Stdin)
		fmt.Fprintf(s.Stderr, "%d bytes", n)
		return runtime.Exit{Code: 3}, err
	case "terminal":
		for size := range s.Resize {
			fmt.Fprintf(s.Stdout, "%dx%d\n", size.Columns, size.Rows)
		}
		return runtime.Exit{}, nil
	case "idle": // it reads nothing, and leaves a thread that writes
		go func() {
			for {
				if _, err := s.Stdout.Write([]byte("late")); err != nil {
					effect("late: " + err.Error())
					return
				}
			}
		}()
		return runtime.Exit{Code: 4}, nil
	case "panic":
		panic("exec went wrong")
	case "down":
		return runtime.Exit{}, errs.Retry(errors.New("not yet"), 0)
	}
	<-ctx.Done()
	effect("exec over")
	return runtime.Exit{}, context.Cause(ctx)
}

func (boxes) Stats(ctx context.Context, r *runtime.StatsRequest, give func(runtime.Sample) error) error {
	if r.SandboxID == "panic" {
		panic("stats went wrong")
	}
	for i := uint64(1); ; i++ {
		if err := give(runtime.Sample{PIDs: i}); err != nil || r.Interval == 0 || ctx.Err() != nil {
			effect("stats over")
			return err
		}
	}
}

func (boxes) Recover(_ context.Context, r *runtime.RecoverRequest) (runtime.Condition, error) {
	return runtime.Condition{State: runtime.Exited, Exit: ended}, nil
}

func (boxes) List(context.Context, string) ([]runtime.Sandbox, error) {
	return []runtime.Sandbox{{ID: "a", Handle: runtime.Handle{Version: 1, Opaque: []byte("x")}, State: runtime.Running}}, nil
}

var runtimeFeatures = []string{runtime.FeatureExec, runtime.FeatureStats, runtime.FeatureRecover, runtime.FeatureList}

func (h *host) runtime() client.Runtime { return h.Runtime(runtimeFeatures) }

func TestRuntimeInfo(t *testing.T) {
	h := start(t, "runtime")
	got, err := h.Info(soon(t), "0.1.0", nil)
	want := manifest.Info{
		Name: "fake", Version: "1.2.3", SDKVersion: "0.1.0", Services: []manifest.Version{{Service: manifest.Runtime, Version: "1.0"}},
		Features: runtimeFeatures, HandleVersions: []uint32{1},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

func TestFeaturesDecideWhatARuntimeHas(t *testing.T) {
	for _, f := range append(runtimeFeatures, "", "runtime.future") {
		r := client.New(nil).Runtime([]string{f})
		if r.Runtime == nil || (r.Execer != nil) != (f == runtime.FeatureExec) || (r.Statser != nil) != (f == runtime.FeatureStats) ||
			(r.Recoverer != nil) != (f == runtime.FeatureRecover) || (r.Lister != nil) != (f == runtime.FeatureList) {
			t.Errorf("%q: %+v", f, r)
		}
	}
}

func TestSandboxesRun(t *testing.T) {
	h := start(t, "runtime")
	r := h.runtime()
	caps, err := r.Capabilities(soon(t), "i")
	if want := (runtime.Capabilities{TTY: true, Networks: []string{"i"}, Signals: []int{15}}); err != nil || !reflect.DeepEqual(caps, want) {
		t.Errorf("capabilities: %+v, %v", caps, err)
	}
	handle, err := r.Prepare(soon(t), &runtime.PrepareRequest{Call: call("1"), Spec: []byte("{}")})
	if err != nil || string(handle.Opaque) != "{}" {
		t.Fatalf("got %+v, %v", handle, err)
	}
	for range 2 { // the same request
		started, err := r.Start(soon(t), &runtime.StartRequest{Call: call("2"), Handle: handle})
		if want := (runtime.Started{Process: runtime.Process{PID: 7, StartTime: 8}, At: time.Unix(9, 0).UTC()}); err != nil || started != want {
			t.Errorf("started: %+v, %v", started, err)
		}
	}
	for range 2 { // without a deadline, and again
		var events []runtime.Event
		exit, err := r.Wait(t.Context(), &runtime.WaitRequest{Handle: handle}, func(e runtime.Event) error {
			events = append(events, e)
			return nil
		})
		want := []runtime.Event{{Kind: runtime.EventStarted, At: time.Unix(1, 0).UTC()}, {Kind: runtime.EventOOM, At: time.Unix(2, 0).UTC()}}
		if err != nil || exit != ended || !slices.Equal(events, want) {
			t.Errorf("waited: %+v, %v, after %+v", exit, err, events)
		}
	}
	if c, err := r.Recoverer.Recover(soon(t), &runtime.RecoverRequest{Handle: handle}); err != nil || c.State != runtime.Exited || c.Exit != ended {
		t.Errorf("recovered: %+v, %v", c, err)
	}
	if l, err := r.Lister.List(soon(t), ""); err != nil || len(l) != 1 || l[0].State != runtime.Running || string(l[0].Handle.Opaque) != "x" {
		t.Errorf("listed: %+v, %v", l, err)
	}
	if err := r.Signal(soon(t), &runtime.SignalRequest{Call: call("3"), Handle: handle}); errs.CodeOf(err) != errs.NotFound {
		t.Errorf("a signal to what is gone: %v", err)
	}
	if err := r.Stop(soon(t), &runtime.StopRequest{Call: call("4"), Handle: handle}); err != nil {
		t.Errorf("stopping what is gone: %v", err)
	}
	if err := r.Delete(soon(t), &runtime.DeleteRequest{Call: call("5")}); err != nil {
		t.Errorf("deleting what is gone: %v", err)
	}
	if got := h.count(t); !slices.Equal(got, []string{"prepare", "start {}"}) {
		t.Errorf("effects: %q", got)
	}
}

func TestStats(t *testing.T) {
	h := start(t, "runtime")
	var seen []uint64
	enough := errors.New("enough")
	for _, tc := range []struct {
		interval time.Duration
		want     []uint64
		err      error
	}{{0, []uint64{1}, nil}, {time.Second, []uint64{1, 2, 3}, enough}} {
		seen = nil
		err := h.runtime().Statser.Stats(t.Context(), &runtime.StatsRequest{Interval: tc.interval}, func(s runtime.Sample) error {
			if seen = append(seen, s.PIDs); len(seen) == 3 {
				return enough
			}
			return nil
		})
		if !errors.Is(err, tc.err) || !slices.Equal(seen, tc.want) {
			t.Errorf("interval %s: %v, %v", tc.interval, seen, err)
		}
	}
	eventually(t, "the end of both", func() bool { return len(h.count(t)) == 2 })
}

func nothing(runtime.Event) error { return nil }

func execute(t *testing.T, h *host, id, process string, s runtime.Streams) (runtime.Exit, error) {
	t.Helper()
	return h.runtime().Execer.Exec(t.Context(), &runtime.ExecRequest{Call: call(id), Process: []byte(process)}, s)
}

func TestStreamsSurviveTheirErrors(t *testing.T) {
	h := start(t, "runtime")
	r := h.runtime()
	unknown := runtime.Handle{Version: 2}
	for _, tc := range []struct {
		name string
		call func() error
		code errs.Code
		text string
	}{
		{"wait panics", func() error {
			_, err := r.Wait(t.Context(), &runtime.WaitRequest{SandboxID: "panic"}, nothing)
			return err
		}, errs.Internal, "the plugin panicked in /nucleus.plugin.v1.Runtime/Wait: wait went wrong"},
		{"stats panics", func() error {
			return r.Statser.Stats(t.Context(), &runtime.StatsRequest{SandboxID: "panic"}, nil)
		}, errs.Internal, "stats went wrong"},
		{"exec panics", func() error { _, err := execute(t, h, "1", "panic", runtime.Streams{}); return err }, errs.Internal, "exec went wrong"},
		{"wait fails", func() error {
			_, err := r.Wait(t.Context(), &runtime.WaitRequest{SandboxID: "fails"}, nothing)
			return err
		}, errs.Unavailable, "the monitor is down"},
		{"a handle of an unknown version", func() error {
			_, err := r.Wait(t.Context(), &runtime.WaitRequest{Handle: unknown}, nothing)
			return err
		}, errs.Precondition, "version 2"},
		{"and one of a process", func() error {
			_, err := r.Execer.Exec(t.Context(), &runtime.ExecRequest{Call: call("2"), Handle: unknown}, runtime.Streams{})
			return err
		}, errs.Precondition, "version 2"},
		{"who listens has enough", func() error {
			_, err := r.Wait(t.Context(), &runtime.WaitRequest{}, func(runtime.Event) error { return errs.Abortedf("enough") })
			return err
		}, errs.Aborted, "enough"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.call()
			if errs.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v %v", errs.CodeOf(err), err)
			}
			if tc.code == errs.Internal {
				if e := as(t, err); e.Panic == nil || !strings.Contains(e.Panic.Stack, "boxes.") {
					t.Errorf("the panic: %+v", e.Panic)
				}
			}
		})
	}
	if _, err := h.Health(soon(t)); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func TestStreamsEnd(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(t *testing.T, h *host, cancel context.CancelFunc)
		gone bool // with the plugin
		code errs.Code
	}{
		{"with their caller", func(_ *testing.T, _ *host, cancel context.CancelFunc) { cancel() }, false, errs.Canceled},
		{"with the connection", func(_ *testing.T, h *host, _ context.CancelFunc) { h.conn.Close() }, false, errs.Canceled},
		{"with the host", func(_ *testing.T, h *host, _ context.CancelFunc) { h.lifeline.Close() }, true, errs.Unavailable},
		{"with the plugin", func(t *testing.T, h *host, _ context.CancelFunc) {
			if err := h.Shutdown(soon(t)); err != nil {
				t.Error(err)
			}
		}, true, errs.Unavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := start(t, "runtime")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			waited, executed := make(chan error, 1), make(chan error, 1)
			go func() {
				_, err := h.runtime().Wait(ctx, &runtime.WaitRequest{SandboxID: "hangs"}, nothing)
				waited <- err
			}()
			go func() {
				_, err := h.runtime().Execer.Exec(ctx, &runtime.ExecRequest{Call: call("1"), Process: []byte("hang")}, runtime.Streams{})
				executed <- err
			}()
			eventually(t, "both at work", func() bool { return len(h.count(t)) == 2 })
			tc.end(t, h, cancel)
			if err := <-waited; errs.CodeOf(err) != tc.code {
				t.Errorf("wait: %v", err)
			}
			// Nobody may run a process once more since its plugin has ended.
			if err := <-executed; err == nil || tc.name == "with the plugin" && errs.CodeOf(err) != errs.Canceled {
				t.Errorf("exec: %v", err)
			}
			if tc.gone {
				eventually(t, "the end of the plugin", h.proc.Exited)
			}
			if tc.name != "with the host" { // there the plugin has no time for more
				eventually(t, "the end of both", func() bool { return len(h.count(t)) == 4 })
			}
		})
	}
}

func TestExec(t *testing.T) {
	h := start(t, "runtime")
	in := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var out, errOut bytes.Buffer
	exit, err := execute(t, h, "1", "cat", runtime.Streams{Stdin: bytes.NewReader(in), Stdout: &out, Stderr: &errOut})
	if err != nil || exit.Code != 3 || !bytes.Equal(out.Bytes(), in) || errOut.String() != fmt.Sprint(len(in), " bytes") {
		t.Errorf("got %+v, %v, %d bytes, %q", exit, err, out.Len(), errOut.String())
	}
	// Without streams it has an empty input, and its output is dropped.
	if exit, err := execute(t, h, "2", "cat", runtime.Streams{}); err != nil || exit.Code != 3 {
		t.Errorf("got %+v, %v", exit, err)
	}
}

func TestExecInATerminal(t *testing.T) {
	h := start(t, "runtime")
	sizes := make(chan runtime.Size)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := execute(t, h, "1", "terminal", runtime.Streams{Stdout: w, Resize: sizes})
		done <- err
	}()
	lines := bufio.NewReader(r)
	for _, s := range []runtime.Size{{Columns: 80, Rows: 24}, {Columns: 132, Rows: 43}} {
		sizes <- s
		if got, err := lines.ReadString('\n'); err != nil || got != fmt.Sprintf("%dx%d\n", s.Columns, s.Rows) {
			t.Errorf("got %q, %v", got, err)
		}
	}
	close(sizes)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// endless is an input that always has more.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

type broken struct{ err error }

func (b broken) Write([]byte) (int, error) { return 0, b.err }

func TestExecEndsWithItsProcess(t *testing.T) {
	h := start(t, "runtime")
	exit, err := execute(t, h, "1", "idle", runtime.Streams{Stdin: endless{}})
	if err != nil || exit.Code != 4 {
		t.Errorf("got %+v, %v", exit, err)
	}
	eventually(t, "the late writer's error", func() bool { return slices.Contains(h.count(t), "late: io: read/write on closed pipe") })
	if _, err := h.Health(soon(t)); err != nil {
		t.Error(err)
	}
}

func TestExecEndsWithItsStreams(t *testing.T) {
	h := start(t, "runtime")
	want := errors.New("the disk is full")
	r, w := io.Pipe()
	go func() {
		defer w.CloseWithError(want)
		eventually(t, "the process", func() bool { return len(h.count(t)) == 1 })
	}()
	if _, err := execute(t, h, "1", "hang", runtime.Streams{Stdin: r}); !errors.Is(err, want) {
		t.Errorf("reading: %v", err)
	}
	if _, err := execute(t, h, "2", "cat", runtime.Streams{Stdin: endless{}, Stdout: broken{want}}); !errors.Is(err, want) {
		t.Errorf("writing: %v", err)
	}
	eventually(t, "the end of the first", func() bool { return slices.Contains(h.count(t), "exec over") })
}

func TestExecIsNotRepeated(t *testing.T) {
	h := start(t, "runtime")
	for i, tc := range []struct {
		process string
		id      string
		code    errs.Code
	}{
		{"cat", "1", errs.Unset},
		{"cat", "1", errs.Exists},
		{"panic", "2", errs.Internal},
		{"panic", "2", errs.Exists},
		{"down", "3", errs.Unavailable}, // the author says that nothing has happened
		{"down", "3", errs.Unavailable},
		{"cat", "", errs.Config},
	} {
		if _, err := execute(t, h, tc.id, tc.process, runtime.Streams{}); errs.CodeOf(err) != tc.code {
			t.Errorf("%d: %v", i, err)
		}
	}
	if got := h.count(t); len(got) != 4 {
		t.Errorf("effects: %q", got)
	}
}

func TestExecStreamsAreChecked(t *testing.T) {
	h := start(t, "runtime")
	raw := pluginv1.NewRuntimeClient(h.conn)
	setup := func(process string) *pluginv1.ExecRequest {
		return &pluginv1.ExecRequest{Part: &pluginv1.ExecRequest_Setup{Setup: &pluginv1.ExecSetup{Call: &pluginv1.Call{RequestId: process}, ProcessJson: []byte(process)}}}
	}
	stdin := &pluginv1.ExecRequest{Part: &pluginv1.ExecRequest_Stdin{Stdin: []byte("x")}}
	for _, tc := range []struct {
		name string
		send []*pluginv1.ExecRequest
		text string
	}{
		{"nothing", nil, "the stream has no setup"},
		{"no setup", []*pluginv1.ExecRequest{stdin}, "the first message of the stream is no setup"},
		{"two", []*pluginv1.ExecRequest{setup("hang"), setup("cat")}, "a stream has one setup"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := raw.Exec(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range tc.send {
				if err := s.Send(m); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.CloseSend(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRuntimeGetsDescriptors(t *testing.T) {
	h := start(t, "runtime")
	w, watch := pipe(t)
	if _, err := h.runtime().Prepare(soon(t), &runtime.PrepareRequest{Call: call("1"), Spec: []byte("{}"), Files: []*os.File{w}}); err != nil {
		t.Fatal(err)
	}
	name := w.Name()
	w.Close()
	if got := readAll(t, watch); got != name {
		t.Errorf("got %q", got)
	}
	w, watch = pipe(t)
	_, err := h.runtime().Prepare(soon(t), &runtime.PrepareRequest{Call: call("2"), Files: []*os.File{w}})
	if e := as(t, err); e.Panic == nil {
		t.Errorf("got %+v", e)
	}
	w.Close()
	readAll(t, watch)
}
