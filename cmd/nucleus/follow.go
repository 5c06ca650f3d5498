package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/control"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/logs"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

func (a *app) logsCommand() *cobra.Command {
	var q logs.Query
	var since string
	var timestamps, asJSON bool
	c := &cobra.Command{
		Use: "logs [-f] [-n LINES] [-since TIME] NAME", Short: "Print what the workload of a detached sandbox has written",
		Long: `Print what the workload of a detached sandbox has written to its standard output and
error. On a terminal control characters are shown as text. At most 3 files of 10 MiB
are kept; older output is forgotten. What was written to standard error goes to
standard error.`,
		Example: "  nucleus logs -f web\n  nucleus logs -n 20 -timestamps web\n  nucleus logs -since 10m -json web", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if since != "" {
				var err error
				if q.Since, err = parseSince(since, time.Now()); err != nil {
					return err
				}
			}
			if q.Tail < -1 {
				return &usageError{err: fmt.Errorf("-n %d: write how many lines, or -1 for all", q.Tail), hint: "nucleus logs -n 20 " + args[0]}
			}
			_, x, err := a.find(args[0])
			if err != nil {
				return err
			}
			return a.logs(c.Context(), x, q, timestamps, asJSON)
		},
	}
	c.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on until the sandbox ends")
	c.Flags().IntVarP(&q.Tail, "lines", "n", -1, "print the last LINES lines; -1 for all")
	c.Flags().StringVar(&since, "since", "", "leave out what is older: a duration (10m), or a time as 2006-01-02T15:04:05Z")
	c.Flags().BoolVar(&timestamps, "timestamps", false, "print the time before each line")
	c.Flags().BoolVar(&asJSON, "json", false, "print the records of the log as JSON lines")
	return c
}

func parseSince(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, &usageError{err: fmt.Errorf("-since %q: write a duration, as 10m, or a time, as 2006-01-02T15:04:05Z", s), hint: "nucleus logs -since 10m NAME"}
	}
	return t, nil
}

func (a *app) logs(ctx context.Context, x state.Ref, q logs.Query, timestamps, asJSON bool) error {
	q.Gone = gone(ctx, x)
	safe := func(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
	out := &logs.Printer{W: a.stdout, Timestamps: timestamps, JSON: asJSON, Safe: safe(a.stdout)}
	serr := &logs.Printer{W: a.stderr, Timestamps: timestamps, Safe: safe(a.stderr)}
	err := logs.Read(ctx, x.Path, q, func(r logs.Record) error {
		if r.Lost != 0 && !asJSON {
			a.problem("warning", "some of the output is missing here: it could not be written to the log, or was removed before it was read", "")
			return nil
		}
		if r.Stream == logs.Err && !asJSON {
			return serr.Show(r)
		}
		return out.Show(r)
	})
	if errors.Is(err, os.ErrNotExist) {
		return &hintedError{err: fmt.Errorf("sandbox %q has no log: its output is that of nucleus run in the foreground, or its terminal was handed over", x.Name), hint: "nucleus run -detach -config job.hcl"}
	}
	if errors.Is(err, unix.EPIPE) {
		return nil // the reader wanted no more
	}
	return err
}

// gone tells, from another goroutine's wait, that a sandbox writes nothing more.
func gone(ctx context.Context, x state.Ref) func() bool {
	over := make(chan struct{})
	go func() {
		defer close(over)
		c, err := control.Dial(ctx, x.Path)
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.Call(ctx, supervisor.VerbWait, nil, nil) // however it ends, it is over
	}()
	return func() bool {
		select {
		case <-over:
			return true
		default:
			return false
		}
	}
}

func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use: "events [-f] NAME", Short: "Print the events of a sandbox as JSON lines",
		Long: `Print the events of a sandbox as JSON lines (docs/events.md). Between 4 and 8 MiB of
them are kept.`,
		Example: "  nucleus events web\n  nucleus events -f web", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			_, x, err := a.find(args[0])
			if err != nil {
				return err
			}
			f, err := audit.OpenReader(filepath.Join(x.Path, audit.FileName))
			if err != nil {
				return fmt.Errorf("events: %w", err)
			}
			defer f.Close()
			over := func() bool { return true }
			if follow {
				over = gone(c.Context(), x)
			}
			return tail(c.Context(), a.out, f, over)
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the sandbox ends")
	return c
}

