package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is one run, written as a Markdown page and a plot beside it.
type report struct {
	options options
	fixture *fixture
	title   string // root or user: names the files too
	pureV2  bool
	started time.Time
	rows    []*row
	trace   string
}

func newReport(o options, f *fixture, title string, pureV2 bool) *report {
	return &report{options: o, fixture: f, title: title, pureV2: pureV2, started: time.Now().UTC()}
}

func (r *report) write() error {
	if err := os.MkdirAll(r.options.out, 0o755); err != nil {
		return err
	}
	page := r.markdown()
	fmt.Print(page)
	if err := os.WriteFile(resultPath(r.options, r.title, ".md"), []byte(page), 0o644); err != nil {
		return err
	}
	return os.WriteFile(resultPath(r.options, r.title, ".svg"), []byte(plot(r)), 0o644)
}

func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmarks, started by %s\n\n%s\n\n", r.title, r.circumstances())
	fmt.Fprintf(&b, "![plot](%s.svg)\n\n", r.title)
	r.coldTable(&b)
	r.rateTable(&b)
	r.idleTable(&b)
	r.execTable(&b)
	for _, row := range r.rows {
		if row.skip != "" {
			fmt.Fprintf(&b, "* %s was left out: %s\n", row.name, row.skip)
		}
	}
	if r.trace != "" {
		fmt.Fprintf(&b, "\n## Where each millisecond goes\n\n`nucleus run -trace`, one start:\n\n```\n%s\n```\n", strings.TrimSpace(r.trace))
	}
	return b.String()
}

func (r *report) circumstances() string {
	var uts unix.Utsname
	_ = unix.Uname(&uts) // cannot fail with a valid buffer
	load, _ := os.ReadFile("/proc/loadavg")
	lines := []string{
		fmt.Sprintf("%s, Linux %s, %d processors, load average %s.", r.started.Format("2006-01-02 15:04 MST"),
			unix.ByteSliceToString(uts.Release[:]), runtime.NumCPU(), strings.Join(strings.Fields(string(load))[:3], " ")),
		fmt.Sprintf("Payload: static busybox. Filter for all peers but Nucleus, which has its own: %d instructions. "+
			"Nucleus sets %s, crun and runc %s.", r.fixture.filterInstructions(), r.fixture.nucleusLimitsText(), r.fixture.limitsText()),
	}
	if !r.pureV2 {
		lines = append(lines, "The host has cgroup v1 hierarchies, which crun refuses: the peers run in a private mount namespace with a fresh "+
			"cgroup v2 mount that has no controllers, Nucleus on the host's own hierarchies.")
	}
	if r.title == "user" && !r.pureV2 {
		lines = append(lines, "An ordinary user has no delegated cgroup here, so nobody sets limits.")
	}
	for _, tool := range []string{"bwrap", "crun", "runc"} {
		if out, err := exec.Command(tool, "--version").Output(); err == nil {
			first, _, _ := strings.Cut(string(out), "\n")
			lines = append(lines, first+".")
		}
	}
	return strings.Join(lines, "\n")
}

