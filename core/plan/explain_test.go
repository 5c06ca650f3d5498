package plan

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

// TestEveryLineOfTheJobIsExplained: no attribute that a job can have is missing
// from what plan says, and each is shown with the line that it stands on.
func TestEveryLineOfTheJobIsExplained(t *testing.T) {
	for name, j := range jobFiles(t) {
		p := mustPlan(t, j, rootV2())
		covered := map[string]Line{}
		for _, l := range p.Lines() {
			for _, c := range l.Covers {
				covered[c] = l
			}
			if l.Mechanism == "" || l.Value == "" || l.Phase == "" {
				t.Errorf("%s: %+v says nothing", name, l)
			}
		}
		for path, where := range p.Origins {
			if header(path, p.Origins) || path == "job" {
				continue
			}
			l, ok := covered[path]
			if !ok {
				t.Errorf("%s: %s (%s) is nowhere in the explanation", name, path, where)
				continue
			}
			if !spans(l.From, where) {
				t.Errorf("%s: %s is at %s, its line says %s", name, path, where, l.From)
			}
		}
	}
}

// header reports whether a path is a block that only holds others.
func header(path string, all map[string]string) bool {
	for o := range all {
		if strings.HasPrefix(o, path+".") || strings.HasPrefix(o, path+"[") {
			return true
		}
	}
	return false
}

var fromPattern = regexp.MustCompile(`^(.*):(\d+)(?:-(\d+))?$`)

func spans(from, where string) bool {
	m := fromPattern.FindStringSubmatch(from)
	if m == nil {
		return false
	}
	w := fromPattern.FindStringSubmatch(where)
	first, last, n := number(m[2]), number(m[2]), number(w[2])
	if m[3] != "" {
		last = number(m[3])
	}
	return w[1] == m[1] && first <= n && n <= last
}

// number reads digits that a pattern has matched.
func number(s string) (n int) {
	for _, c := range s {
		n = n*10 + int(c-'0')
	}
	return n
}

func TestTheExplanationHidesValuesOfTheEnvironment(t *testing.T) {
	p := mustPlan(t, jobOf(t, `env = { TOKEN = "hunter2" }`), rootV2())
	var b bytes.Buffer
	if err := Explain(&b, p); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "TOKEN") || strings.Contains(b.String(), "hunter2") {
		t.Error(b.String())
	}
}

// TestTheExplanationIsSafeForATerminal: a job's text forges no line and drives
// no terminal.
func TestTheExplanationIsSafeForATerminal(t *testing.T) {
	p := mustPlan(t, jobOf(t, `hostname = "box"`), rootV2())
	p.Mounts[0].Destination = "/x\x1b[2J\nfs  /  forged"
	p.Degraded = []Degraded{{Name: "landlock", Why: "a\nb\x1b]0;c", Remedy: "\x07"}}
	var b bytes.Buffer
	if err := Explain(&b, p); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(b.String(), "\x1b\x07") || strings.Contains(b.String(), "\nfs  /  forged") || strings.Contains(b.String(), "\nb") {
		t.Errorf("%q", b.String())
	}
}

func TestDegradedProtectionsAreNamedWithTheirRemedy(t *testing.T) {
	h := rootV2()
	h.LandlockABI = 0
	p := mustPlan(t, jobOf(t, `allow_degraded = ["landlock"]`), h)
	var b bytes.Buffer
	if err := Explain(&b, p); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`(?m)^NOT ENFORCED +landlock \(accepted by allow_degraded\) +this kernel has no Landlock`, `(?m)^remedy +boot with lsm=landlock`} {
		if !regexp.MustCompile(want).MatchString(b.String()) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "Landlock ABI") {
		t.Error("it claims Landlock")
	}
}
