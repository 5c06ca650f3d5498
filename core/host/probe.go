package host

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// place is where a probe does its thing.
type place int

const (
	// plain: a child with nothing new.
	plain place = iota
	// sandboxed: as root of a new user namespace, as init of a sandbox is. Where
	// that is impossible, a privileged caller's child goes without.
	sandboxed
	// supervised: as the supervisor would do it. With privilege in the initial
	// user namespace, without it like sandboxed.
	supervised
)

// probe is one way to find out about a feature by using it.
type probe struct {
	name  string
	place place
	flags uintptr  // namespaces that the child is born in, besides the user namespace
	needs []string // features without which this one cannot be had
	// run is the body in the child. arg is the directory for probes of one.
	run     func(arg string) (detail string, err error)
	explain func(unix.Errno, fact.Host, restrictions) (why, remedy string)
}

// ProbeOptions says what Probe looks at.
type ProbeOptions struct {
	// Host is what Quick found, with the Cgroup facts filled in.
	Host fact.Host
	// StateRoot is the directory that sandboxes' state lives in, or will; Dirs
	// are further directories that jobs want to bind. Both only choose the
	// file systems on which idmapped mounts are tried.
	StateRoot string
	Dirs      []string
	// Timeout bounds one probe, 5 s if 0.
	Timeout time.Duration
	// Only limits the probes to these features and what they need; nil is all.
	Only []string
}

const defaultTimeout = 5 * time.Second

// Probe finds out about every feature that Nucleus uses, by using it in a
// throw-away child of this program, whose main must call MaybeChild first. The
// result is in a fixed order. What cannot be found out is Unknown, with why.
func Probe(ctx context.Context, o ProbeOptions) []fact.Feature {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	s := &session{o: o, res: readRestrictions(""), slots: make(chan struct{}, max(2, runtime.NumCPU())), done: map[string]*result{}}
	if err := s.checkStart(ctx); err != nil {
		s.broken = "no probe can be started: " + firstLine(err)
	}

	steps := s.steps()
	for _, st := range steps {
		s.done[st.name] = &result{ready: make(chan struct{})}
	}
	var wg sync.WaitGroup
	for _, st := range steps {
		wg.Go(func() {
			r := s.done[st.name]
			defer close(r.ready)
			r.feature = s.finish(ctx, st)
		})
	}
	wg.Wait()
	out := make([]fact.Feature, len(steps))
	for i, st := range steps {
		out[i] = s.done[st.name].feature
	}
	return out
}

// session is one run of Probe.
type session struct {
	o      ProbeOptions
	res    restrictions
	slots  chan struct{} // bounds the children alive at once
	broken string        // why no child can be started at all
	done   map[string]*result
}

type result struct {
	ready   chan struct{} // closed when feature is set
	feature fact.Feature
}

// step finds one feature, after the ones that it needs.
type step struct {
	name  string
	needs []string
	find  func(ctx context.Context) fact.Feature
}

func (s *session) steps() []step {
	var all []step
	child := func(p probe, arg string) step {
		needs := p.needs
		if p.name == featUserNS {
			// What all the others need.
		} else if p.place == sandboxed || p.place == supervised && !s.o.Host.Privileged {
			needs = append([]string{featUserNS}, needs...)
		}
		return step{p.name, needs, func(ctx context.Context) fact.Feature { return s.probe(ctx, p, arg) }}
	}
	for _, p := range probes() {
		switch p.name {
		case featIDMapped:
			all = append(all, child(p, existing(s.o.StateRoot)))
			for _, dir := range s.o.Dirs {
				at := p
				at.name = featIDMapped + ":" + dir
				all = append(all, child(at, dir))
			}
		default:
			all = append(all, child(p, ""))
		}
		if p.name == featUserNS {
			all = append(all, step{featSubID, []string{featUserNS}, s.subIDs})
		}
	}
	all = append(all, s.cgroupSteps()...)
	all = append(all, step{featLockdown, nil, func(context.Context) fact.Feature { return s.o.Host.Feature(featLockdown) }})
	if s.o.Only == nil {
		return all
	}
	return closure(all, s.o.Only)
}

