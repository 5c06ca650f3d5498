// Command nucleus-plugin-seats is a hooks plugin: it lets no more sandboxes run at
// once than a pool has seats. A taken seat is a file with the sandbox's id as its
// name. It is given back at CLEANUP, which comes however the sandbox ends: from
// `nucleus gc` if its supervisor was killed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// version is set by the linker.
var version = "dev"

// operator is the config block of plugin "seats" in the host configuration.
type operator struct {
	Dir   string `hcl:"dir" desc:"The directory of the seats. The plugin must be able to write to it." format:"abs_path"`
	Seats int    `hcl:"seats" desc:"How many sandboxes may run at once." min:"1" max:"10000"`
}

type seats struct{ pool operator }

var _ hooks.Handler = (*seats)(nil)

// Configure is called before anything else.
func (s *seats) Configure(_ context.Context, _ config.Instance, o operator) error {
	if st, err := os.Stat(o.Dir); err != nil || !st.IsDir() {
		return errs.ConfigErrorf(errs.Path("dir"), "%s is no directory", o.Dir)
	}
	s.pool = o
	return nil
}

// Describe says which boundaries of a sandbox's phases this plugin is called at.
func (s *seats) Describe(context.Context, string) (hooks.Subscription, error) {
	return hooks.Subscription{At: hooks.At(hooks.PreNamespaces, hooks.Cleanup)}, nil
}

// OnPhase takes a seat before there is anything of the sandbox, and gives it back
// when there is nothing any more. Both may come twice, and the second may come
// without the first.
func (s *seats) OnPhase(_ context.Context, call hooks.Call, e hooks.Event) (hooks.Answer, error) {
	if e.Boundary == hooks.Cleanup {
		err := os.Remove(filepath.Join(s.pool.Dir, call.SandboxID))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return hooks.Answer{}, err
	}
	return s.take(call.SandboxID)
}

func (s *seats) take(id string) (hooks.Answer, error) {
	// Two sandboxes that start at once must not both count the last seat as free.
	lock, err := os.Open(s.pool.Dir)
	if err != nil {
		return hooks.Answer{}, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return hooks.Answer{}, os.NewSyscallError("flock", err)
	}
	taken, err := os.ReadDir(s.pool.Dir)
	if err != nil {
		return hooks.Answer{}, err
	}
	others := 0
	for _, t := range taken {
		if t.Name() != id {
			others++
		}
	}
	if others >= s.pool.Seats {
		return hooks.Answer{Veto: fmt.Sprintf("all seats are taken: %d", s.pool.Seats)}, nil
	}
	err = os.WriteFile(filepath.Join(s.pool.Dir, id), nil, 0o600)
	if errors.Is(err, fs.ErrPermission) {
		err = errs.Deniedf("%w; let user %d, as whom this plugin runs, own the directory, and writable of its block name it", err, os.Geteuid())
	}
	return hooks.Answer{}, err
}

func main() {
	s := &seats{}
	plugin.Serve(plugin.Plugin{
		Name: "seats", Version: version, Description: "lets no more sandboxes run at once than there are seats",
		Hooks:  s,
		Config: config.To(s),
		// What it knows of sandboxes is in the directory, for which it has a lock.
		Lifetime: plugin.WarmOK,
	})
}
