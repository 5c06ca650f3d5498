// Package unit writes systemd units that run jobs (systemd.service(5)).
package unit

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// Options are for one unit.
type Options struct {
	Version string
	Job     *job.Job
	Path    string // of the job file, absolute
	// Command is the run of the job; its first word an absolute path.
	Command []string
	// User: for the service manager of a user.
	User bool
	// Delegate: the sandbox's control group is made below the unit's.
	Delegate bool
	Watchdog time.Duration // 0 for none
}

const (
	// startRoom is what a start may take beside its readiness: a minute, and what it
	// takes to read the job and to clean up after others.
	startRoom = 90 * time.Second
	// stopRoom is what an end may take beside the workload's grace.
	stopRoom = 15 * time.Second
)

// Text gives the unit.
func Text(o Options) (string, error) {
	j := o.Job
	command, err := commandLine(o.Command)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by nucleus %s unit for %s.", o.Version, audit.Clean(o.Path))
	line("[Unit]")
	line("Description=Nucleus sandbox %s", specifiers(j.Name))
	line("")
	line("[Service]")
	notifies := j.SDNotify || j.Readiness != nil
	if notifies {
		line("Type=notify")
		line("NotifyAccess=main")
	} else {
		line("Type=exec")
	}
	if j.SocketActivation {
		line("# The sockets are those of the .socket unit of the same name.")
	}
	line("ExecStart=%s", command)
	if o.Delegate {
		line("# The sandbox's control group is made below the unit's own.")
		line("Delegate=yes")
	}
	line("# nucleus stops the workload, as its job says; what is left after that is killed.")
	line("KillMode=mixed")
	line("TimeoutStopSec=%s", span(stopTime(j)))
	if r := j.Readiness; r != nil {
		line("TimeoutStartSec=%s", span(r.Timeout+startRoom))
	}
	if n := unix.SignalNum(j.Stop.Signal); n != 0 {
		line("# A workload that the stop signal ends has ended well.")
		line("SuccessExitStatus=%d", 128+int(n))
	}
	if o.Watchdog > 0 {
		line("WatchdogSec=%s", span(o.Watchdog))
		line("# Instead of SIGABRT, so that nucleus stops the workload and undoes the sandbox.")
		line("WatchdogSignal=SIGTERM")
		line("Restart=on-watchdog")
	}
	line("")
	line("[Install]")
	if o.User {
		line("WantedBy=default.target")
	} else {
		line("WantedBy=multi-user.target")
	}
	return b.String(), nil
}

// stopTime is longer than nucleus takes to end a sandbox.
func stopTime(j *job.Job) time.Duration {
	t := j.Stop.Grace + stopRoom
	for _, h := range j.Hooks {
		if h.Phase == plan.HookPoststop {
			t += h.Timeout
		}
	}
	for _, h := range j.PluginHooks {
		t += 2 * h.Timeout // once when the workload has ended, once when all is undone
	}
	return t
}

// span is a time span as systemd.time(7) has it, rounded up.
func span(d time.Duration) string {
	if d%time.Second == 0 {
		return fmt.Sprintf("%ds", d/time.Second)
	}
	return fmt.Sprintf("%dms", (d+time.Millisecond-1)/time.Millisecond)
}

// commandLine writes words so that systemd reads them as they are.
func commandLine(words []string) (string, error) {
	out := make([]string, len(words))
	for i, w := range words {
		if !utf8.ValidString(w) {
			return "", fmt.Errorf("%q cannot stand in a unit: it is not UTF-8", w)
		}
		if i > 0 { // variables are looked for in arguments alone
			w = strings.ReplaceAll(w, "$", "$$")
		}
		out[i] = quoted(specifiers(w))
	}
	return strings.Join(out, " "), nil
}

// specifiers keeps what looks like one as it is (systemd.unit(5), "Specifiers").
func specifiers(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// quoted writes a word as systemd.syntax(7) says, "Quoting".
func quoted(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_@%+=:,./-$", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
