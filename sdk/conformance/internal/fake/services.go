package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/zclconf/go-cty/cty"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

func schema() config.Schema {
	lowest, highest := 1.0, 9.0
	level := config.Attr{Name: "level", Type: cty.Number, Description: "How much.", Default: []byte("3"), Constraint: config.Constraint{Min: &lowest, Max: &highest}}
	key := config.Attr{Name: "key", Type: cty.String, Required: true, Description: "Which one.", Constraint: config.Constraint{Pattern: "[a-z]+"}}
	server := config.Block{Description: "A server.", Attrs: []config.Attr{
		{Name: "address", Type: cty.String, Required: true, Description: "Its address.", Constraint: config.Constraint{Format: config.IP}},
		{Name: "tags", Type: cty.List(cty.String), Description: "What it is for.", Constraint: config.Constraint{Enum: []string{"test", "live"}}},
	}}
	switch {
	case broken("no description"):
		level.Description = ""
	case broken("default out of bounds"):
		level.Default = []byte("11")
	}
	if ofNetworks() {
		return config.Schema{Plugin: &config.Block{}, Instance: map[string]*config.Block{"network": {Attrs: []config.Attr{level}}}}
	}
	if ofRuntimes() {
		return config.Schema{Plugin: &config.Block{}, Instance: map[string]*config.Block{"runtime": {Attrs: []config.Attr{level}}}}
	}
	return config.Schema{
		Plugin: &config.Block{
			Attrs: []config.Attr{
				{Name: "token", Type: cty.String, Description: "What to log in with.", Sensitive: true},
				{Name: "timeout", Type: cty.String, Description: "How long to wait.", Default: []byte(`"5s"`), Constraint: config.Constraint{Format: config.Duration}},
			},
			Blocks: []config.Nested{{Type: "server", Nesting: config.List, Max: 2, Block: server}, {Type: "backup", Nesting: config.Map, Block: server}},
		},
		Instance: map[string]*config.Block{"secrets": {Attrs: []config.Attr{key}}, "hooks": {Attrs: []config.Attr{level}}},
	}
}

// fake is what the services share.
type fake struct {
	end   func(code int)
	runs  atomic.Int64
	child sync.Once

	mu     sync.Mutex
	token  string
	keys   map[string]string // of secrets, by instance
	runDir string
	leases map[string]bool // true once revoked
	clean  bool
	kept   [][]byte
	files  []*os.File
	// answers by method and request_id.
	answers map[string]*answer
}

type answer struct {
	done chan struct{}
	resp any
	err  error
}

func guard(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	atWork.Add(1)
	defer atWork.Add(-1)
	if _, ok := ctx.Deadline(); !ok && !broken("no deadline") {
		return nil, status.Errorf(codes.InvalidArgument, "%s has no deadline", info.FullMethod)
	}
	return next(ctx, req)
}

