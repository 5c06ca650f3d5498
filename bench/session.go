package main

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

// levels are the numbers of concurrent launchers.
var levels = []int{1, 2, 4, 8}

// row is a peer with what was measured of it.
type row struct {
	peer
	cold       []float64 // milliseconds, all rounds pooled
	cpu        []float64 // milliseconds, one mean for each round
	commands   []float64 // as cold, of commands in a sandbox that runs
	commandCPU []float64
	rates      map[int][]float64
	idles      *idleReply
}

// session carries out the rounds.
type session struct {
	options       options
	fixture       *fixture
	report        *report
	rows          []*row
	host, private *launcher
	serial        int
}

func (s *session) launcherOf(p peer) *launcher {
	if p.host {
		return s.host
	}
	return s.private
}

// ask measures one row, and drops the row with the reason when that fails: a
// sandbox that does not run has no time.
func (s *session) ask(r *row, req request, argv ...string) (reply, bool) {
	if r.skip != "" {
		return reply{}, false
	}
	c, err := r.make(argv...)
	if err == nil {
		s.serial++
		req.Command, req.Serial = c, fmt.Sprintf("bench-%d-%d", os.Getpid(), s.serial)
		if s.fixture.uid != os.Geteuid() {
			req.UID, req.GID = s.fixture.uid, s.fixture.gid
		}
		var answer reply
		if answer, err = s.launcherOf(r.peer).measure(req); err == nil {
			return answer, true
		}
	}
	r.skip = err.Error()
	fmt.Fprintf(os.Stderr, "bench: %s is left out: %v\n", r.name, err)
	return reply{}, false
}

// proveAll runs each peer once, so that one that cannot run here is left out
// before the rounds begin.
func (s *session) proveAll() {
	for _, r := range s.rows {
		s.ask(r, request{Kind: "cold", Count: 1}, "/bin/true")
	}
}

func (s *session) cold() {
	for round := range s.options.rounds {
		progress("cold start", round, s.options.rounds)
		for _, r := range s.rows {
			answer, ok := s.ask(r, request{Kind: "cold", Count: s.options.runs}, "/bin/true")
			if !ok {
				continue
			}
			for _, took := range answer.Cold.Times {
				r.cold = append(r.cold, milliseconds(took))
			}
			r.cpu = append(r.cpu, milliseconds(answer.Cold.CPU))
		}
	}
}

func (s *session) rate() {
	rounds := max(1, s.options.rounds/2)
	for round := range rounds {
		progress("sandboxes per second", round, rounds)
		for _, level := range levels {
			for _, r := range s.rows {
				if r.coldOnly {
					continue
				}
				answer, ok := s.ask(r, request{Kind: "rate", Parallel: level, Millis: int(s.options.seconds * 1000)}, "/bin/true")
				if !ok {
					continue
				}
				if r.rates == nil {
					r.rates = map[int][]float64{}
				}
				r.rates[level] = append(r.rates[level], float64(answer.Rate.Done)/answer.Rate.Elapsed.Seconds())
			}
		}
	}
}

func (s *session) idle() {
	for i, r := range s.rows {
		progress("idle sandboxes", i, len(s.rows))
		if r.coldOnly {
			continue
		}
		if answer, ok := s.ask(r, request{Kind: "idle", Count: s.options.sandboxes}, payloadArgs...); ok {
			r.idles = &answer.Idle
		}
		time.Sleep(time.Second) // the kernel frees namespaces in the background
	}
}

// exec measures commands in a sandbox of each peer, which is there for a round.
func (s *session) exec() {
	for round := range s.options.rounds {
		progress("commands in a sandbox", round, s.options.rounds)
		for _, r := range s.rows {
			if r.coldOnly || !r.execs {
				continue
			}
			answer, ok := s.ask(r, request{Kind: "exec", Count: s.options.runs}, payloadArgs...)
			if !ok {
				continue
			}
			for _, took := range answer.Cold.Times {
				r.commands = append(r.commands, milliseconds(took))
			}
			r.commandCPU = append(r.commandCPU, milliseconds(answer.Cold.CPU))
		}
	}
}

func progress(what string, at, of int) {
	fmt.Fprintf(os.Stderr, "bench: %s, %d of %d\n", what, at+1, of)
}

func credential(uid, gid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{uint32(gid)}}}
}
