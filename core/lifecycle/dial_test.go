package lifecycle

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/probe"
)

func addrs(list ...string) (out []netip.AddrPort) {
	for _, a := range list {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return out
}

// What init tells of a process that has dialled is the outcome of the try, in words
// that cannot be made by what is inside.
func TestOutcome(t *testing.T) {
	tcp := plan.Probe{TCP: 80, Addrs: addrs("127.0.0.1:80", "[::1]:80")}
	web := plan.Probe{HTTP: "http://127.0.0.1", Addrs: addrs("127.0.0.1:80")}
	const killed = uint32(unix.SIGKILL)
	for name, c := range map[string]struct {
		probe  plan.Probe
		exited initproto.Exited
		answer string
		slow   bool
		want   string // "" for a pass
	}{
		"connected":                         {tcp, initproto.Exited{Step: initproto.StepAnswered}, "", false, ""},
		"refused by both":                   {tcp, initproto.Exited{Step: initproto.StepConnect, Errno: uint32(unix.ECONNREFUSED)}, "", false, "connecting to 127.0.0.1:80, then [::1]:80: connection refused"},
		"still connecting to the second":    {tcp, initproto.Exited{Step: initproto.StepConnect, ExecIndex: 1, Status: killed}, "", true, "connecting to [::1]:80"},
		"an index of nothing":               {tcp, initproto.Exited{Step: initproto.StepConnect, ExecIndex: 1 << 31, Status: killed}, "", true, "connecting to 127.0.0.1:80, then [::1]:80"},
		"killed by a filter":                {tcp, initproto.Exited{Step: initproto.StepSocket, Status: uint32(unix.SIGSYS)}, "", false, "no socket for 127.0.0.1:80: refused by the seccomp filter"},
		"killed by the workload":            {web, initproto.Exited{Step: initproto.StepReceive, Status: killed}, "", false, "waiting for the answer of 127.0.0.1:80: signal 9 ended the probe"},
		"not even at the gate":              {tcp, initproto.Exited{Step: initproto.StepUID, Errno: uint32(unix.EAGAIN)}, "", false, "preparing the workload: user id: resource temporarily unavailable"},
		"killed before its first step":      {web, initproto.Exited{Status: killed}, "", true, "the probe's process ended at: nothing"},
		"a step that there is not":          {web, initproto.Exited{Step: 4000}, "", false, "the probe's process ended at: unknown step"},
		"a pass":                            {web, initproto.Exited{Step: initproto.StepAnswered}, "HTTP/1.1 200 ", false, ""},
		"a pass whose rest did not come":    {web, initproto.Exited{Step: initproto.StepAnswered, Status: killed}, "HTTP/1.0 302 ", true, ""},
		"a status that is none":             {web, initproto.Exited{Step: initproto.StepAnswered}, "HTTP/1.1 503 ", false, "the answer has status 503"},
		"no HTTP, and then nothing":         {web, initproto.Exited{Step: initproto.StepReceive, Status: killed}, "\x1b[2J\r\n", true, `the answer is no HTTP/1.0 or 1.1: it starts with "\x1b[2J\r\n"`},
		"no answer":                         {web, initproto.Exited{Step: initproto.StepAnswered}, "", false, "127.0.0.1:80 closed the connection without an answer"},
		"half an answer":                    {web, initproto.Exited{Step: initproto.StepReceive, Errno: uint32(unix.ECONNRESET)}, "HTTP/1", false, `waiting for the answer of 127.0.0.1:80 after "HTTP/1": connection reset by peer`},
		"half an answer, and then silence":  {web, initproto.Exited{Step: initproto.StepReceive, Status: killed}, "HTTP/1", true, `waiting for the answer of 127.0.0.1:80 after "HTTP/1"`},
		"connecting alone is no answer":     {web, initproto.Exited{Step: initproto.StepConnect, Status: killed}, "", true, "connecting to 127.0.0.1:80"},
		"a request that could not be sent":  {web, initproto.Exited{Step: initproto.StepSend, Errno: uint32(unix.EPIPE)}, "", false, "sending the request to 127.0.0.1:80: broken pipe"},
		"an answer longer than was asked":   {web, initproto.Exited{Step: initproto.StepAnswered}, "HTTP/1.1 200 OK ", false, ""},
		"an answer to who asked for none":   {tcp, initproto.Exited{Step: initproto.StepAnswered}, "x", false, ""},
		"a pass that says it came too soon": {web, initproto.Exited{Step: initproto.StepAnswered}, "HTTP/1.1 100 ", false, "the answer has status 100"},
	} {
		err := outcome(c.probe, initproto.Ended{Exited: c.exited, Answer: []byte(c.answer)}, !c.slow)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// A remedy is there where the job has one, also behind what judges probes.
func TestProbeRemedies(t *testing.T) {
	custom := &plan.Plan{Seccomp: plan.Seccomp{Profile: "/p.json"}}
	none := &plan.Plan{Network: plan.Network{Backend: "none"}}
	at := addrs("192.0.2.1:80")
	for name, c := range map[string]struct {
		plan *plan.Plan
		last error
		want string // the hint has it; "" for none
	}{
		"a profile's errno":      {custom, &dialError{Addrs: at, Step: initproto.StepSocket, Errno: unix.EPERM}, `allow = ["socket"`},
		"a profile's signal":     {custom, &dialError{Addrs: at, Step: initproto.StepConnect, Signal: unix.SIGSYS}, `allow = ["socket"`},
		"a refusal of the host":  {none, &dialError{Addrs: at, Step: initproto.StepConnect, Errno: unix.EACCES}, "probe by exec"},
		"no IPv6":                {none, &dialError{Addrs: at, Step: initproto.StepConnect, Errno: unix.EADDRNOTAVAIL}, "IPv4"},
		"no network":             {none, &dialError{Addrs: at, Step: initproto.StepConnect, Errno: unix.ENETUNREACH}, `http = "http://127.0.0.1:80/"`},
		"a network without ways": {&plan.Plan{}, &dialError{Addrs: at, Step: initproto.StepConnect, Errno: unix.ENETUNREACH}, ""},
		"nobody listens":         {none, &dialError{Addrs: at, Step: initproto.StepConnect, Errno: unix.ECONNREFUSED}, ""},
		"no process":             {none, &PhaseError{Phase: "exec", Hint: "raise pids", Err: unix.EAGAIN}, "raise pids"},
	} {
		s := &Sandbox{plan: c.plan}
		for _, err := range []error{&probe.NotReadyError{Last: c.last}, &probe.UnhealthyError{Last: &probe.SlowError{Err: c.last}}} {
			var pe *PhaseError
			if e, ok := s.probeFailed("health", err).(*PhaseError); ok { //nolint:errorlint // what is made is not wrapped
				pe = e
			}
			if pe == nil || pe.Origin != "health" || (pe.Hint == "") != (c.want == "") || !strings.Contains(pe.Hint, c.want) {
				t.Errorf("%s: %+v, want …%s…", name, pe, c.want)
			}
		}
	}
}
