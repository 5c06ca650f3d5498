package guard

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// Answers are kept for as long as a host may still ask again, and no longer: they
// can hold secrets.
const (
	keepAnswers = 256
	keepFor     = 2 * time.Minute
)

const errNoID = "the call has no request_id, so a repetition of it could not be known for one"

type called interface {
	proto.Message
	GetCall() *pluginv1.Call
}

type key struct{ method, requestID string }

type digest [sha256.Size]byte

type entry struct {
	request digest
	done    chan struct{} // closed with the answer
	keep    bool
	at      time.Time
	resp    any
	err     error
}

// Replay gives the same answer to the same request_id, and no second effect. A
// duplicate that comes while the first is at work waits for it.
type Replay struct {
	mu      sync.Mutex
	entries map[key]*entry
	order   []key // finished entries, oldest first
	now     func() time.Time
}

// NewReplay makes an empty one.
func NewReplay() *Replay {
	return &Replay{entries: map[key]*entry{}, now: time.Now}
}

// Intercept is for calls that change something; the others pass through.
func (r *Replay) Intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	c, ok := req.(called)
	if !ok {
		return next(ctx, req)
	}
	k := key{info.FullMethod, c.GetCall().GetRequestId()}
	if k.requestID == "" {
		return nil, status.Error(codes.InvalidArgument, errNoID)
	}
	sum, err := fingerprint(c)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	for {
		e, mine := r.enter(k, sum)
		if e.request != sum {
			return nil, status.Errorf(codes.InvalidArgument, "request_id %q has been used for another request", k.requestID)
		}
		if mine {
			return r.run(ctx, k, e, req, next)
		}
		select {
		case <-e.done:
			if e.keep {
				return e.resp, e.err
			}
			// The first one's answer was no lasting one: our turn.
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (r *Replay) enter(k key, sum digest) (e *entry, mine bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire()
	if e, ok := r.entries[k]; ok {
		return e, false
	}
	e = &entry{request: sum, done: make(chan struct{})}
	r.entries[k] = e
	return e, true
}

func (r *Replay) run(ctx context.Context, k key, e *entry, req any, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	r.leave(k, e, resp, err, lasting(err))
	return resp, err
}

// leave ends what enter has begun.
func (r *Replay) leave(k key, e *entry, resp any, err error, keep bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.resp, e.err, e.keep, e.at = resp, err, keep, r.now()
	if e.keep {
		r.order = append(r.order, k)
		r.expire()
	} else {
		delete(r.entries, k)
	}
	close(e.done)
}

// expire is called with the lock held. Unfinished entries are not in order, and so
// stay: forgetting one would allow a second effect.
func (r *Replay) expire() {
	for len(r.order) > 0 {
		k := r.order[0]
		if len(r.order) <= keepAnswers && r.now().Sub(r.entries[k].at) < keepFor {
			return
		}
		delete(r.entries, k)
		r.order = r.order[1:]
	}
}

// lasting tells whether the same request must not be tried again.
func lasting(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted, codes.DeadlineExceeded, codes.Canceled:
		return false
	default:
		return true
	}
}

// fingerprint leaves out what may differ between tries of one request.
func fingerprint(c called) (digest, error) {
	m := proto.Clone(c).(called)
	call := m.GetCall()
	call.Attempt, call.TraceParent = 0, ""
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return digest{}, err
	}
	return sha256.Sum256(b), nil
}
