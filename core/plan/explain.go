package plan

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Line is one setting of a plan and what enforces it.
type Line struct {
	Phase     string `json:"phase"`
	Setting   string `json:"setting"`
	Value     string `json:"value"`
	Mechanism string `json:"mechanism"`
	// From is where the job says so, "file:line" or "file:first-last", or "default".
	From string `json:"from"`
	// Covers are the job's own paths of what this line is about.
	Covers []string `json:"covers,omitempty"`
}

// Explain prints, for each line of the job and for each default, the mechanism
// that enforces it on this host.
func Explain(w io.Writer, p *Plan) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "job %q, mode %s\n\n", p.Name, p.Mode)
	fmt.Fprintln(t, "PHASE\tSETTING\tVALUE\tENFORCED BY\tFROM")
	for _, l := range p.Lines() {
		setting, value, mechanism := wrap(printable(l.Setting)), wrap(printable(l.Value)), wrap(printable(l.Mechanism))
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", l.Phase, setting[0], value[0], mechanism[0], printable(l.From))
		for i := 1; i < max(len(setting), len(value), len(mechanism)); i++ {
			fmt.Fprintf(t, "\t%s\t%s\t%s\t\n", at(setting, i), at(value, i), at(mechanism, i))
		}
	}
	for _, text := range p.Warnings() {
		fmt.Fprintf(t, "\nWARNING\t%s\n", printable(text))
	}
	for _, d := range p.Degraded {
		accepted := ""
		if d.Accepted {
			accepted = " (accepted by allow_degraded)"
		}
		fmt.Fprintf(t, "\nNOT ENFORCED\t%s%s\t%s\n", d.Name, accepted, printable(d.Why))
		if d.Remedy != "" {
			fmt.Fprintf(t, "remedy\t\t%s\n", printable(d.Remedy))
		}
	}
	return t.Flush()
}

// column is the width that a cell of the table is wrapped at.
const column = 44

// wrap breaks text at spaces into pieces of at most column bytes. A word that
// is longer stays whole. There is always a first piece.
func wrap(s string) []string {
	var out []string
	line := ""
	for _, word := range strings.Fields(s) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) <= column:
			line += " " + word
		default:
			out = append(out, line)
			line = word
		}
	}
	return append(out, line)
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return ""
}

// printable keeps text of the job from forging columns or driving a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// Lines explains the whole plan.
func (p *Plan) Lines() []Line {
	e := &explainer{p: p}
	e.job()
	e.namespaces()
	e.cgroups()
	e.fs()
	e.security()
	e.exec()
	return e.lines
}

type explainer struct {
	p     *Plan
	phase string
	lines []Line
}

// add adds a line that is about the given paths of the job and all below them.
func (e *explainer) add(setting, value, mechanism string, paths ...string) {
	l := Line{Phase: e.phase, Setting: setting, Value: value, Mechanism: mechanism, From: "default"}
	for path := range e.p.Origins {
		for _, p := range paths {
			if path == p || strings.HasPrefix(path, p+".") || strings.HasPrefix(path, p+"[") {
				l.Covers = append(l.Covers, path)
				break
			}
		}
	}
	if len(l.Covers) > 0 {
		slices.Sort(l.Covers)
		l.From = e.from(l.Covers)
	}
	e.lines = append(e.lines, l)
}

// from gives the lines that paths of the job stand on, the files apart.
func (e *explainer) from(paths []string) string {
	type span struct{ first, last int }
	var files []string
	spans := map[string]span{}
	for _, path := range paths {
		file, n := e.p.Origins[path], 0
		if i := strings.LastIndexByte(file, ':'); i >= 0 {
			if line, err := strconv.Atoi(file[i+1:]); err == nil {
				file, n = file[:i], line
			}
		}
		s, seen := spans[file]
		if !seen {
			files = append(files, file)
			s = span{n, n}
		}
		spans[file] = span{min(s.first, n), max(s.last, n)}
	}
	slices.Sort(files)
	for i, f := range files {
		switch s := spans[f]; {
		case s.first == 0:
		case s.first == s.last:
			files[i] = fmt.Sprintf("%s:%d", f, s.first)
		default:
			files[i] = fmt.Sprintf("%s:%d-%d", f, s.first, s.last)
		}
	}
	return strings.Join(files, ", ")
}

func (e *explainer) job() {
	e.phase = "job"
	p := e.p
	e.add("name", p.Name, "name and id of the sandbox", "name")
	mode := map[string]string{
		"agent":        "controls that the job asks for are enforced or the run fails; a default that this host lacks is named",
		"strict-agent": "every protection is enforced or the run fails",
		"production":   "every protection is enforced or the run fails; rootfs attested, limits set, nothing writable and executable",
	}
	e.add("mode", string(p.Mode), mode[string(p.Mode)], "mode")
	if len(p.AllowDegraded) > 0 {
		e.add("allow_degraded", strings.Join(p.AllowDegraded, " "), "not warned about where this host lacks them", "allow_degraded")
	}
	if p.Trust != "" {
		e.add("trust", p.Trust, "the native runtime is refused for untrusted code", "trust")
	}
}
