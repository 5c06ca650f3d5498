package host

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

func TestWhyUserNamespacesAreRefused(t *testing.T) {
	user := fact.Host{Kernel: "6.8.0", EUID: 1000}
	rootHost := fact.Host{Kernel: "6.8.0", Privileged: true}
	for _, tc := range []struct {
		name        string
		errno       unix.Errno
		host        fact.Host
		res         restrictions
		why, remedy string
	}{
		{"limit 0", unix.ENOSPC, user, restrictions{maxUserNS: "0"}, "is 0", "sudo sysctl user.max_user_namespaces="},
		{"limit reached", unix.ENOSPC, user, restrictions{maxUserNS: "7"}, `"7"`, "sudo sysctl user.max_user_namespaces="},
		{"Debian's switch", unix.EPERM, user, restrictions{unprivClone: "0"}, "unprivileged_userns_clone", "sudo sysctl kernel.unprivileged_userns_clone=1"},
		{"Debian's switch does not bind root", unix.EPERM, rootHost, restrictions{unprivClone: "0", chrooted: true}, "chroot", "chroot"},
		{"AppArmor", unix.EPERM, user, restrictions{appArmorUserNS: true, executable: "/opt/n/nucleus"}, "AppArmor", `profile nucleus "/opt/n/nucleus" flags=(unconfined)`},
		{"AppArmor says EACCES", unix.EACCES, user, restrictions{appArmorUserNS: true}, "AppArmor", "apparmor_parser -r"},
		{"chroot", unix.EPERM, user, restrictions{chrooted: true}, "chroot", "outside of the chroot"},
		{"not built in", unix.EINVAL, user, restrictions{}, "CONFIG_USER_NS", "distribution kernel"},
		{"root without CAP_SETFCAP", unix.EPERM, fact.Host{Kernel: "6.8.0"}, restrictions{}, "CAP_SETFCAP", "CAP_SETFCAP"},
		{"a seccomp filter", unix.EPERM, user, restrictions{seccomp: true, container: "docker"}, "seccomp", "--security-opt seccomp=unconfined"},
		{"a seccomp filter that says ENOSYS", unix.ENOSYS, user, restrictions{seccomp: true}, "seccomp", "SystemCallFilter"},
		{"nothing that we know", unix.EPERM, user, restrictions{}, "security module", "dmesg"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, _ := findProbe(featUserNS)
			f := p.judge(answer{}, &startError{tc.errno}, tc.host, tc.res)
			if f.State != fact.Unavailable || !strings.Contains(f.Why, tc.why) || !strings.Contains(f.Remedy, tc.remedy) {
				t.Errorf("got %+v", f)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	old := fact.Host{Kernel: "5.4.0"}
	recent := fact.Host{Kernel: "6.12.0"}
	for _, tc := range []struct {
		name, probe string
		answer      answer
		err         error
		host        fact.Host
		res         restrictions
		state       fact.State
		why, remedy string
	}{
		{"done", featOpenat2, answer{Ran: true}, nil, recent, restrictions{}, fact.Available, "", ""},
		{"too old", featOpenat2, answer{Ran: true, Err: "opening: x", Errno: int(unix.ENOSYS)}, nil, old, restrictions{}, fact.Unavailable, "5.4.0 is too old", "boot Linux 5.6 or newer"},
		{"hidden by a filter", featOpenat2, answer{Ran: true, Err: "opening: x", Errno: int(unix.ENOSYS)}, nil, recent, restrictions{seccomp: true, container: "podman"}, fact.Unavailable, "seccomp filter", "seccomp=unconfined"},
		{"not built in", featOpenat2, answer{Ran: true, Err: "opening: x", Errno: int(unix.ENOSYS)}, nil, recent, restrictions{}, fact.Unavailable, "built without", ""},
		{"out of memory", featOpenat2, answer{Ran: true, Err: "opening: x", Errno: int(unix.ENOMEM)}, nil, recent, restrictions{}, fact.Unknown, "opening: x", ""},
		{"preparation failed", featOpenat2, answer{Ran: true, Err: "opening /: x", Errno: int(unix.EPERM), Setup: true}, nil, recent, restrictions{}, fact.Unknown, "could not prepare", ""},
		{"own words", featOpenat2, answer{Ran: true, Err: "x", Why: "it leaks", Remedy: "mend it"}, nil, recent, restrictions{}, fact.Unavailable, "it leaks", "mend it"},
		{"SIGSYS", featOpenat2, answer{}, &killedError{syscall.SIGSYS}, recent, restrictions{}, fact.Unavailable, "kills", "SystemCallFilter"},
		{"another signal", featOpenat2, answer{}, &killedError{syscall.SIGKILL}, recent, restrictions{}, fact.Unknown, "killed", ""},
		{"a plain child that cannot start", featOpenat2, answer{}, &startError{unix.EPERM}, recent, restrictions{}, fact.Unknown, "starting", ""},
		{"no process to be had", featNetNS, answer{}, &startError{unix.EAGAIN}, recent, restrictions{}, fact.Unknown, "starting", ""},
		{"a namespace that is refused", featNetNS, answer{}, &startError{unix.EPERM}, recent, restrictions{}, fact.Unavailable, "CAP_SYS_ADMIN", ""},
		{"no answer", featNetNS, answer{}, errors.New("late"), recent, restrictions{}, fact.Unknown, "late", ""},
		{"masked proc in docker", featProcMount, answer{Ran: true, Err: "x", Errno: int(unix.EPERM)}, nil, recent, restrictions{maskedProc: []string{"/proc/acpi", "/proc/kcore"}, container: "docker"}, fact.Unavailable, "/proc/acpi and 1 more", "systempaths=unconfined"},
		{"masked proc in podman", featProcMount, answer{Ran: true, Err: "x", Errno: int(unix.EPERM)}, nil, recent, restrictions{maskedProc: []string{"/proc/acpi"}, container: "podman"}, fact.Unavailable, "/proc/acpi", "unmask=ALL"},
		{"a file system without idmapped mounts", featIDMapped, answer{Ran: true, Err: "x", Errno: int(unix.EINVAL)}, nil, fact.Host{Kernel: "6.12.0", Privileged: true}, restrictions{}, fact.Unavailable, "file system", "ext4"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, ok := findProbe(tc.probe)
			if !ok {
				t.Fatal("no such probe")
			}
			f := p.judge(tc.answer, tc.err, tc.host, tc.res)
			if f.State != tc.state || !strings.Contains(f.Why, tc.why) || !strings.Contains(f.Remedy, tc.remedy) {
				t.Errorf("got %+v", f)
			}
			if f.State != fact.Available && f.Why == "" {
				t.Errorf("no reason: %+v", f)
			}
		})
	}
}

func TestReadRestrictions(t *testing.T) {
	r := fakeRoot(t, map[string]string{
		"/proc/sys/user/max_user_namespaces":                     "100\n",
		"/proc/sys/kernel/unprivileged_userns_clone":             "0\n",
		"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
		"/proc/self/status":                                      "Name:\tx\nCapEff:\t0000000080000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
		"/proc/self/exe":                                         "->/usr/local/bin/nucleus",
		"/.dockerenv":                                            "",
		"/proc/self/mountinfo": "21 20 0:5 / /proc rw - proc proc rw\n22 21 0:6 / /proc/kcore ro - tmpfs t rw\n" +
			"23 21 0:7 / /proc/sys/fs/binfmt_misc rw - binfmt_misc b rw\n24 20 0:8 / /processes rw - tmpfs t rw\n",
	})
	got := readRestrictions(r)
	want := restrictions{
		maxUserNS: "100", unprivClone: "0", appArmorUserNS: true, seccomp: true, setfcap: true, container: "docker",
		executable: "/usr/local/bin/nucleus", maskedProc: []string{"/proc/kcore"}, chrooted: got.chrooted,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestCgroupFeatures(t *testing.T) {
	given := fact.Cgroup{Layout: "v2", Controllers: map[string]fact.Feature{
		"memory": {State: fact.Available},
		"cpu":    {State: fact.Unavailable, Why: "not delegated", Remedy: "delegate it"},
	}}
	for _, tc := range []struct {
		name, feature string
		c             fact.Cgroup
		state         fact.State
		why           string
	}{
		{"there", featCgroupMemory, given, fact.Available, ""},
		{"not delegated", featCgroupCPU, given, fact.Unavailable, "not delegated"},
		{"not looked at", featCgroupIO, given, fact.Unknown, "not looked at"},
		{"no facts", featCgroupIO, fact.Cgroup{}, fact.Unknown, "not looked at"},
		{"no groups", featCgroupMemory, fact.Cgroup{Layout: "none"}, fact.Unavailable, "no cgroup file system"},
		{"a parent that is not ours", featCgroupMemory, fact.Cgroup{Layout: "v2", Why: "not ours", Controllers: given.Controllers}, fact.Unavailable, "not ours"},
	} {
		f := controllerFeature(tc.c, tc.feature)
		if f.Name != tc.feature || f.State != tc.state || !strings.Contains(f.Why, tc.why) {
			t.Errorf("%s: got %+v", tc.name, f)
		}
	}
}

func TestCgroupKill(t *testing.T) {
	const mounts = "30 20 0:9 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	for _, tc := range []struct {
		name  string
		files map[string]string
		state fact.State
	}{
		{"in our own group", map[string]string{
			"/proc/self/mountinfo": mounts, "/proc/self/cgroup": "0::/user.slice\n",
			"/sys/fs/cgroup/user.slice/cgroup.procs": "", "/sys/fs/cgroup/user.slice/cgroup.kill": "",
		}, fact.Available},
		{"an older kernel", map[string]string{
			"/proc/self/mountinfo": mounts, "/proc/self/cgroup": "0::/user.slice\n", "/sys/fs/cgroup/user.slice/cgroup.procs": "",
		}, fact.Unavailable},
		{"from the root group, by a child", map[string]string{
			"/proc/self/mountinfo": mounts, "/proc/self/cgroup": "0::/\n",
			"/sys/fs/cgroup/cgroup.procs": "", "/sys/fs/cgroup/a/cgroup.procs": "", "/sys/fs/cgroup/a/cgroup.kill": "",
		}, fact.Available},
		{"no group but the root", map[string]string{
			"/proc/self/mountinfo": mounts, "/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cgroup.procs": "",
		}, fact.Unknown},
		{"our group is not visible", map[string]string{"/proc/self/mountinfo": mounts, "/proc/self/cgroup": "0::/../..\n"}, fact.Unknown},
		{"cgroup v1", map[string]string{
			"/proc/self/mountinfo": "30 20 0:9 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", "/proc/self/cgroup": "4:memory:/\n",
		}, fact.Unavailable},
		{"no proc", nil, fact.Unknown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := cgroupKill(fakeRoot(t, tc.files))
			if f.State != tc.state {
				t.Errorf("got %+v", f)
			}
			if f.State != fact.Available && f.Why == "" {
				t.Errorf("no reason: %+v", f)
			}
		})
	}
}

func TestAProbeThatIsNotThereIsNoAnswer(t *testing.T) {
	a, err := ask(t.Context(), "no such probe", "", &syscall.SysProcAttr{})
	if err != nil || a.Ran || !a.Setup || a.Err == "" {
		t.Errorf("got %+v, %v", a, err)
	}
}