// once gives the same request the same answer.
func (f *fake) once(ctx context.Context, method string, c *pluginv1.Call, do func() (any, error)) (any, error) {
	k := method + c.GetRequestId()
	for {
		f.mu.Lock()
		if f.answers == nil {
			f.answers = map[string]*answer{}
		}
		a, there := f.answers[k]
		if !there {
			a = &answer{done: make(chan struct{})}
			f.answers[k] = a
		}
		f.mu.Unlock()
		if !there {
			a.resp, a.err = do()
			if a.err != nil {
				f.mu.Lock()
				delete(f.answers, k)
				f.mu.Unlock()
			}
			close(a.done)
			return a.resp, a.err
		}
		select {
		case <-a.done:
			if a.err == nil {
				return a.resp, nil
			}
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

type baseServer struct {
	pluginv1.UnimplementedBaseServer
	fake *fake
}

func (b *baseServer) Info(context.Context, *pluginv1.InfoRequest) (*pluginv1.InfoResponse, error) {
	if broken("no Info") {
		return nil, status.Error(codes.Unimplemented, "no")
	}
	in := &pluginv1.InfoResponse{
		Name: "fake", Version: version, Description: "a fake",
		Services: []*pluginv1.ServiceVersion{
			{Service: pluginv1.Service_SERVICE_SECRETS, Version: "1.0"}, {Service: pluginv1.Service_SERVICE_HOOKS, Version: "1.0"},
		},
		Features: []string{"secrets.renew", "secrets.revoke"}, Lifetime: pluginv1.Lifetime_LIFETIME_ONE_SHOT,
	}
	if ofNetworks() {
		in.Services = []*pluginv1.ServiceVersion{{Service: pluginv1.Service_SERVICE_NETWORK, Version: "1.0"}}
		in.Features = []string{network.FeaturePrepare, network.FeatureStatus, network.FeatureGC, network.FeatureWatch, network.FeatureStack, network.FeatureDialMember}
		in.Needs = &pluginv1.Privileges{Capabilities: []string{"CAP_NET_ADMIN", "CAP_NET_RAW"}, Root: broken("falls open")} // the node of taps may be root's
		in.HandleVersions = []uint32{1}
	}
	if ofRuntimes() {
		in.Services, in.Features = []*pluginv1.ServiceVersion{{Service: pluginv1.Service_SERVICE_RUNTIME, Version: "1.0"}}, nil
	}
	switch {
	case broken("version 1.0-beta"):
		in.Services[0].Version = "1.0-beta"
	case broken("counts calls of Info"):
		in.Description += fmt.Sprint(b.fake.runs.Add(1))
	case broken("Info has the pid"):
		in.Description += fmt.Sprint(os.Getpid())
	case warm():
		in.Lifetime = pluginv1.Lifetime_LIFETIME_WARM_OK
	}
	return in, nil
}

func (*baseServer) ConfigSchema(context.Context, *pluginv1.ConfigSchemaRequest) (*pluginv1.ConfigSchemaResponse, error) {
	return wire.Schema(schema())
}

func (b *baseServer) Configure(_ context.Context, r *pluginv1.ConfigureRequest) (*pluginv1.ConfigureResponse, error) {
	for _, s := range r.GetSelected() {
		same := strings.HasPrefix(s.GetVersion(), "1.") && (s.GetVersion() == "1.0" || !broken("wants its own minor version"))
		if (s.GetService() >= pluginv1.Service_SERVICE_SECRETS || ofNetworks() || ofRuntimes()) && !same && !broken("any version") {
			return nil, status.Errorf(codes.FailedPrecondition, "version %s", s.GetVersion())
		}
	}
	all := schema()
	block := all.Plugin
	if r.GetInstanceId() != "" {
		block = all.Instance[map[pluginv1.Service]string{
			pluginv1.Service_SERVICE_SECRETS: "secrets", pluginv1.Service_SERVICE_HOOKS: "hooks", pluginv1.Service_SERVICE_NETWORK: "network",
			pluginv1.Service_SERVICE_RUNTIME: "runtime",
		}[r.GetService()]]
	}
	if block == nil && broken("fails at unknown services") {
		return nil, errors.New("index out of range")
	}
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "unknown service")
	}
	v, err := block.Unmarshal(r.GetConfigMsgpack())
	if err != nil && broken("dies of garbage") {
		os.Exit(2)
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := check(block, v); err != nil {
		return nil, err
	}
	return &pluginv1.ConfigureResponse{}, b.fake.keep(r, v)
}

func check(block *config.Block, v cty.Value) error {
	ds := block.Check(v)
	switch {
	case len(ds) == 0 || broken("checks nothing"):
		return nil
	case broken("has no ConfigError"):
		return status.Error(codes.InvalidArgument, ds[0].Summary)
	case broken("points elsewhere"):
		ds[0].Path = errs.Path("nowhere")
	}
	return wire.Status(&errs.Error{Code: errs.Config, Diagnostics: ds}, "fake").Err()
}

func (f *fake) keep(r *pluginv1.ConfigureRequest, v cty.Value) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys == nil {
		f.keys, f.leases = map[string]string{}, map[string]bool{}
	}
	if r.GetRunDir() != "" {
		f.runDir = r.GetRunDir()
	}
	stateRoot.Store(r.GetStateRoot())
	if v.IsNull() {
		return nil
	}
	switch {
	case r.GetInstanceId() == "" && broken("refuses its configuration"):
		return status.Error(codes.FailedPrecondition, "the server is down")
	case r.GetInstanceId() == "" && !ofNetworks() && !ofRuntimes():
		if t := v.GetAttr("token"); !t.IsNull() {
			f.token = t.AsString()
		}
		if broken("logs its token") {
			fmt.Fprintln(os.Stderr, "Authorization: Basic", base64.StdEncoding.EncodeToString([]byte(f.token)))
		}
	case r.GetService() == pluginv1.Service_SERVICE_SECRETS:
		if k := v.GetAttr("key"); !k.IsNull() {
			f.keys[r.GetInstanceId()] = k.AsString()
		}
	}
	return nil
}

func (*baseServer) Health(context.Context, *pluginv1.HealthRequest) (*pluginv1.HealthResponse, error) {
	if broken("no state") {
		return &pluginv1.HealthResponse{}, nil
	}
	return &pluginv1.HealthResponse{State: pluginv1.HealthResponse_STATE_OK}, nil
}

func (b *baseServer) Shutdown(context.Context, *pluginv1.ShutdownRequest) (*pluginv1.ShutdownResponse, error) {
	code := 0
	if broken("exit 3") {
		code = 3
	}
	b.fake.end(code)
	return &pluginv1.ShutdownResponse{}, nil
}

type secretsServer struct {
	pluginv1.UnimplementedSecretsServer
	fake *fake
}

func (s *secretsServer) Fetch(ctx context.Context, r *pluginv1.FetchRequest) (*pluginv1.FetchResponse, error) {
	do := func() (any, error) { return s.fake.fetch(ctx, r) }
	if broken("fetches again") {
		r, err := do()
		if err != nil {
			return nil, err
		}
		return r.(*pluginv1.FetchResponse), nil
	}
	got, err := s.fake.once(ctx, "Fetch", r.GetCall(), do)
	if err != nil {
		return nil, err
	}
	return got.(*pluginv1.FetchResponse), nil
}

var fetching atomic.Int64

// fetch takes a moment, so that it can be interrupted.
func (f *fake) fetch(ctx context.Context, r *pluginv1.FetchRequest) (*pluginv1.FetchResponse, error) {
	if fetching.Add(1) > 8 && broken("not for many") {
		fetching.Add(-1)
		return nil, status.Error(codes.ResourceExhausted, "one after the other, please")
	}
	defer fetching.Add(-1)
	f.disturb()
	moment := 3 * time.Millisecond
	if broken("deaf") {
		moment = 50 * time.Millisecond // the calls that are given up find it at work, on a busy machine too
	}
	select {
	case <-time.After(moment):
	case <-ctx.Done():
		if broken("deaf") {
			time.Sleep(10 * time.Second)
		}
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	refs := slices.Clone(r.GetRefs())
	if broken("in its own order") {
		slices.SortFunc(refs, func(a, b *pluginv1.SecretRef) int { return strings.Compare(a.GetName(), b.GetName()) })
	}
	out := &pluginv1.FetchResponse{}
	for _, ref := range refs {
		key, ok := f.keys[ref.GetInstanceId()]
		value := "value-of-" + key
		switch {
		case !ok && broken("fails at unknown instances"):
			return nil, errors.New("map entry not found")
		case !ok && broken("value in its error"):
			return nil, status.Errorf(codes.InvalidArgument, "no instance %q, only %v", ref.GetInstanceId(), out)
		case !ok:
			return nil, status.Error(codes.InvalidArgument, "no such instance")
		case key == "gone" && ref.GetOptional() && !broken("never absent"):
			out.Secrets = append(out.Secrets, &pluginv1.Secret{Name: ref.GetName(), Absent: true})
			continue
		case key == "gone" || key == "first" && broken("lost one"):
			return nil, status.Error(codes.NotFound, "no such secret")
		case broken("value in its log"):
			fmt.Fprintf(os.Stderr, "fetched %x\n", value)
		case broken("value in a child's arguments"):
			f.child.Do(func() { linger(value, false) })
		}
		lease := fmt.Sprintf("lease-%d", f.runs.Add(1))
		f.leases[lease] = false
		out.Secrets = append(out.Secrets, &pluginv1.Secret{Name: ref.GetName(), Value: []byte(value), LeaseId: lease, Renewable: true})
	}
	return out, nil
}

// disturb does what a call should not.
func (f *fake) disturb() {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case broken("leaks descriptors"):
		if null, err := os.Open(os.DevNull); err == nil {
			f.files = append(f.files, null)
		}
	case broken("leaks memory"):
		b := make([]byte, 4<<20)
		for i := range b {
			b[i] = 1
		}
		f.kept = append(f.kept, b)
	case broken("leaks threads"):
		go func() { _ = syscall.Nanosleep(&syscall.Timespec{Sec: 60}, nil) }()
	case broken("leaves a child"):
		f.child.Do(func() { linger("", true) })
	case broken("leaves a file"):
		_ = os.WriteFile(filepath.Join(f.runDir, fmt.Sprint("cache", os.Getpid())), nil, 0o600)
	}
}

func linger(arg string, session bool) {
	cmd := exec.Command(os.Args[0], "--linger", arg)
	cmd.Env, cmd.SysProcAttr = []string{}, &syscall.SysProcAttr{Setsid: session}
	if cmd.Start() == nil {
		go func() { _ = cmd.Wait() }()
	}
}

func (s *secretsServer) Renew(_ context.Context, r *pluginv1.RenewRequest) (*pluginv1.RenewResponse, error) {
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	if _, ok := s.fake.leases[r.GetLeaseId()]; !ok && !broken("renews anything") {
		return nil, status.Error(codes.NotFound, "no such lease")
	}
	return &pluginv1.RenewResponse{Renewable: true}, nil
}

func (s *secretsServer) Revoke(_ context.Context, r *pluginv1.RevokeRequest) (*pluginv1.RevokeResponse, error) {
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	if revoked, ok := s.fake.leases[r.GetLeaseId()]; ok {
		if revoked && broken("revokes once") {
			return nil, status.Error(codes.NotFound, "revoked before")
		}
		s.fake.leases[r.GetLeaseId()] = true
	}
	return &pluginv1.RevokeResponse{}, nil
}

type hooksServer struct {
	pluginv1.UnimplementedHooksServer
	fake *fake
}

const lastBoundary = pluginv1.Boundary_BOUNDARY_CLEANUP

func (*hooksServer) Describe(context.Context, *pluginv1.DescribeRequest) (*pluginv1.DescribeResponse, error) {
	r := &pluginv1.DescribeResponse{Mask: 1<<(lastBoundary+1) - 2}
	switch {
	case broken("subscribes to everything"):
		r.Mask = ^uint64(0)
	case broken("subscribes to nothing"):
		r.Mask = 0
	}
	return r, nil
}

func (h *hooksServer) OnPhase(ctx context.Context, r *pluginv1.OnPhaseRequest) (*pluginv1.OnPhaseResponse, error) {
	do := func() (any, error) { return h.fake.onPhase(r) }
	if broken("decides again") {
		r, err := do()
		if err != nil {
			return nil, err
		}
		return r.(*pluginv1.OnPhaseResponse), nil
	}
	got, err := h.fake.once(ctx, "OnPhase", r.GetCall(), do)
	if err != nil {
		return nil, err
	}
	return got.(*pluginv1.OnPhaseResponse), nil
}

func (f *fake) onPhase(r *pluginv1.OnPhaseRequest) (*pluginv1.OnPhaseResponse, error) {
	out := &pluginv1.OnPhaseResponse{Mutation: &pluginv1.Mutation{}}
	switch b := r.GetBoundary(); {
	case b > lastBoundary && broken("fails at unknown boundaries"):
		return nil, errors.New("index out of range")
	case b == pluginv1.Boundary_BOUNDARY_POST_FS && broken("fails at POST_FS"):
		return nil, status.Error(codes.FailedPrecondition, "no")
	case b == pluginv1.Boundary_BOUNDARY_POST_FS && broken("mutates at POST_FS"):
		out.Mutation.AddEnv = map[string]string{"LATE": "1"}
	case b == pluginv1.Boundary_BOUNDARY_STOPPED && broken("vetoes the end"):
		out.Veto = "never"
	case b == lastBoundary:
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.clean && broken("cleans up once") {
			return nil, status.Error(codes.FailedPrecondition, "clean already")
		}
		f.clean = true
	case b == pluginv1.Boundary_BOUNDARY_PRE_EXEC:
		out.Mutation.AddEnv = map[string]string{"RUN": fmt.Sprint(f.runs.Add(1))}
	}
	return out, nil
}