// tail copies whole lines until nothing more comes.
func tail(ctx context.Context, to io.Writer, from io.Reader, over func() bool) error {
	var part []byte
	for {
		last := over()
		r := bufio.NewReader(from) // read to its end each time
		for {
			line, err := r.ReadBytes('\n')
			part = append(part, line...)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			if _, err := to.Write(part); err != nil {
				return err
			}
			part = part[:0]
		}
		if last {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (a *app) attachCommand() *cobra.Command {
	var keys string
	c := &cobra.Command{
		Use: "attach [-detach-keys KEYS] NAME", Short: "Connect to the output of a detached sandbox, and to its terminal if it has one",
		Long: `Connect to the output of a detached sandbox from now on, and to its terminal if it has
one (tty = true in the job). The exit code is the workload's. A reader that is too slow
loses output, with a note; nucleus logs has all of it. Ctrl-C ends the connection, not
the sandbox; at a terminal it is passed on, and the keys to detach end the connection.`,
		Example: "  nucleus attach web", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			detach, err := detachKeys("attach", keys)
			if err != nil {
				return err
			}
			return a.attach(c.Context(), args[0], detach)
		},
	}
	addDetachKeys(c, &keys)
	return c
}

func (a *app) attach(ctx context.Context, ref string, detach []byte) error {
	c, x, err := a.dial(ctx, ref)
	if err != nil {
		return err
	}
	defer c.Close()
	m, files, err := c.Ask(supervisor.VerbAttach, nil)
	if err != nil {
		return controlError(x, err)
	}
	var at supervisor.Attached
	err = m.Decode(&at)
	if err == nil && len(files) != 2 {
		err = fmt.Errorf("the supervisor has sent %d descriptors, want 2", len(files))
	}
	if err != nil {
		control.CloseAll(files)
		return controlError(x, err)
	}
	left, finish, err := a.connect(at, files, detach)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() {
		select {
		case <-left:
			_ = c.Close() // which ends the Recv
		case <-stop:
		}
	}()
	m, extra, err := c.Recv()
	close(stop)
	control.CloseAll(extra)
	finish()
	select {
	case <-left:
		return nil
	default:
	}
	if err != nil {
		return goneError(x)
	}
	var e supervisor.Ended
	if err = m.Err(); err == nil {
		err = m.Decode(&e)
	}
	if err != nil {
		return controlError(x, err)
	}
	a.code = e.Result.ExitCode
	if e.Error != "" {
		return &endedError{code: a.code, text: e.Error}
	}
	return nil
}

// connect copies between the caller's streams and the sandbox's; finish waits for the
// rest of the output. left is closed when the keys to detach were typed.
func (a *app) connect(at supervisor.Attached, files []*os.File, detach []byte) (left <-chan struct{}, finish func(), err error) {
	copied := make(chan struct{}, 2)
	out := func(to, from *os.File) {
		_, _ = io.Copy(to, from) // a stream that the caller has closed takes no more
		_ = from.Close()
		copied <- struct{}{}
	}
	if !at.Terminal {
		go out(a.stdout, files[0])
		go out(a.stderr, files[1])
		return nil, func() { <-copied; <-copied }, nil
	}
	// Input and size go to the terminal itself; its output comes by way of the log.
	keys, err := exec.NewKeys(a.stdin, files[1], detach)
	if err != nil {
		return nil, nil, err
	}
	go out(a.stdout, files[0])
	return keys.Detached(), func() { <-copied; keys.Close() }, nil
}
