package attack

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// posture is what the attacker finds of its own confinement (attacker/posture.go).
type posture struct {
	Status     map[string]string
	Threads    []string
	Namespaces map[string]string
	Mounts     []string
	Files      map[string]string
	Limits     map[string]string
	Env        []string
	Cwd, Root  string
	Entries    []string
	Devices    []string
	Pids       int
	UIDMap     string
	GIDMap     string
	SetGroups  string
	Cgroup     string
	Keys       string
}

// lowered gives SOFT:HARD with less of a hard limit that is a number.
func lowered(limit string, share func(hard uint64) uint64) string {
	soft, hard, _ := strings.Cut(limit, ":")
	h, err := strconv.ParseUint(hard, 10, 64)
	if err != nil {
		return limit
	}
	h = share(h)
	if s, err := strconv.ParseUint(soft, 10, 64); err == nil {
		soft = strconv.FormatUint(min(s, h), 10)
	}
	return soft + ":" + strconv.FormatUint(h, 10)
}

func (r result) posture(t *testing.T) posture {
	t.Helper()
	lines := r.lines("POSTURE")
	if len(lines) != 1 {
		t.Fatalf("no posture: code %d\n%s\n%s", r.code, r.out, r.err)
	}
	var p posture
	if err := json.Unmarshal([]byte(lines[0]), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

const noCaps = "0000000000000000"

// The whole posture of a workload, seen from inside, on the main thread and on
// threads made later, against everything that it may be. What is not in the
// expected value is a failure too, so that a new mount, descriptor, variable or
// device must be put here by hand.
func TestPosture(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		root, volume := l.rootfs(t, "root"), l.dir(t, "lent")
		if err := os.Mkdir(filepath.Join(root, "volume"), 0o755); err != nil {
			t.Fatal(err)
		}
		l.Own(t, root)
		j := l.inRootfs(root, "posture").with("  volume \"v\" {\n    source = %q\n    target = \"/volume\"\n  }", volume)
		got := l.attacked(t, j).posture(t)
		outside := l.outside(t, l.attacker, "posture").posture(t)
		differ := func(what string, got, want any) {
			t.Helper()
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s:\n got  %q\n want %q", what, got, want)
			}
		}
		groups := "" // cleared
		if l.UID != 0 {
			groups = outside.Status["Groups"] // a map of one id denies setgroups(2): they are the caller's, and only its own is mapped
			if groups == outside.Status["Gid"][:strings.IndexByte(outside.Status["Gid"], ' ')] {
				groups = "0"
			}
		}
		inherited, err := strconv.Atoi(outside.Status["Seccomp_filters"])
		if err != nil {
			t.Fatal(err)
		}
		filters := strconv.Itoa(inherited + 2) // the workload's, and that of set-ID bits, for the volume is writable
		differ("status", got.Status, map[string]string{
			"Umask": "0022", "TracerPid": "0", "Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": groups, "CapInh": noCaps, "CapPrm": noCaps, "CapEff": noCaps, "CapBnd": noCaps,
			"CapAmb": noCaps, "NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": filters, "SigIgn": noCaps, "SigBlk": noCaps, "CoreDumping": "0",
		})
		differ("threads that differ from the main one", got.Threads, []string(nil))
		for ns, id := range outside.Namespaces {
			if same := got.Namespaces[ns] == id; same != (ns == "time") {
				t.Errorf("namespace %s: %s inside, %s outside", ns, got.Namespaces[ns], id)
			}
		}
		differ("mounts", withoutMasks(t, got.Mounts), []string{
			"/ tmpfs ro,nosuid,nodev,relatime", "/bin * ro,nosuid,nodev,relatime", "/dev tmpfs ro,nosuid,noexec,relatime",
			"/dev/full devtmpfs ro,nosuid,noexec,relatime", "/dev/mqueue mqueue rw,nosuid,nodev,noexec,relatime", "/dev/null devtmpfs ro,nosuid,noexec,relatime",
			"/dev/pts devpts rw,nosuid,noexec,relatime", "/dev/random devtmpfs ro,nosuid,noexec,relatime", "/dev/shm tmpfs rw,nosuid,nodev,noexec,relatime",
			"/dev/tty devtmpfs ro,nosuid,noexec,relatime", "/dev/urandom devtmpfs ro,nosuid,noexec,relatime", "/dev/zero devtmpfs ro,nosuid,noexec,relatime",
			"/proc proc rw,nosuid,nodev,noexec,relatime", "/proc/bus proc ro,nosuid,nodev,noexec,relatime", "/proc/fs proc ro,nosuid,nodev,noexec,relatime",
			"/proc/irq proc ro,nosuid,nodev,noexec,relatime", "/proc/pressure proc ro,nosuid,nodev,noexec,relatime", "/proc/sys proc ro,nosuid,nodev,noexec,relatime", "/root tmpfs rw,nosuid,nodev,relatime",
			"/run tmpfs rw,nosuid,nodev,relatime", "/sys sysfs ro,nosuid,nodev,noexec,relatime", "/tmp tmpfs rw,nosuid,nodev,relatime",
			"/var/tmp tmpfs rw,nosuid,nodev,relatime", "/volume * rw,nosuid,nodev,noexec,relatime",
		})
		for fd, target := range got.Files {
			if kind, _, _ := strings.Cut(target, ":"); fd == "0" && target != "/dev/null" || fd != "0" && kind != "pipe" {
				t.Errorf("descriptor %s is %s", fd, target)
			}
		}
		if len(got.Files) != 3 {
			t.Errorf("descriptors: %v", got.Files)
		}
		limits := outside.Limits
		limits["Max core file size"] = "1:1"
		for row, share := range map[string]func(hard uint64) uint64{ // of what the kernel counts for the caller as well
			"Max open files":      func(hard uint64) uint64 { return hard - min(4096, hard/4) },
			"Max pending signals": func(hard uint64) uint64 { return min(hard, max(128, min(1024, hard/64))) },
			"Max msgqueue size":   func(hard uint64) uint64 { return hard / 4 },
		} {
			limits[row] = lowered(limits[row], share)
		}
		if l.UID != 0 && got.Limits["Max processes"] == "512:512" { // the limit of processes where there is no group for it
			limits["Max processes"] = "512:512"
		}
		differ("limits", got.Limits, limits)
		slices.Sort(got.Env)
		differ("environment", got.Env, []string{"HOME=/root", "LANG=C.UTF-8", "LOGNAME=root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "USER=root", "container=nucleus"})
		differ("working directory", got.Cwd, "/")
		differ("root", got.Root, "/")
		differ("/", got.Entries, []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var", "volume"})
		differ("/dev", got.Devices, []string{"fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"})
		differ("processes", got.Pids, 2)
		if got.UIDMap == outside.UIDMap || strings.HasPrefix(got.UIDMap, "0 0 ") {
			t.Errorf("uid map %q", got.UIDMap)
		}
		if want := map[bool]string{true: "allow", false: "deny"}[l.UID == 0]; got.SetGroups != want {
			t.Errorf("setgroups: %s, want %s", got.SetGroups, want)
		}
		if strings.Contains(got.Cgroup, "nucleus-") || strings.Contains(got.Cgroup, "..") {
			t.Errorf("the place among the host's groups is told: %s", got.Cgroup)
		}
		differ("keys", got.Keys, "")

		// Teeth: each part of it is seen to differ outside, or where it is given away.
		if outside.Status["Seccomp"] != "0" || outside.Status["NoNewPrivs"] != "0" || len(outside.Mounts) == 0 || outside.Pids < 3 {
			t.Errorf("no teeth: %v", outside.Status)
		}
		weak := l.attacked(t, l.weakened(t, l.attack("posture")).with("  user = \"0\"")).posture(t)
		if weak.Status["CapEff"] == noCaps || weak.Status["CapBnd"] == noCaps {
			t.Errorf("no teeth: capabilities that were kept are not seen: %v", weak.Status)
		}
	})
}

// withoutMasks checks those mounts that depend on what the kernel offers, and
// gives the rest in order, without the type where it is the host's own.
func withoutMasks(t *testing.T, mounts []string) []string {
	t.Helper()
	var out []string
	for _, m := range mounts {
		f := strings.Fields(strings.ReplaceAll(m, ",idmapped", ""))
		if len(f) != 3 {
			t.Errorf("a mount that propagates: %s", m)
			continue
		}
		masked := strings.HasPrefix(f[0], "/proc/") || strings.HasPrefix(f[0], "/sys/")
		switch {
		case masked && f[1] == "devtmpfs" && f[2] == "ro,nosuid,noexec,relatime":
			continue
		case masked && f[1] == "tmpfs" && f[2] == "ro,nosuid,nodev,noexec,relatime":
			continue
		}
		if f[0] == "/bin" || f[0] == "/volume" {
			f[1] = "*"
		}
		out = append(out, strings.Join(f, " "))
	}
	slices.Sort(out)
	return out
}
