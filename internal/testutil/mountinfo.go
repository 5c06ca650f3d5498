package testutil

import (
	"strings"
)

// mountLine is the part of a line of /proc/self/mountinfo that tests look at.
type mountLine struct {
	id, point, fsType, source, superOptions string
}

// parseMountinfo reads the table by hand: the tests must not share a parser,
// and so its mistakes, with the code that they judge.
func parseMountinfo(table string) []mountLine {
	var mounts []mountLine
	for line := range strings.Lines(table) {
		before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		if !ok {
			continue
		}
		head, tail := strings.Fields(before), strings.Fields(after)
		if len(head) < 6 || len(tail) < 2 {
			continue
		}
		m := mountLine{id: head[0], point: unescape(head[4]), fsType: tail[0], source: unescape(tail[1])}
		if len(tail) > 2 {
			m.superOptions = tail[2]
		}
		mounts = append(mounts, m)
	}
	return mounts
}

// unescape undoes the kernel's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// cgroupHierarchy is one mounted cgroup file system.
type cgroupHierarchy struct {
	mountPoint  string
	v2          bool
	controllers []string
}

func (h cgroupHierarchy) has(controller string) bool {
	for _, c := range h.controllers {
		if c == controller {
			return true
		}
	}
	return false
}

func cgroupHierarchies(mountinfo string) []cgroupHierarchy {
	var found []cgroupHierarchy
	for _, m := range parseMountinfo(mountinfo) {
		switch m.fsType {
		case "cgroup2":
			found = append(found, cgroupHierarchy{mountPoint: m.point, v2: true})
		case "cgroup":
			found = append(found, cgroupHierarchy{mountPoint: m.point, controllers: strings.Split(m.superOptions, ",")})
		}
	}
	return found
}
