package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
	"github.com/nucleus-runtime/nucleus/core/namespaces"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// layers are the directories of the sandbox's overlay, which no path of the host leads to.
type layers struct {
	mu           sync.Mutex
	upper, lower *os.File // nil without one, and once the sandbox is taken down
	since        int64    // when its workload had not begun
}

// keepLayers takes over what came of the overlay when the file system stood.
func (s *Sandbox) keepLayers(fds []int) error {
	if (len(fds) == 2) != (overlayAt(s.plan) != "") {
		channel.CloseAll(fds)
		return phase("fs", fmt.Errorf("%w: %d descriptors", initproto.ErrMessage, len(fds)))
	}
	if len(fds) == 0 {
		return nil
	}
	s.layers.mu.Lock()
	defer s.layers.mu.Unlock()
	s.layers.upper, s.layers.lower, s.layers.since = os.NewFile(uintptr(fds[0]), "upper"), os.NewFile(uintptr(fds[1]), "lower"), time.Now().UnixNano()
	return nil
}

func (l *layers) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.upper != nil {
		_ = l.upper.Close()
		_ = l.lower.Close()
		l.upper, l.lower = nil, nil
	}
}

// take gives copies of the descriptors, nil if there are none.
func (l *layers) take() (upper, lower *os.File, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.upper == nil {
		return nil, nil, nil
	}
	if upper, err = again(l.upper); err != nil {
		return nil, nil, err
	}
	if lower, err = again(l.lower); err != nil {
		_ = upper.Close()
		return nil, nil, err
	}
	return upper, lower, nil
}

func again(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// overlayAt is where the sandbox's overlay is, "" if it has none.
func overlayAt(p *plan.Plan) string {
	if p.Root.Kind == plan.RootOverlay {
		return "/"
	}
	for _, m := range p.Mounts {
		if m.Kind == plan.MountOverlay {
			return m.Destination
		}
	}
	return ""
}

// Changes writes what the sandbox has changed in its overlay to out, a stream of package
// changes, with the contents of files if they are wanted.
//
// A process of its own reads it: what it reads is a workload's, and a user's supervisor may
// not read what belongs to other ids of its sandbox.
func (s *Sandbox) Changes(ctx context.Context, out *os.File, content bool) error {
	at := overlayAt(s.plan)
	if at == "" {
		return &PhaseError{
			Phase: "diff", Err: errors.New("the sandbox has no overlay that collects what it changes"),
			Hint: `write workspace { mode = "overlay" } or rootfs { writable = "overlay" } in the job`,
		}
	}
	upper, lower, err := s.layers.take()
	if err != nil {
		return phase("diff", err)
	}
	if upper == nil {
		return phase("diff", errEnded)
	}
	defer upper.Close()
	defer lower.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // the overlay goes with the sandbox, whose end does not wait for this
		select {
		case <-s.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	var ns *os.File
	if s.plan.IDs.Kind != "none" {
		if ns, err = s.userNS(); err != nil {
			return phase("diff", err)
		}
		defer ns.Close()
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return phase("diff", err)
	}
	defer null.Close()
	what := ""
	if content {
		what = initproto.ChangesContent
	}
	argv := append([]string{"nucleus-init", initproto.ChangesWord, at, what, strconv.FormatInt(s.layers.since, 10)}, ours(s.plan, at)...)
	err = namespaces.ReadWithin(ctx, ns, s.cfg.InitPath, s.cfg.Init, argv, []*os.File{null, out, upper, lower})
	if err != nil && s.over() {
		err = errEnded
	}
	return phase("diff", err)
}

// ours are the paths of an overlay that are there, or not as the lower directory has them,
// because the sandbox was made, as initproto has them.
func ours(p *plan.Plan, at string) []string {
	seen := map[string]bool{}
	var list []string
	add := func(x string) {
		if !seen[x] {
			seen[x] = true
			list = append(list, x)
		}
	}
	below := strings.TrimSuffix(at, "/") + "/"
	own := func(x string) {
		for ; strings.HasPrefix(x, below) && len(x) > len(below); x = path.Dir(x) {
			add(x)
		}
	}
	for _, m := range p.Mounts {
		own(m.Destination)
		if m.Kind == plan.MountContext && strings.HasPrefix(m.Destination, below) {
			add(m.Destination + "/") // a copy, which is not to be written to
		}
	}
	for _, f := range p.Files {
		own(f.Path)
	}
	return list
}
