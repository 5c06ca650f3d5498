package fs

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
)

// mountTable writes /proc/PID/mountinfo from lines of "path options fstype".
func mountTable(lines ...string) string {
	var b strings.Builder
	for i, l := range lines {
		f := strings.Fields(l)
		fmt.Fprintf(&b, "%d 1 0:%d / %s %s - %s none rw\n", i+20, i+20, f[0], f[1], f[2])
	}
	return b.String()
}

const (
	ro     = unix.MOUNT_ATTR_RDONLY
	nosuid = unix.MOUNT_ATTR_NOSUID
	nodev  = unix.MOUNT_ATTR_NODEV
	noexec = unix.MOUNT_ATTR_NOEXEC
)

func audited() *Prepared {
	p := &Prepared{plan: &plan.Plan{MaskedPaths: []string{"/proc/kcore", "/sys/firmware"}, ReadonlyPaths: []string{"/proc/sys"}}}
	p.expectMount("/", "tmpfs", ro|nosuid|nodev)
	p.expectMount("/usr", "", ro|nosuid|nodev)
	p.expectMount("/proc", "proc", nosuid|nodev|noexec)
	p.expectMount("/my data", "", nosuid|nodev)
	p.expect = append(p.expect, expectation{target: "/sys", fstype: "sysfs", set: ro | nosuid | nodev | noexec, optional: true})
	return p
}

// asPlanned is a table in which nothing is wrong.
var asPlanned = []string{
	"/ ro,nosuid,nodev,relatime tmpfs",
	"/usr ro,nosuid,nodev,relatime ext4",
	"/proc rw,nosuid,nodev,noexec proc",
	`/my\040data rw,nosuid,nodev xfs`,
	"/sys ro,nosuid,nodev,noexec sysfs",
	"/proc/kcore ro,nosuid,noexec tmpfs",
	"/sys/firmware ro,nosuid,nodev,noexec tmpfs",
	"/proc/sys ro,nosuid,nodev,noexec proc",
}

func TestAudit(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(lines []string) []string
		want   string
	}{
		{"as planned", func(l []string) []string { return l }, ""},
		{"a mount is missing", func(l []string) []string { return slices.Delete(l, 1, 2) }, "/usr: no mount"},
		{"an escaped path is missing", func(l []string) []string { return slices.Delete(l, 3, 4) }, "/my data: no mount"},
		{"an optional one is missing", func(l []string) []string { return slices.Delete(l, 4, 5) }, ""},
		{"a flag is missing", func(l []string) []string { l[1] = "/usr rw,nosuid,nodev ext4"; return l }, "/usr: mounted rw,nosuid,nodev, want ro,nosuid,nodev"},
		{"a flag is missing on an escaped path", func(l []string) []string { l[3] = `/my\040data rw,nosuid xfs`; return l }, "/my data: mounted rw,nosuid, want nosuid,nodev"},
		{"a flag that only begins alike", func(l []string) []string { l[1] = "/usr rotten,nosuid,nodev ext4"; return l }, "/usr: mounted rotten,nosuid,nodev, want ro,nosuid,nodev"},
		{"another file system", func(l []string) []string { l[2] = "/proc rw,nosuid,nodev,noexec tmpfs"; return l }, "/proc: file system tmpfs, want proc"},
		{"a mount below a bind has its flags", func(l []string) []string { return append(l, "/usr/local ro,nosuid,nodev ext4") }, ""},
		{"a mount below a bind is writable (W2)", func(l []string) []string { return append(l, "/usr/local rw,nosuid,nodev ext4") }, "/usr/local: mounted rw,nosuid,nodev, want ro,nosuid,nodev"},
		{"a mount that nobody asked for", func(l []string) []string { return append(l, "/mnt ro,nosuid,nodev ext4") }, "/mnt: a mount that nobody asked for (ext4)"},
		{"one in proc", func(l []string) []string { return append(l, "/proc/1/x ro,nosuid,nodev,noexec tmpfs") }, "/proc/1/x: a mount that nobody asked for (tmpfs)"},
		{"a name that only begins like a bind", func(l []string) []string { return append(l, "/usr2 ro,nosuid,nodev ext4") }, "/usr2: a mount that nobody asked for (ext4)"},
		{"stacked: the one above is weaker", func(l []string) []string { return append(l, "/usr rw,nosuid,nodev tmpfs") }, "/usr: mounted rw,nosuid,nodev, want ro,nosuid,nodev"},
		{"stacked: the one below is weaker", func(l []string) []string { return slices.Insert(l, 1, "/usr rw ext4") }, ""},
		{"a mask that can be written", func(l []string) []string { l[5] = "/proc/kcore rw tmpfs"; return l }, "/proc/kcore: mask is writable"},
		{"a path that must be read-only", func(l []string) []string { l[7] = "/proc/sys rw,nosuid,nodev,noexec proc"; return l }, "/proc/sys: mounted rw,nosuid,nodev,noexec, want ro,nosuid,nodev,noexec"},
		{"the old root", func(l []string) []string { return append(l, "/.nucleus/old rw ext4") }, "/.nucleus/old: a mount that nobody asked for (ext4)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bad, err := audited().Audit(strings.NewReader(mountTable(c.change(slices.Clone(asPlanned))...)))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(bad, "; "); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestAuditOfNonsense(t *testing.T) {
	if bad, err := audited().Audit(strings.NewReader("not a table\n")); err == nil {
		t.Errorf("it is taken: %v", bad)
	}
	if bad, err := audited().Audit(strings.NewReader("")); err != nil || len(bad) != 4 {
		t.Errorf("an empty table: %v, %v", bad, err)
	}
}

func TestAttrs(t *testing.T) {
	for _, c := range []struct {
		options []string
		set     uint64
		rest    string
	}{
		{nil, 0, ""},
		{[]string{"rbind", "ro", "nosuid", "nodev", "noexec"}, ro | nosuid | nodev | noexec, ""},
		{[]string{"bind", "rw"}, 0, ""},
		{[]string{"nosuid", "mode=0755", "size=65536"}, nosuid, "mode=0755 size=65536"},
		{[]string{"newinstance", "noexec", "hidepid=invisible"}, noexec, "newinstance hidepid=invisible"},
	} {
		set, rest := attrs(c.options)
		if set != c.set || strings.Join(rest, " ") != c.rest {
			t.Errorf("%v: %#x %v", c.options, set, rest)
		}
	}
}
