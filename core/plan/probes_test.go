package plan

import (
	"fmt"
	"strings"
	"testing"
)

// What the plan says of probes is how they are tried.
func TestProbes(t *testing.T) {
	for _, c := range []struct {
		lines  []string
		addrs  string
		what   string
		detail []string
	}{
		{[]string{`readiness {`, `exec = ["/bin/check", "-q"]`, `}`}, "[]", `["/bin/check" "-q"]`, []string{"init runs it, restricted as the workload, every 1s, at most 10s a try; not ready after 1m0s ends the sandbox"}},
		{[]string{`readiness {`, `tcp = 80`, `interval = "1s"`, `timeout = "1s"`, `}`}, "[127.0.0.1:80 [::1]:80]", "tcp 80", []string{"connects to 127.0.0.1:80, if it cannot to [::1]:80, every 500ms, at most 1s a try; not ready after 1s"}},
		{[]string{`readiness {`, `http = "http://LOCALHOST/ok"`, `interval = "20s"`, `}`}, "[127.0.0.1:80]", `http "http://LOCALHOST/ok"`, []string{"to 127.0.0.1:80 and wants a status from 200 to 399, every 20s, at most 20s a try"}},
		{[]string{`health {`, `http = "http://[::1]:8080"`, `start_period = "9s"`, `}`}, "[[::1]:8080]", `http "http://[::1]:8080"`, []string{"to [::1]:8080 and wants", "every 30s, at most 5s a try; 3 failures in a row, those of the first 9s not counted, end the sandbox"}},
	} {
		p, err := Make(jobOf(t, c.lines...), inputs(rootV2()))
		if err != nil {
			t.Fatalf("%v: %v", c.lines, err)
		}
		var got Probe
		name := "readiness"
		if p.Readiness != nil {
			got = p.Readiness.Probe
		} else {
			got, name = p.Health.Probe, "health"
		}
		if s := fmt.Sprint(got.Addrs); s != c.addrs {
			t.Errorf("%v: to %s, want %s", c.lines, s, c.addrs)
		}
		found := false
		for _, row := range p.Lines() {
			if row.Setting != name {
				continue
			}
			found = true
			for _, d := range c.detail {
				if row.Value != c.what || !strings.Contains(row.Mechanism, d) {
					t.Errorf("%v: %q, %q\n\twant %q, …%q…", c.lines, row.Value, row.Mechanism, c.what, d)
				}
			}
		}
		if !found {
			t.Errorf("%v: there is no row %q", c.lines, name)
		}
	}
}
