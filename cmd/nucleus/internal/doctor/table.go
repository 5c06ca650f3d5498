package doctor

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nucleus-runtime/nucleus/core/host"
	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

func writeTable(w io.Writer, r Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "kernel   %s (%s)\n", clean(r.Host.Kernel), r.Host.Arch)
	fmt.Fprintf(&b, "user     %s\n", user(r.Host))
	fmt.Fprintf(&b, "cgroups  %s\n\n", layout(r.Host.Cgroup))

	features := [][3]string{{"FEATURE", "STATE", "DETAIL"}}
	remedies := []string{""}
	said := map[string]string{}
	for _, f := range r.Features {
		detail := f.Detail
		if f.State != fact.Available {
			detail = f.Why
			// What has one reason and one remedy is told once.
			key := f.Why + "\x00" + f.Remedy
			if first, ok := said[key]; ok && f.Remedy != "" {
				detail, f.Remedy = "as "+first, ""
			} else {
				said[key] = f.Name
			}
		}
		features = append(features, [3]string{f.Name, yesNo(f.State), detail})
		remedy := f.Remedy
		if f.State == fact.Available {
			remedy = ""
		}
		remedies = append(remedies, remedy)
	}
	align(&b, features, remedies)

	modes := [][3]string{{"MODE", "COULD RUN", "WHAT IS MISSING"}}
	for _, m := range r.Modes {
		modes = append(modes, [3]string{m.Mode, yesNo(m.State), missing(m)})
	}
	b.WriteByte('\n')
	align(&b, modes, nil)
	networks := [][3]string{{"NETWORK", "COULD WORK", "WHAT IS MISSING"}}
	for _, n := range r.Networks {
		name := n.Plugin
		if n.Path != "" {
			name += ", " + n.Path
		}
		networks = append(networks, [3]string{name, yesNo(n.State), strings.Join(append(slices.Clone(n.Missing), n.Unsure...), ", ")})
	}
	b.WriteByte('\n')
	align(&b, networks, nil)
	runtimes := [][3]string{{"RUNTIME", "COULD WORK", "WHAT IS MISSING"}}
	remedies = []string{""}
	for _, v := range r.Runtimes {
		lack := strings.Join(append(slices.Clone(v.Missing), v.Unsure...), ", ")
		if v.Why != "" {
			lack += ": " + v.Why
		}
		runtimes = append(runtimes, [3]string{v.Plugin, yesNo(v.State), lack})
		remedies = append(remedies, v.Remedy)
	}
	b.WriteByte('\n')
	align(&b, runtimes, remedies)
	_, err := io.WriteString(w, b.String())
	return err
}

// align writes rows with a column's width each, and under a row its remedy,
// which may have several lines.
func align(b *strings.Builder, rows [][3]string, remedies []string) {
	var width [2]int
	for i := range rows {
		for j := range rows[i] {
			rows[i][j] = clean(rows[i][j])
		}
		for j := range width {
			width[j] = max(width[j], utf8.RuneCountInString(rows[i][j]))
		}
	}
	for i, row := range rows {
		line := fmt.Sprintf("%-*s  %-*s  %s", width[0], row[0], width[1], row[1], row[2])
		b.WriteString(strings.TrimRight(line, " ") + "\n")
		if remedies == nil || remedies[i] == "" {
			continue
		}
		// A command of several lines is meant to be copied, and starts at
		// the margin so that its here-document still ends.
		first, rest, _ := strings.Cut(remedies[i], "\n")
		fmt.Fprintf(b, "%*s  remedy: %s\n", width[0], "", clean(first))
		for l := range strings.Lines(rest) {
			b.WriteString(clean(strings.TrimSuffix(l, "\n")) + "\n")
		}
	}
}

func missing(m host.ModeVerdict) string {
	var parts []string
	if len(m.Missing) > 0 {
		parts = append(parts, strings.Join(m.Missing, ", "))
	}
	if len(m.Unsure) > 0 {
		parts = append(parts, "could not tell: "+strings.Join(m.Unsure, ", "))
	}
	if len(m.Degraded) > 0 {
		parts = append(parts, "starts without: "+strings.Join(m.Degraded, ", "))
	}
	return strings.Join(parts, "; ")
}

func user(h fact.Host) string {
	s := fmt.Sprintf("uid %d", h.EUID)
	if h.UserName != "" {
		s = fmt.Sprintf("%s (%s)", clean(h.UserName), s)
	}
	if h.Privileged {
		s += ", privileged"
	}
	if h.UserNS {
		s += ", inside a user namespace"
	}
	return s
}

func layout(c fact.Cgroup) string {
	if c.Layout == "" {
		return "unknown"
	}
	return clean(c.Layout)
}

func yesNo(s fact.State) string {
	switch s {
	case fact.Available:
		return "yes"
	case fact.Unavailable:
		return "no"
	}
	return "unknown"
}

// clean keeps what comes from outside (names, paths, other programs' messages)
// from steering the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
