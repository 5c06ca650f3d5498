package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/cmd/nucleus/internal/signals"
	"github.com/nucleus-runtime/nucleus/core/control"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

type execFlags struct {
	env    []string
	cwd    string
	user   string
	tty    bool
	detach bool
	keys   string
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	c := &cobra.Command{
		Use: "exec [flags] NAME COMMAND ARGS...", Short: "Run a further command in a sandbox that runs",
		Long: `Run a further command in a sandbox that runs. Init makes it, with what holds for the
workload: the same namespaces, filter, capabilities, Landlock rules and limits; that
is read back from the kernel before it starts. Its environment is the job's, without
secrets. The exit code is the command's; 128+n if signal n ended it; 125 if Nucleus
failed, 126 if the command cannot be executed, 127 if it is not found.

Signals are passed on, SIGTERM and SIGHUP with a SIGCONT behind; a second Ctrl-C within 3 seconds kills the command. If this process
ends, the command is killed, unless -detach. The keys to detach (-detach-keys) leave a
command with -tty running.`,
		Example: `  nucleus exec web ls -l /srv
  nucleus exec -tty web /bin/sh
  nucleus exec -env DEBUG=1 -workdir /tmp web -- sh -c 'env; pwd'`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) < 2 || c.ArgsLenAtDash() > 1 {
				return &usageError{err: errors.New("name a sandbox and a command"), hint: "nucleus exec NAME COMMAND ARGS..."}
			}
			return a.exec(c.Context(), &f, args[0], args[1:])
		},
	}
	c.Flags().StringArrayVar(&f.env, "env", nil, "variable of the command's environment, as NAME=VALUE; repeatable")
	c.Flags().StringVar(&f.cwd, "workdir", "", "working directory (default: the job's)")
	c.Flags().StringVar(&f.user, "user", "", "USER or USER:GROUP, numbers or names in the sandbox's own /etc/passwd and /etc/group; a number alone is the group, too (default: the workload's)")
	c.Flags().BoolVar(&f.tty, "tty", false, "give the command a terminal of its own")
	c.Flags().BoolVar(&f.detach, "detach", false, "leave the command running, without input or output")
	addDetachKeys(c, &f.keys)
	return c
}

func addDetachKeys(c *cobra.Command, keys *string) {
	c.Flags().StringVar(keys, "detach-keys", "ctrl-p,ctrl-q", `keys that leave a terminal to itself: characters and ctrl-X, with commas between; "" for none`)
}

func detachKeys(verb, s string) ([]byte, error) {
	keys, err := exec.DetachKeys(s)
	if err != nil {
		return nil, &usageError{err: fmt.Errorf("-detach-keys %q: %w", s, err), hint: "nucleus " + verb + " -detach-keys ctrl-p,ctrl-q NAME"}
	}
	return keys, nil
}

func (a *app) exec(ctx context.Context, f *execFlags, ref string, argv []string) error {
	r := supervisor.ExecRequest{Args: argv, Cwd: f.cwd, TTY: f.tty, Size: exec.SizeOf(a.stdin), Detach: f.detach}
	for _, kv := range f.env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" {
			return &usageError{err: fmt.Errorf("-env %q: write NAME=VALUE", kv)}
		}
		r.Env = append(r.Env, kv)
	}
	if f.tty && f.detach {
		return &usageError{err: errors.New("-tty and -detach: a command without output has no use for a terminal")}
	}
	if f.tty && os.Getenv("TERM") != "" && exec.Getenv(r.Env, "TERM") == "" {
		r.Env = append(r.Env, "TERM="+os.Getenv("TERM"))
	}
	for _, s := range append(append([]string{f.cwd}, argv...), r.Env...) {
		if !utf8.ValidString(s) {
			// The request is JSON: it would be another argument that arrives.
			return &usageError{err: fmt.Errorf("%q is not UTF-8, which what a command is given is to be", s), hint: `nucleus exec NAME sh -c 'printf "\\377"' makes other bytes inside`}
		}
	}
	var err error
	if r.User, r.Account, err = parseUser(f.user); err != nil {
		return err
	}
	keys, err := detachKeys("exec -tty", f.keys)
	if err != nil {
		return err
	}
	std := exec.Streams{In: a.stdin, Out: a.stdout, Err: a.stderr, Piped: true, Detach: keys}
	if f.detach {
		std = exec.Streams{}
	}
	io, err := exec.NewStdio(std, f.tty)
	if err != nil {
		return err
	}
	defer io.Close()
	c, at, err := a.dial(ctx, ref)
	if err != nil {
		return err
	}
	defer c.Close()
	caught, release, err := signals.Catch(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	if err != nil {
		return fmt.Errorf("catching signals: %w", err)
	}
	defer release()
	var pass []*os.File
	if !f.tty {
		pass = io.Files()
	}
	w := &wishes{c: c, io: io, caught: caught, started: make(chan struct{}), done: make(chan struct{}), leave: make(chan struct{})}
	defer close(w.done)
	go w.pass()
	x, started, err := a.runExec(c, at, io, r, pass, w)
	if started {
		io.Wait(w.leave) // whatever has happened: the caller's terminal is raw until then
	}
	if err != nil && w.gaveUp.Load() {
		return unended(at)
	}
	if n := unix.Signal(w.cut.Load()); err != nil && n != 0 {
		return cutOff(at, n)
	}
	if err != nil {
		return err
	}
	if x.Error != "" {
		return &endedError{code: x.ExitCode, text: x.Error}
	}
	a.code = x.ExitCode
	if lost := io.Lost(); lost != nil {
		return fmt.Errorf("output of the command was lost: %w", lost)
	}
	return nil
}

// runExec speaks with the supervisor until the command has ended.
func (a *app) runExec(c *control.Conn, at state.Ref, io *exec.Stdio, r supervisor.ExecRequest, pass []*os.File, w *wishes) (x supervisor.Exited, started bool, err error) {
	m, files, err := c.Ask(supervisor.VerbExec, r, pass...)
	if err != nil {
		return x, false, controlError(at, err)
	}
	if m.Kind == supervisor.KindExited {
		return x, false, m.Decode(&x)
	}
	if err := io.Started(); err != nil {
		return x, false, err
	}
	if r.TTY {
		if len(files) != 1 {
			control.CloseAll(files)
			return x, false, errors.New("the supervisor has sent no terminal")
		}
		if err := io.Terminal(files[0]); err != nil {
			return x, true, err
		}
	}
	if r.Detach {
		return x, true, nil
	}
	close(w.started)
	m, files, err = c.Recv()
	control.CloseAll(files)
	if err == nil && m.Kind == supervisor.KindDetached {
		return x, true, nil
	}
	if err != nil {
		return x, true, errors.New("the sandbox has ended, and the command with it")
	}
	if err := m.Err(); err != nil {
		return x, true, controlError(at, err)
	}
	return x, true, m.Decode(&x)
}

// parseUser gives numbers as such, and what has names to whom the files are that have them.
func parseUser(s string) (*exec.User, string, error) {
	if s == "" {
		return nil, "", nil
	}
	user, group, both := strings.Cut(s, ":")
	if user == "" || both && group == "" || strings.Contains(group, ":") {
		return nil, "", &usageError{err: fmt.Errorf("-user %q: write USER or USER:GROUP, each a name or a number", s)}
	}
	uid, err := strconv.ParseUint(user, 10, 32)
	gid := uid
	if err == nil && both {
		gid, err = strconv.ParseUint(group, 10, 32)
	}
	if err != nil {
		return nil, s, nil
	}
	return &exec.User{UID: uint32(uid), GID: uint32(gid)}, "", nil
}
