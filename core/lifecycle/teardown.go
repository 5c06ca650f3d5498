package lifecycle

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
)

// teardown ends init and undoes everything. It may be called in any state, and
// what it cannot undo stays in the journal for gc.
//
// Output that was written is copied to its end, however long its reader takes;
// but once an end was asked for, by a stop, a timeout or a failed start, a
// reader that has gone to sleep holds it up no longer than drainLimit.
func (s *Sandbox) teardown(ctx context.Context, asked bool) error {
	defer close(s.release)
	if s.gate != nil {
		_ = s.gate.Close()
	}
	if s.conn != nil {
		_ = s.conn.Close()
		_ = s.initConn.Close()
	}
	if s.init != nil {
		s.init.Kill()
		_, err := s.init.Wait()
		// An abort may be on its way: it must not kill whoever has the descriptor next.
		s.mu.Lock()
		s.init.Close()
		s.mu.Unlock()
		if err == nil {
			err = s.dir.Journal.Undone(stepInit)
		}
		if err != nil {
			s.log.Emit(audit.UndoFailed, err, map[string]any{"step": stepInit})
		}
	}
	traced := s.endTrace()
	if s.workFD >= 0 {
		_ = unix.Close(s.workFD)
	}
	if s.note != nil {
		_ = s.note.Close()
	}
	if s.prep != nil {
		s.prep.Close()
	}
	s.notices.close()
	s.layers.close()
	if s.stdio != nil {
		s.drain(asked)
	}
	s.lap("init gone")
	if s.fetching != nil {
		s.fetching.cancel()
		_ = s.endFetch() // the start has failed for a reason of its own
	}
	s.programs.close()
	s.values.close()
	s.foreign.close()
	defer s.bounds.subs.Close()
	defer s.impatience()()
	s.bounds.end()
	defer s.loans.close()
	if s.unkeep != nil {
		s.unkeep()
	}
	s.endNetwork()
	if s.net.link != nil {
		defer s.net.link.Close()
	}
	u := &undoing{log: s.log, sandbox: s.dir.ID, name: s.dir.Name, live: &s.bounds, group: s.group, loans: s.loans, networks: s.cfg.Networks, net: &s.net}
	if s.result.Cause != "" {
		u.end = &s.result
	}
	warning, err := unwind(ctx, s.dir, u)
	s.hookWarning = warning
	if err != nil {
		return errors.Join(traced, &PhaseError{Phase: "teardown", Err: err, Hint: "nucleus gc"})
	}
	failpoint.Hit("all undone")
	return traced
}

// impatience lets whoever asks for an end while the sandbox is undone end the calls to
// hooks plugins, too: what they are owed is left to gc. The function that it gives
// stops that.
func (s *Sandbox) impatience() func() {
	if s.bounds.subs == nil {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case r := <-s.requests:
				if r.what != reqSignal || Ends(r.signal) {
					s.bounds.hurry()
				}
			}
		}
	}()
	return func() { close(done) }
}

const drainLimit = 2 * time.Second

// drain waits for the copying of streams.
func (s *Sandbox) drain(asked bool) {
	if !s.stdio.Copies() {
		s.stdio.Gone()
		s.stdio.Wait(nil)
		return
	}
	done, giveUp := make(chan struct{}), make(chan struct{})
	go func() {
		var limit <-chan time.Time
		if asked {
			limit = time.After(drainLimit)
		}
		for {
			select {
			case <-done:
				return
			case <-limit:
				close(giveUp)
				return
			case r := <-s.requests:
				if r.what != reqSignal && limit == nil {
					limit = time.After(drainLimit)
				}
			}
		}
	}()
	s.stdio.Gone()
	s.stdio.Wait(giveUp)
	close(done)
}