func (r *report) coldTable(b *strings.Builder) {
	if !slices.ContainsFunc(r.rows, func(row *row) bool { return len(row.cold) > 0 }) {
		return
	}
	fmt.Fprintf(b, "## Cold start\n\nFrom fork to reaped exit of `/bin/true`, milliseconds, %d rounds of %d.\n\n", r.options.rounds, r.options.runs)
	b.WriteString("| peer | isolation | median | p95 | min | max | processor time | x floor |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	first := quantile(r.rows[0].cold, 0.5)
	for _, row := range r.rows {
		if len(row.cold) == 0 {
			continue
		}
		median := quantile(row.cold, 0.5)
		fmt.Fprintf(b, "| %s | %s | %.2f | %.2f | %.2f | %.2f | %.2f | %.2f |\n", row.name, row.isolation, median, quantile(row.cold, 0.95),
			slices.Min(row.cold), slices.Max(row.cold), quantile(row.cpu, 0.5), median/first)
	}
	b.WriteString("\n")
	if ours := r.median("nucleus"); ours > 0 {
		for _, name := range []string{"floor + seccomp", "bubblewrap + seccomp", "crun", "runc"} {
			if theirs := r.median(name); theirs > 0 {
				fmt.Fprintf(b, "* nucleus takes %.2f times as long as %s\n", ours/theirs, name)
			}
		}
		for _, row := range r.rows {
			if with := r.median(row.name); row.coldOnly && with > 0 {
				fmt.Fprintf(b, "* %s takes %.2f times as long as nucleus, %.1f ms more\n", row.name, with/ours, with-ours)
			}
		}
		b.WriteString("\n")
	}
}

// median is 0 for a row that was not measured.
func (r *report) median(name string) float64 {
	return r.medianOf(name, func(row *row) []float64 { return row.cold })
}

func (r *report) medianOf(name string, values func(*row) []float64) float64 {
	for _, row := range r.rows {
		if row.name == name && len(values(row)) > 0 {
			return quantile(values(row), 0.5)
		}
	}
	return 0
}

func (r *report) execTable(b *strings.Builder) {
	commands := func(row *row) []float64 { return row.commands }
	if !slices.ContainsFunc(r.rows, func(row *row) bool { return len(row.commands) > 0 }) {
		return
	}
	fmt.Fprintf(b, "## A further command\n\nFrom fork to reaped exit of the client that runs `/bin/true` in a sandbox that is there, milliseconds, "+
		"%d rounds of %d. Processor time is the client's, without what the supervisor and init have done for it.\n\n", r.options.rounds, r.options.runs)
	b.WriteString("| peer | isolation | median | p95 | min | max | processor time |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, row := range r.rows {
		if v := row.commands; len(v) > 0 {
			fmt.Fprintf(b, "| %s | %s | %.2f | %.2f | %.2f | %.2f | %.2f |\n", row.name, row.isolation, quantile(v, 0.5), quantile(v, 0.95),
				slices.Min(v), slices.Max(v), quantile(row.commandCPU, 0.5))
		}
	}
	b.WriteString("\n")
	for _, name := range []string{"crun", "crun + userns", "runc", "runc + userns"} {
		if ours, theirs := r.medianOf("nucleus", commands), r.medianOf(name, commands); ours > 0 && theirs > 0 {
			fmt.Fprintf(b, "* nucleus exec takes %.2f times as long as %s exec\n", ours/theirs, name)
		}
	}
	b.WriteString("\n")
}

func (r *report) rateTable(b *strings.Builder) {
	if !slices.ContainsFunc(r.rows, func(row *row) bool { return row.rates != nil }) {
		return
	}
	b.WriteString("## Sandboxes per second\n\nStarted and finished by 1, 2, 4 and 8 concurrent launchers; median (min to max).\n\n| peer |")
	for _, level := range levels {
		fmt.Fprintf(b, " %d |", level)
	}
	b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(levels)) + "\n")
	for _, row := range r.rows {
		if row.rates == nil {
			continue
		}
		fmt.Fprintf(b, "| %s |", row.name)
		for _, level := range levels {
			if rates := row.rates[level]; len(rates) > 0 {
				fmt.Fprintf(b, " %.0f (%.0f to %.0f) |", quantile(rates, 0.5), slices.Min(rates), slices.Max(rates))
			} else {
				b.WriteString(" |")
			}
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
}

func (r *report) idleTable(b *strings.Builder) {
	if !slices.ContainsFunc(r.rows, func(row *row) bool { return row.idles != nil }) {
		return
	}
	fmt.Fprintf(b, "## Memory of an idle sandbox\n\nKiB each, with %d alive (`sleep`). Support is every process that stays for the sandbox: "+
		"supervisor, monitor, init.\n\n", r.options.sandboxes)
	b.WriteString("| peer | support processes | support PSS | payload PSS | kernel memory | MemAvailable |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, row := range r.rows {
		if row.idles == nil {
			continue
		}
		i := row.idles
		fmt.Fprintf(b, "| %s | %.0f | %.0f | %.0f | %.0f | %.0f |\n", row.name, i.SupportProcesses, i.SupportPSS, i.PayloadPSS, i.Kernel, i.Available)
		if i.Unreadable > 0 {
			fmt.Fprintf(b, "| | %d processes could not be looked into; run as root | | | | |\n", i.Unreadable)
		}
	}
	b.WriteString("\n")
}
