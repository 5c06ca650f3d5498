package job

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
	"github.com/nucleus-runtime/nucleus/core/probe"
)

func (d *decoder) readiness(b hclread.Block) {
	r := &Readiness{Interval: time.Second, Timeout: time.Minute}
	d.j.Readiness = r
	attrs := append(d.probe(&r.Probe),
		hclread.Attr{Name: "notify", Read: func(v hclread.Value) {
			r.Notify, _ = v.Bool()
			if !r.Notify {
				delete(d.j.Ranges, b.Child("notify"))
			}
		}},
		hclread.Attr{Name: "interval", Read: duration(&r.Interval, time.Millisecond)},
		hclread.Attr{Name: "timeout", Read: duration(&r.Timeout, time.Millisecond)},
	)
	d.r.Read(b, hclread.Schema{Attrs: attrs})
	d.oneProbe(b, "exec", "tcp", "http", "notify")
}

func (d *decoder) health(b hclread.Block) {
	h := &Health{Interval: 30 * time.Second, Timeout: 5 * time.Second, Retries: 3, OnFailure: "stop"}
	d.j.Health = h
	attrs := append(d.probe(&h.Probe),
		hclread.Attr{Name: "interval", Read: duration(&h.Interval, time.Millisecond)},
		hclread.Attr{Name: "timeout", Read: duration(&h.Timeout, time.Millisecond)},
		hclread.Attr{Name: "start_period", Read: duration(&h.StartPeriod, 0)},
		hclread.Attr{Name: "retries", Read: func(v hclread.Value) { h.Retries = int(count(v, 1, 1000)) }},
		hclread.Attr{Name: "on_failure", Read: enum(&h.OnFailure, "stop", "restart")},
	)
	d.r.Read(b, hclread.Schema{Attrs: attrs, Hints: map[string]string{
		"notify": "Only readiness can wait for a notification: write exec, tcp or http.",
	}})
	d.oneProbe(b, "exec", "tcp", "http")
}

func (d *decoder) probe(p *Probe) []hclread.Attr {
	return []hclread.Attr{
		{Name: "exec", Read: func(v hclread.Value) { p.Exec = d.program(v) }},
		{Name: "tcp", Read: port(&p.TCP)},
		{Name: "http", Read: func(v hclread.Value) { p.HTTP = d.probeURL(v) }},
	}
}

// oneProbe checks that exactly one of the kinds was given.
func (d *decoder) oneProbe(b hclread.Block, kinds ...string) {
	var found []string
	for _, k := range kinds {
		if _, ok := d.j.Ranges[b.Child(k)]; ok {
			found = append(found, k)
		}
	}
	choose := "exec = [\"/bin/check\"], tcp = 8080 or http = \"http://127.0.0.1:8080/ok\""
	if len(kinds) == 4 {
		choose = strings.Replace(choose, " or ", ", ", 1) + " or notify = true"
	}
	switch {
	case len(found) == 0:
		d.r.Error(b.DefRange, "Probe without a kind", fmt.Sprintf("Write one of %s.", choose))
	case len(found) > 1:
		d.r.Error(d.at(b.Child(found[1])), "Probe of several kinds", fmt.Sprintf("%s is given too. Keep exactly one of %s.", found[0], choose))
	}
}

// probeURL checks a URL that is fetched inside the sandbox.
func (d *decoder) probeURL(v hclread.Value) string {
	s, ok := v.String()
	if !ok {
		return ""
	}
	bad := func(why, remedy string) string {
		v.Error("Not a probe URL", fmt.Sprintf("%s: %s; %s.", hclread.Quote(s), why, remedy))
		return ""
	}
	if u, err := url.Parse(s); err == nil && u.Scheme == "https" {
		return bad("it needs certificates, which a probe doesn't check", "write an http URL, or run a client by exec")
	}
	_, _, err := probe.HTTPRequest(s)
	var ue *probe.URLError
	if errors.As(err, &ue) {
		return bad(ue.Why, `write for instance "http://127.0.0.1:8080/ok"`)
	}
	return s
}

func (d *decoder) restart(b hclread.Block) {
	r := &Restart{On: "failure", Attempts: 3, Backoff: time.Second}
	d.j.Restart = r
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "on", Read: enum(&r.On, "failure", "always")},
		{Name: "attempts", Read: func(v hclread.Value) { r.Attempts = int(count(v, 1, 1000000)) }},
		{Name: "backoff", Read: duration(&r.Backoff, 0)},
	}})
}
