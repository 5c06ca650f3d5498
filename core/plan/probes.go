package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/probe"
)

// probes follows the Landlock rules, which hold for a probe as for the workload.
func (m *maker) probes() {
	if r := m.j.Readiness; r != nil {
		m.p.Readiness = &Readiness{Notify: r.Notify, Interval: r.Interval, Timeout: r.Timeout}
		if !r.Notify {
			m.p.Readiness.Probe = m.probe("readiness", r.Probe)
		}
	}
	if h := m.j.Health; h != nil {
		m.p.Health = &Health{Probe: m.probe("health", h.Probe), Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries, OnFailure: h.OnFailure}
	}
	if r := m.j.Restart; r != nil {
		m.p.Restart = &Restart{On: r.On, Attempts: r.Attempts, Backoff: r.Backoff}
	}
}

func (m *maker) probe(block string, from job.Probe) Probe {
	p := Probe{Exec: from.Exec, TCP: from.TCP, HTTP: from.HTTP}
	kind := block + ".tcp"
	switch {
	case p.TCP != 0:
		// A server may listen on either.
		p.Addrs = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.TCP), netip.AddrPortFrom(netip.IPv6Loopback(), p.TCP)}
	case p.HTTP != "":
		kind = block + ".http"
		addr, _, err := probe.HTTPRequest(p.HTTP)
		var ue *probe.URLError
		if errors.As(err, &ue) { // of a job that no decoder has read
			m.fail(kind, `write: http = "http://127.0.0.1:8080/ok"`, "not a probe URL: %s", ue.Why)
			return p
		}
		p.Addrs = []netip.AddrPort{addr}
	default:
		return p
	}
	m.mayConnect(kind, p.Addrs[0].Port())
	return p
}

// mayConnect refuses a probe that the workload's own rules would refuse whenever it
// is tried.
func (m *maker) mayConnect(kind string, port uint16) {
	l := m.p.Landlock
	if l.HandledNet&llConnectTCP == 0 {
		return
	}
	ports := []uint16{port}
	for _, p := range l.Ports {
		if p.Rights&llConnectTCP == 0 {
			continue
		}
		if p.Port == port {
			return
		}
		ports = append(ports, p.Port)
	}
	slices.Sort(ports)
	m.fail(kind, fmt.Sprintf("write in security, landlock, tcp: connect = [%s]", strings.Trim(strings.Join(strings.Fields(fmt.Sprint(ports)), ", "), "[]")),
		"the probe may do what the workload may, whose Landlock rules have no connect to TCP port %d", port)
}

// String is the probe as it is shown to people.
func (p Probe) String() string {
	switch {
	case p.TCP != 0:
		return fmt.Sprintf("tcp %d", p.TCP)
	case p.HTTP != "":
		return fmt.Sprintf("http %q", p.HTTP)
	}
	return fmt.Sprintf("%q", p.Exec)
}

// does tells what a try is.
func (p Probe) does() string {
	const as = ", restricted as the workload, "
	if len(p.Addrs) == 0 {
		return "init runs it" + as
	}
	does := "init's child" + as + "connects to " + p.Addrs[0].String()
	for _, a := range p.Addrs[1:] {
		does += ", if it cannot to " + a.String()
	}
	if p.HTTP != "" {
		does += " and wants a status from 200 to 399"
	}
	return does + ", "
}

func (e *explainer) probes() {
	if r := e.p.Readiness; r != nil && r.Notify {
		e.add("readiness", "READY=1 of the workload", fmt.Sprintf("not ready after %s ends the sandbox", r.Timeout), "readiness")
	} else if r != nil {
		interval, limit := probe.Readiness{Interval: r.Interval, Timeout: r.Timeout}.Rhythm()
		e.add("readiness", r.String(), fmt.Sprintf("%severy %s, at most %s a try; not ready after %s ends the sandbox", r.does(), interval, min(limit, r.Timeout), r.Timeout), "readiness")
	}
	if h := e.p.Health; h != nil {
		grace := ""
		if h.StartPeriod > 0 {
			grace = fmt.Sprintf(", those of the first %s not counted,", h.StartPeriod)
		}
		end := "end the sandbox"
		if h.OnFailure == "restart" {
			end = "end it, and it is started again"
		}
		e.add("health", h.String(), fmt.Sprintf("%severy %s, at most %s a try; %d failures in a row%s %s", h.does(), h.Interval, h.Timeout, h.Retries, grace, end), "health")
	}
	if r := e.p.Restart; r != nil {
		e.add("restart", "on "+r.On, fmt.Sprintf("the supervisor makes the sandbox anew after %s, then twice that, up to a minute; at most %d times in a row", r.Backoff, r.Attempts), "restart")
	}
}
