package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/notify"
	"github.com/nucleus-runtime/nucleus/core/probe"
)

// notices is what the sandbox says of itself.
type notices struct {
	receiver *notify.Receiver
	ready    chan struct{} // closed by the first READY=1

	mu     sync.Mutex
	said   bool // ready is closed
	status string
	lost   bool // the manager could not be told, and that was said

	telling sync.Mutex // the manager
	over    bool       // it is told of nothing more
}

// close lets nothing of the sandbox reach the manager any more: what comes then is another
// run's to say, or nobody's. One message may be on its way to it, for as long as that takes.
func (n *notices) close() {
	if n.receiver != nil {
		n.receiver.Close()
	}
	n.telling.Lock()
	defer n.telling.Unlock()
	n.over = true
}

// StatusText is what the workload last said that it is at, fit to be shown.
func (s *Sandbox) StatusText() string {
	s.notices.mu.Lock()
	defer s.notices.mu.Unlock()
	return s.notices.status
}

// listenNotices takes over the socket that came when the file system stood, and gives what
// came after it.
func (s *Sandbox) listenNotices(fds []int) ([]int, error) {
	if s.plan.Notify == nil {
		return fds, nil
	}
	if len(fds) == 0 {
		return nil, phase("fs", fmt.Errorf("%w: no descriptor", initproto.ErrMessage))
	}
	s.notices.receiver = notify.Receive(fds[0], s.hear)
	return fds[1:], nil
}

// hear takes a message of the sandbox. The first word of its readiness is the
// supervisor's where the job has a probe for it, or is what the probe waits for.
func (s *Sandbox) hear(m notify.Message) {
	n := &s.notices
	n.mu.Lock()
	if m.HasStatus {
		n.status = m.Status
	}
	first := m.Ready && !n.said
	if first {
		n.said = true
		close(n.ready)
	}
	n.mu.Unlock()
	if !s.plan.Notify.Manager {
		return
	}
	if s.plan.Readiness != nil {
		select {
		case <-s.readied:
			m.Ready = m.Ready && !first // it may be what has made it ready just now
		default:
			m.Ready = false
		}
	}
	m.Stopping = m.Stopping && s.plan.Notify.Stopping
	s.tellManager(m)
}

// tellManager tells whoever manages this process. A manager that does not listen is no
// reason to end a sandbox.
func (s *Sandbox) tellManager(m notify.Message) {
	if s.cfg.Manager == nil {
		return
	}
	n := &s.notices
	n.telling.Lock()
	defer n.telling.Unlock()
	if n.over {
		return
	}
	err := s.cfg.Manager.Tell(m)
	n.mu.Lock()
	first := err != nil && !n.lost
	n.lost = n.lost || first
	n.mu.Unlock()
	if first {
		s.log.Emit(audit.NotifyFailed, err, nil)
	}
}

var errSilent = errors.New("the workload has not sent READY=1 to its NOTIFY_SOCKET")

// awaitNotice waits until the workload says that it is ready.
func (s *Sandbox) awaitNotice(ctx context.Context, within time.Duration) error {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-s.notices.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return &probe.NotReadyError{After: within, Last: errSilent}
	}
}
