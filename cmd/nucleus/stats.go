package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

func (a *app) statsCommand() *cobra.Command {
	var follow, asJSON bool
	var metrics string
	c := &cobra.Command{
		Use: "stats [-follow] [-json] [NAME...] | stats -metrics FILE.prom|HOST:PORT|unix:PATH", Short: "Print what sandboxes use: processor, memory, processes, network, I/O",
		Long: `Print what sandboxes use, all that are alive or those that are named. What this host
does not count, or does not limit, is shown as -.

  CPU        processor time; CPU%, with -follow, of one processor since the last line
  THROTTLED  the time that the cpus limit has held it up
  MEMORY     with the page cache of what it reads, and its limit; PEAK the most so far
  OOM        processes that the kernel killed for lack of memory
  PIDS       processes and threads, and their limit
  NET-IN/OUT of the sandbox's own network namespace; - with the host's network
  DENIED     what the network's policy refused
  PRESSURE   the share of the last 10 seconds in which some task had to wait: for a
             processor, for memory, for I/O (cgroup v2)

-metrics gives all of it to Prometheus, for every sandbox that is alive: once into
FILE.prom, which is replaced as a whole, for node_exporter's textfile collector; or to
who asks for /metrics at ADDRESS:PORT (:PORT is loopback) or on a Unix socket, until it is
ended.`,
		Example: `  nucleus stats
  nucleus stats -follow -json web
  nucleus stats -metrics /var/lib/node_exporter/nucleus.prom
  nucleus stats -metrics 127.0.0.1:9477`,
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("metrics") {
				if follow || asJSON || len(args) > 0 {
					return &usageError{err: errors.New("-metrics tells of every sandbox, in its own format"), hint: "leave out the names, -follow and -json"}
				}
				return a.metrics(c.Context(), metrics)
			}
			return a.stats(c.Context(), args, follow, asJSON)
		},
	}
	c.Flags().BoolVar(&follow, "follow", false, "print again every second, until those that are named have ended")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON, a line for each sandbox")
	c.Flags().StringVar(&metrics, "metrics", "", "for Prometheus: write FILE.prom, or serve /metrics at ADDRESS:PORT or unix:PATH")
	return c
}

// account is what one sandbox has answered.
type account struct {
	of     state.Ref
	ref    string // what the user calls it
	stats  supervisor.Stats
	record *supervisor.Record // for metrics alone
	unread error              // why nobody can tell whether there is somebody to ask
	err    error
}

// over tells whether there is nothing to ask any more, or not yet: a supervisor that
// holds its sandbox and does not listen is on its way.
func (x *account) over() bool {
	var nf *state.NotFoundError
	return errors.As(x.err, &nf) || errors.Is(x.err, errEnded) || errors.Is(x.err, errSilent)
}

const (
	askAtOnce = 16
	askTime   = 3 * time.Second // for a supervisor that does not answer
)

// accounts asks for them, side by side: one that is slow holds up no other.
func (a *app) accounts(ctx context.Context, list []account, ask func(context.Context, *account) error) {
	var wg sync.WaitGroup
	turn := make(chan struct{}, askAtOnce)
	for i := range list {
		turn <- struct{}{}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askTime)
			list[i].err = ask(ctx, &list[i])
			cancel()
			<-turn
		})
	}
	wg.Wait()
}

func askStats(ctx context.Context, x *account) error {
	if x.unread != nil {
		return x.unread
	}
	c, err := dialTo(ctx, x.of, x.ref)
	if err != nil {
		return err
	}
	defer c.Close()
	err = c.Call(ctx, supervisor.VerbStats, nil, &x.stats)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("sandbox %q does not answer within %s", x.ref, askTime)
	}
	return controlError(x.of, err)
}

// alive lists the sandboxes that a supervisor holds, or may hold, by name.
func alive(root *state.Root) ([]account, error) {
	refs, err := root.Refs()
	if err != nil {
		return nil, err
	}
	held, unknown, err := root.Held(refs)
	if err != nil {
		return nil, err
	}
	var list []account
	for _, x := range refs {
		if held[x.ID] || unknown[x.ID] != nil {
			list = append(list, account{of: x, ref: x.Name, unread: unknown[x.ID]})
		}
	}
	slices.SortFunc(list, func(a, b account) int {
		return cmp.Or(cmp.Compare(a.of.Name, b.of.Name), cmp.Compare(a.of.ID, b.of.ID))
	})
	return list, nil
}