// closure is the wanted steps and all that they need, in the order of all.
func closure(all []step, want []string) []step {
	keep := map[string]bool{}
	for _, name := range want {
		keep[name] = true
	}
	for i := len(all) - 1; i >= 0; i-- {
		if keep[all[i].name] {
			for _, n := range all[i].needs {
				keep[n] = true
			}
		}
	}
	return slices.DeleteFunc(all, func(st step) bool { return !keep[st.name] })
}

// finish waits for what the step needs, and then finds the feature.
func (s *session) finish(ctx context.Context, st step) fact.Feature {
	for _, name := range st.needs {
		r := s.done[name]
		<-r.ready
		need := r.feature
		if need.State == fact.Available || name == featUserNS && s.o.Host.Privileged && st.name != featSubID {
			continue
		}
		f := fact.Feature{Name: st.name, Since: since(st.name), State: need.State, Remedy: need.Remedy}
		if need.State == fact.Unavailable {
			f.Why = fmt.Sprintf("needs %s, which is unavailable", name)
		} else {
			f.Why = fmt.Sprintf("needs %s, and whether that works is not known", name)
		}
		return f
	}
	s.slots <- struct{}{}
	defer func() { <-s.slots }()
	return st.find(ctx)
}

func (s *session) probe(ctx context.Context, p probe, arg string) fact.Feature {
	if known := s.o.Host.Feature(p.name); p.static() && known.State == fact.Unavailable {
		return known
	}
	if s.broken != "" {
		return fact.Feature{Name: p.name, Since: since(p.name), Why: s.broken}
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	a, err := ask(ctx, p.baseName(), arg, p.attr(s.o.Host, s.userNS()))
	return p.judge(a, err, s.o.Host, s.res)
}

// userNS reports whether children can be born in a user namespace. It may be
// asked only by steps that need userns, or when that is decided.
func (s *session) userNS() bool {
	r, ok := s.done[featUserNS]
	if !ok {
		return true
	}
	select {
	case <-r.ready:
		return r.feature.State == fact.Available
	default:
		return true // the probe of user namespaces itself
	}
}

// static: Quick's "unavailable" is the kernel's own word, which a probe could
// only repeat with less precision.
func (p *probe) static() bool {
	switch p.name {
	case featLandlock, featLandlockTCP, featLandlockScope, featUserNS:
		return true
	}
	return false
}

// baseName is what the child knows the probe by.
func (p *probe) baseName() string {
	if len(p.name) > len(featIDMapped) && p.name[:len(featIDMapped)+1] == featIDMapped+":" {
		return featIDMapped
	}
	return p.name
}

func (p *probe) attr(h fact.Host, userNS bool) *syscall.SysProcAttr {
	switch {
	case p.place == plain:
		return &syscall.SysProcAttr{}
	case p.place == supervised && h.Privileged, h.Privileged && !userNS:
		return &syscall.SysProcAttr{Cloneflags: p.flags}
	}
	return userNSAttr(p.flags)
}

// clones: the child is born in namespaces of its own.
func (p *probe) clones(h fact.Host) bool { return p.attr(h, true).Cloneflags != 0 }

// checkStart makes sure that a child can be started at all, so that later
// failures to start are about what the child is born with.
func (s *session) checkStart(ctx context.Context) error {
	if err := unix.Access(selfExe, unix.X_OK); err != nil {
		return fmt.Errorf("%s, is /proc mounted? %w", selfExe, err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	_, err := ask(ctx, startProbe, "", &syscall.SysProcAttr{})
	return err
}

// existing is the nearest directory above p that exists.
func existing(p string) string {
	for p != "" && p != "/" {
		if fi, err := os.Stat(p); err == nil && fi.IsDir() {
			return p
		}
		p = parentDir(p)
	}
	return "/"
}
