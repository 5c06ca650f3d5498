package main

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// coldReply has, for each start, the time from just before the fork to the
// reaped exit, and the mean processor time of the tree that was waited for.
type coldReply struct {
	Times []time.Duration
	CPU   time.Duration
}

func measureCold(req request) (coldReply, error) {
	s, err := newStarter(req)
	if err != nil {
		return coldReply{}, err
	}
	defer s.close()
	var r coldReply
	const warmUp = 2
	for n := range req.Count + warmUp {
		took, cpu, err := s.run(n)
		if err != nil {
			return coldReply{}, err
		}
		if n < warmUp {
			continue
		}
		r.Times = append(r.Times, took)
		r.CPU += cpu / time.Duration(req.Count)
	}
	return r, nil
}

// run starts sandbox n and waits for its end, which must be success.
func (s *starter) run(n int) (took, cpu time.Duration, err error) {
	start, err := s.prepare(n)
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	process, err := start()
	if err != nil {
		return 0, 0, err
	}
	state, err := process.Wait()
	took = time.Since(begin)
	if err != nil {
		return 0, 0, err
	}
	if !state.Success() {
		return 0, 0, fmt.Errorf("%v: %s", state, s.complaint())
	}
	return took, state.SystemTime() + state.UserTime(), nil
}

// measureExec times Count commands in one sandbox, which is alone meanwhile.
func measureExec(req request) (r coldReply, err error) {
	hold := req
	hold.Count = 1
	s, err := newStarter(hold)
	if err != nil {
		return coldReply{}, err
	}
	defer s.close()
	start, err := s.prepare(0)
	if err != nil {
		return coldReply{}, err
	}
	stop, err := s.adopt()
	if err != nil {
		return coldReply{}, err
	}
	defer stop()
	defer func() { err = errors.Join(err, s.endAll()) }()
	if _, err := start(); err != nil {
		return coldReply{}, err
	}
	if err := s.waitForPayloads(); err != nil {
		return coldReply{}, err
	}
	commands := req
	commands.Command = command{Argv: withID(req.Command.Exec, req.Serial, 0), Env: req.Command.Env}
	return measureCold(commands)
}

// rateReply is how many sandboxes came and went in how long.
type rateReply struct {
	Done    int
	Elapsed time.Duration
}

// measureRate lets Parallel launchers start one sandbox after the other. Each
// stops at the deadline; what is under way then is still finished and counted,
// and so is its time.
func measureRate(req request) (rateReply, error) {
	s, err := newStarter(req)
	if err != nil {
		return rateReply{}, err
	}
	defer s.close()
	var (
		next, done atomic.Int64
		failure    atomic.Pointer[error]
		launchers  sync.WaitGroup
	)
	begin := time.Now()
	deadline := begin.Add(time.Duration(req.Millis) * time.Millisecond)
	for range req.Parallel {
		launchers.Go(func() {
			for time.Now().Before(deadline) && failure.Load() == nil {
				if _, _, err := s.run(int(next.Add(1))); err != nil {
					failure.CompareAndSwap(nil, &err)
					return
				}
				done.Add(1)
			}
		})
	}
	launchers.Wait()
	if err := failure.Load(); err != nil {
		return rateReply{}, *err
	}
	return rateReply{Done: int(done.Load()), Elapsed: time.Since(begin)}, nil
}