func (a *app) stats(ctx context.Context, refs []string, follow, asJSON bool) error {
	root, err := a.sandboxes()
	if err != nil {
		return err
	}
	defer root.Close()
	var list []account
	for _, ref := range refs {
		_, x, err := a.find(ref)
		if err != nil {
			return err
		}
		list = append(list, account{of: x, ref: ref})
	}
	earlier := map[string]supervisor.Stats{}
	for first := true; ; first = false {
		if len(refs) == 0 {
			if list, err = alive(root); err != nil {
				return err
			}
		}
		a.accounts(ctx, list, askStats)
		// What ends while we look is no error.
		if len(refs) == 0 || !first {
			list = slices.DeleteFunc(list, func(x account) bool { return x.over() })
			if len(refs) > 0 && len(list) == 0 {
				return nil
			}
		}
		if err := a.showStats(list, earlier, follow, asJSON); err != nil || !follow {
			return err
		}
		clear(earlier)
		for _, x := range list {
			earlier[x.of.ID] = x.stats
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func (a *app) showStats(list []account, earlier map[string]supervisor.Stats, follow, asJSON bool) error {
	var lines [][]string
	failed := false
	for _, x := range list {
		switch {
		case x.err != nil:
			failed = true
			a.problem("error", x.err.Error(), hintOf(x.err))
		case asJSON:
			b, err := json.Marshal(x.stats)
			if err != nil {
				return err
			}
			if _, err := a.out.Write(append(b, '\n')); err != nil {
				return err
			}
		default:
			lines = append(lines, row(x.stats))
			if follow {
				lines[len(lines)-1] = slices.Insert(lines[len(lines)-1], cpuColumn+1, share(earlier[x.of.ID], x.stats))
			}
		}
	}
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	if !asJSON && (len(lines) > 0 || !failed) {
		titles := slices.Clone(columns)
		if follow {
			titles = slices.Insert(titles, cpuColumn+1, "CPU%")
		}
		fmt.Fprintln(t, strings.Join(titles, "\t"))
	}
	for _, x := range lines {
		fmt.Fprintln(t, strings.Join(x, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if failed {
		return errInvalid
	}
	return nil
}

// columns are those of row.
var columns = []string{"NAME", "STATUS", "CPU", "THROTTLED", "MEMORY", "PEAK", "OOM", "PIDS", "NET-IN", "NET-OUT", "DENIED", "READ", "WRITTEN", "PRESSURE"}

const cpuColumn = 2

// row is a line of the table.
func row(s supervisor.Stats) []string {
	r := slices.Repeat([]string{"-"}, len(columns))
	r[0], r[1] = printable(s.Name), string(s.Status)
	if g := s.Cgroup; g != nil {
		if c := g.CPU; c != nil {
			r[2], r[3] = seconds(c.UsageUsec), seconds(c.ThrottledUsec)
		}
		if m := g.Memory; m != nil {
			r[4], r[6] = size(m.Current)+of(m.Limit, size), fmt.Sprint(m.OOMKills)
			if m.Peak != nil {
				r[5] = size(*m.Peak)
			}
		}
		if p := g.Pids; p != nil {
			r[7] = fmt.Sprint(p.Current) + of(p.Limit, func(n uint64) string { return fmt.Sprint(n) })
		}
		if g.IO != nil {
			r[11], r[12] = size(g.IO.ReadBytes), size(g.IO.WriteBytes)
		}
		r[13] = pressure(g)
	}
	if n := s.Network; n != nil {
		var rx, tx uint64
		for _, x := range n.Interfaces {
			rx, tx = rx+x.RxBytes, tx+x.TxBytes
		}
		if len(n.Interfaces) == 0 && n.Flows != nil { // netuserspace needs none
			rx, tx = n.Flows.RxBytes, n.Flows.TxBytes
		}
		r[8], r[9] = size(rx), size(tx)
		if n.Denied != nil {
			r[10] = fmt.Sprint(*n.Denied)
		}
	}
	return r
}

// share is that of one processor between two looks.
func share(from, to supervisor.Stats) string {
	took := to.Time.Sub(from.Time)
	if from.Cgroup == nil || to.Cgroup == nil || from.Cgroup.CPU == nil || to.Cgroup.CPU == nil || took <= 0 || to.Cgroup.CPU.UsageUsec < from.Cgroup.CPU.UsageUsec {
		return "-"
	}
	return fmt.Sprintf("%.1f", float64(to.Cgroup.CPU.UsageUsec-from.Cgroup.CPU.UsageUsec)/float64(took.Microseconds())*100)
}

func seconds(usec uint64) string { return fmt.Sprintf("%.2fs", float64(usec)/1e6) }

// of is what comes after a value that has a limit.
func of(limit *uint64, show func(uint64) string) string {
	if limit == nil {
		return ""
	}
	return "/" + show(*limit)
}

// size shows bytes in units that keep it short.
func size(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 999.95 && unit < 5 {
		v, unit = v/1024, unit+1
	}
	if v == float64(uint64(v)) {
		return fmt.Sprintf("%.0f%ciB", v, "KMGTPE"[unit])
	}
	return fmt.Sprintf("%.1f%ciB", v, "KMGTPE"[unit])
}

// pressure shows that of the three resources.
func pressure(g *cgroups.Stats) string {
	var cpu, memory, io *cgroups.Pressure
	if g.CPU != nil {
		cpu = g.CPU.Pressure
	}
	if g.Memory != nil {
		memory = g.Memory.Pressure
	}
	if g.IO != nil {
		io = g.IO.Pressure
	}
	if cpu == nil && memory == nil && io == nil {
		return "-"
	}
	show := func(p *cgroups.Pressure) string {
		if p == nil {
			return "-"
		}
		return fmt.Sprintf("%.0f%%", p.Some.Avg10)
	}
	return show(cpu) + "/" + show(memory) + "/" + show(io)
}
