package host

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func TestMain(m *testing.M) {
	MaybeChild()
	maybeRoom()
	os.Exit(m.Run())
}

const nobody = 65534

func noSys(nr int) rule {
	return rule{NR: nr, Arg: -1, Action: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
}

func noArg(nr, arg int, value uint32) rule {
	return rule{NR: nr, Arg: arg, Value: value, Action: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
}

func noFlag(nr int, flag uint32) rule {
	return rule{NR: nr, Arg: 0, Value: flag, Mask: true, Action: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
}

// Each feature is taken away by a filter, which is also what most containers
// do, and must then be unavailable, with a reason.
func TestAFeatureThatIsRefusedIsUnavailable(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	scope := uint32(unix.TIOCGPTN)
	for _, tc := range []struct {
		rule rule
		want []string
	}{
		{noFlag(unix.SYS_CLONE, unix.CLONE_NEWUSER), []string{featUserNS}},
		{noSys(unix.SYS_SETHOSTNAME), []string{featUserNS}},
		{noFlag(unix.SYS_CLONE, unix.CLONE_NEWNS), []string{featMountNS, featMountAPI, featProcMount, featSysfsMount}},
		{noSys(unix.SYS_MOUNT), []string{featMountNS, featDevpts, featOverlay}},
		{noFlag(unix.SYS_CLONE, unix.CLONE_NEWPID), []string{featPIDNS, featProcMount}},
		{noFlag(unix.SYS_CLONE, unix.CLONE_NEWNET), []string{featNetNS, featNft, featTun, featVeth, featBridge, featSysfsMount}},
		{noFlag(unix.SYS_UNSHARE, unix.CLONE_NEWIPC), []string{featIPCNS}},
		{noFlag(unix.SYS_UNSHARE, unix.CLONE_NEWUTS), []string{featUTSNS}},
		{noFlag(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP), []string{featCgroupNS}},
		{noFlag(unix.SYS_UNSHARE, unix.CLONE_NEWTIME), []string{featTimeNS}},
		{noArg(unix.SYS_PRCTL, 0, unix.PR_SET_NO_NEW_PRIVS), []string{featNoNewPrivs}},
		{noSys(unix.SYS_SECCOMP), []string{featSeccomp, featSeccompNotify, featSeccompLog}},
		{noSys(unix.SYS_LANDLOCK_CREATE_RULESET), []string{featLandlock, featLandlockTCP, featLandlockScope}},
		{noSys(unix.SYS_LANDLOCK_RESTRICT_SELF), []string{featLandlock, featLandlockTCP, featLandlockScope}},
		{noSys(unix.SYS_KEYCTL), []string{featKeyring}},
		{noSys(unix.SYS_PIDFD_OPEN), []string{featPidfd}},
		{noSys(unix.SYS_OPENAT2), []string{featOpenat2}},
		{noSys(unix.SYS_CLOSE_RANGE), []string{featCloseRange}},
		{noSys(unix.SYS_MEMFD_CREATE), []string{featMemfd}},
		{noSys(unix.SYS_FSOPEN), []string{featMountAPI}},
		{noSys(unix.SYS_MOVE_MOUNT), []string{featMountAPI}},
		{noSys(unix.SYS_MOUNT_SETATTR), []string{featMountSetattr, featIDMapped}},
		{noSys(unix.SYS_OPEN_TREE), []string{featMountAPI, featIDMapped}},
		// The probes' own mounts differ in their flags.
		{noArg(unix.SYS_MOUNT, 3, 0), []string{featOverlay, featOverlayUserNS, featNoSwap}},
		{noArg(unix.SYS_MOUNT, 3, unix.MS_NOSUID|unix.MS_NOEXEC), []string{featDevpts}},
		{noArg(unix.SYS_MOUNT, 3, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC), []string{featProcMount}},
		{noArg(unix.SYS_MOUNT, 3, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY), []string{featSysfsMount}},
		{noArg(unix.SYS_IOCTL, 1, scope), []string{featDevpts}},
		{noArg(unix.SYS_IOCTL, 1, unix.TUNSETIFF), []string{featTun}},
		{noArg(unix.SYS_SOCKET, 0, unix.AF_NETLINK), []string{featNft, featForwarding, featNumgen, featConntrack, featVeth, featBridge}},
	} {
		t.Run(strings.Join(tc.want, ","), func(t *testing.T) {
			free := Probe(t.Context(), ProbeOptions{Host: quick(t), Only: tc.want})
			got := room{Rules: []rule{tc.rule}, Only: tc.want, Blind: true}.enter(t)
			for _, name := range tc.want {
				before := roomResult{Features: free}.feature(t, name)
				if before.State == fact.Unknown {
					t.Errorf("without the filter, %s is unknown: %s", name, before.Why)
				}
				after := got.feature(t, name)
				if after.State != fact.Unavailable || after.Why == "" {
					t.Errorf("%s: %q, why %q (without the filter %q)", name, after.State, after.Why, before.State)
				}
			}
		})
	}
}

func quick(t *testing.T) fact.Host {
	t.Helper()
	h, err := Quick(Options{})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestAFilterThatKillsMeansUnavailable(t *testing.T) {
	got := room{
		Rules: []rule{{NR: unix.SYS_KEYCTL, Arg: -1, Action: unix.SECCOMP_RET_KILL_PROCESS}}, Only: []string{featKeyring, featPidfd},
	}.enter(t)
	f := got.feature(t, featKeyring)
	if f.State != fact.Unavailable || !strings.Contains(f.Why, "kills") || f.Remedy == "" {
		t.Errorf("got %+v", f)
	}
	if f := got.feature(t, featPidfd); f.State != fact.Available {
		t.Errorf("one probe's death reached another: %+v", f)
	}
}

// An errno that says nothing about the feature must not become an answer.
func TestAPassingFailureIsUnknown(t *testing.T) {
	got := room{
		Rules: []rule{{NR: unix.SYS_MEMFD_CREATE, Arg: -1, Action: unix.SECCOMP_RET_ERRNO | uint32(unix.ENFILE)}}, Only: []string{featMemfd},
	}.enter(t)
	if f := got.feature(t, featMemfd); f.State != fact.Unknown || f.Why == "" {
		t.Errorf("got %+v", f)
	}
}

func TestWhatNeedsSomethingUnknownIsUnknown(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	full := noFlag(unix.SYS_CLONE, unix.CLONE_NEWNS)
	full.Action = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOMEM)
	got := room{Rules: []rule{full}, Only: []string{featMountAPI}}.enter(t)
	if f := got.feature(t, featMountNS); f.State != fact.Unknown {
		t.Errorf("got %+v", f)
	}
	if f := got.feature(t, featMountAPI); f.State != fact.Unknown || !strings.Contains(f.Why, "needs mountns") {
		t.Errorf("got %+v", f)
	}
}

func TestUserNamespaceLimit(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	for _, blind := range []bool{false, true} {
		got := room{userNS: true, Steps: []string{"max_user_namespaces=0"}, Only: []string{featUserNS, featNetNS}, Blind: blind}.enter(t)
		f := got.feature(t, featUserNS)
		if f.State != fact.Unavailable || f.Why != "user.max_user_namespaces is 0" || f.Remedy != remedyMaxUserNS {
			t.Errorf("blind %v: %+v", blind, f)
		}
		// We are root only in a user namespace here, so nothing goes without.
		if f := got.feature(t, featNetNS); f.State != fact.Unavailable || !strings.Contains(f.Why, "needs userns") {
			t.Errorf("blind %v: %+v", blind, f)
		}
		if got.Host.Privileged || !got.Host.UserNS {
			t.Errorf("blind %v: privileged %v, in a user namespace %v", blind, got.Host.Privileged, got.Host.UserNS)
		}
	}
}

func TestRootGoesWithoutUserNamespaces(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	got := room{Rules: []rule{noFlag(unix.SYS_CLONE, unix.CLONE_NEWUSER)}, Only: []string{featUserNS, featNetNS, featSubID}}.enter(t)
	if f := got.feature(t, featUserNS); f.State != fact.Unavailable {
		t.Errorf("got %+v", f)
	}
	if f := got.feature(t, featNetNS); f.State != fact.Available {
		t.Errorf("got %+v", f)
	}
	if f := got.feature(t, featSubID); f.State != fact.Unavailable {
		t.Errorf("got %+v", f)
	}
}

func TestMaskedProc(t *testing.T) {
	testutil.Needs(t, testutil.Root, testutil.UserNS)
	got := room{flags: unix.CLONE_NEWNS, Steps: []string{"private mounts", "masked proc"}, Only: []string{featProcMount}}.enter(t)
	f := got.feature(t, featProcMount)
	if f.State != fact.Unavailable || !strings.Contains(f.Why, "/proc/version") || f.Remedy == "" {
		t.Errorf("got %+v", f)
	}
}

func TestTunDevice(t *testing.T) {
	testutil.Needs(t, testutil.Root, testutil.UserNS)
	for step, why := range map[string]string{"no /dev/net": "is not there", "closed tun": "may not open"} {
		got := room{flags: unix.CLONE_NEWNS, Steps: []string{"private mounts", step}, UID: nobody, Only: []string{featTun}}.enter(t)
		if f := got.feature(t, featTun); f.State != fact.Unavailable || !strings.Contains(f.Why, why) || f.Remedy == "" {
			t.Errorf("%s: got %+v", step, f)
		}
	}
}

func TestChroot(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	t.Run("without proc nothing can be told", func(t *testing.T) {
		got := room{Steps: []string{"empty chroot"}, Blind: true}.enter(t)
		if got.Host.Privileged {
			t.Error("privileged, although the user namespace cannot be told")
		}
		for _, f := range got.Features {
			if f.State != fact.Unknown || f.Why == "" {
				t.Errorf("got %+v", f)
			}
		}
	})
	t.Run("with proc the chroot is named", func(t *testing.T) {
		got := room{flags: unix.CLONE_NEWNS, Steps: []string{"private mounts", "chroot with proc"}, Only: []string{featUserNS}}.enter(t)
		if f := got.feature(t, featUserNS); f.State != fact.Unavailable || !strings.Contains(f.Why, "chroot") {
			t.Errorf("got %+v", f)
		}
	})
}

func TestRootWithoutCapabilities(t *testing.T) {
	testutil.Needs(t, testutil.Root, testutil.UserNS)
	t.Run("CAP_SYS_ADMIN alone", func(t *testing.T) {
		got := room{Steps: []string{"no CAP_SYS_ADMIN"}, Only: []string{featUserNS, featIDMapped}}.enter(t)
		if got.Host.Privileged {
			t.Error("privileged without CAP_SYS_ADMIN")
		}
		if f := got.feature(t, featUserNS); f.State != fact.Available {
			t.Errorf("got %+v", f)
		}
		if f := got.feature(t, featIDMapped); f.State != fact.Unavailable {
			t.Errorf("got %+v", f)
		}
	})
	t.Run("all", func(t *testing.T) {
		got := room{Steps: []string{"no capabilities"}, Only: []string{featUserNS}}.enter(t)
		if f := got.feature(t, featUserNS); f.State != fact.Unavailable || !strings.Contains(f.Why, "CAP_SETFCAP") {
			t.Errorf("got %+v", f)
		}
	})
}

func TestAsAnOrdinaryUser(t *testing.T) {
	testutil.Needs(t, testutil.Root, testutil.UserNS)
	got := room{UID: nobody}.enter(t)
	if got.Host.Privileged || got.Host.EUID != 65534 {
		t.Errorf("got %+v", got.Host)
	}
	for _, name := range []string{featUserNS, featMountNS, featPIDNS, featNetNS, featIPCNS, featUTSNS, featSeccomp, featNoNewPrivs, featPidfd, featMemfd, featDevpts} {
		if f := got.feature(t, name); f.State != fact.Available {
			t.Errorf("got %+v", f)
		}
	}
	// What takes root must not be claimed for a user.
	for _, name := range []string{featIDMapped, featNoSwap} {
		if f := got.feature(t, name); f.State != fact.Unavailable || f.Why == "" || f.Remedy == "" {
			t.Errorf("got %+v", f)
		}
	}
}

func TestSubordinateIDsOfAUser(t *testing.T) {
	testutil.Needs(t, testutil.Root, testutil.UserNS, testutil.Program("newuidmap"))
	base := room{flags: unix.CLONE_NEWNS, Steps: []string{"private mounts", "subids for nobody"}, UID: nobody, Only: []string{featSubID}}
	t.Run("by the helpers", func(t *testing.T) {
		f := base.enter(t).feature(t, featSubID)
		if f.State != fact.Available || f.Detail != "65536 ids from 300000 by newuidmap" {
			t.Errorf("got %+v", f)
		}
	})
	t.Run("the helpers refuse a range of somebody else", func(t *testing.T) {
		r := base
		r.Range = fact.IDRange{Start: 400000, Count: 65536}
		if f := r.enter(t).feature(t, featSubID); f.State != fact.Unavailable || !strings.Contains(f.Why, "refuses the map") {
			t.Errorf("got %+v", f)
		}
	})
	t.Run("a helper that says yes and does nothing", func(t *testing.T) {
		r := base
		r.Helper = "/bin/true"
		if f := r.enter(t).feature(t, featSubID); f.State != fact.Unavailable || !strings.Contains(f.Why, "left the map") {
			t.Errorf("got %+v", f)
		}
	})
	t.Run("not where setuid programs gain nothing", func(t *testing.T) {
		r := base
		r.Rules = []rule{noSys(unix.SYS_KEYCTL)}
		got := r.enter(t)
		if f := got.feature(t, featSubID); f.State != fact.Unavailable || !strings.Contains(f.Why, "no_new_privs") {
			t.Errorf("got %+v", f)
		}
		if got.Host.NewUIDMap != "" {
			t.Errorf("newuidmap is said to be usable: %q", got.Host.NewUIDMap)
		}
	})
}

func TestNoAnswerInTimeIsUnknown(t *testing.T) {
	for _, f := range Probe(t.Context(), ProbeOptions{Host: fact.Host{}, Timeout: time.Nanosecond, Only: []string{featPidfd, featOpenat2}}) {
		if f.State != fact.Unknown || f.Why == "" {
			t.Errorf("got %+v", f)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, f := range Probe(ctx, ProbeOptions{Host: fact.Host{}, Only: []string{featPidfd}}) {
		if f.State != fact.Unknown {
			t.Errorf("got %+v", f)
		}
	}
}

func TestProbingLeavesNothing(t *testing.T) {
	mounts := func() string {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	descriptors := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	h := quick(t)
	Probe(t.Context(), ProbeOptions{Host: h, StateRoot: t.TempDir()}) // opens what Go keeps open
	m, d := mounts(), descriptors()
	Probe(t.Context(), ProbeOptions{Host: h, StateRoot: t.TempDir()})
	if got := mounts(); got != m {
		t.Errorf("mounts before:\n%s\nafter:\n%s", m, got)
	}
	if got := descriptors(); got != d {
		t.Errorf("%d descriptors open, before %d", got, d)
	}
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(lists) == 0 {
		t.Fatalf("lists of children: %v, %v", lists, err)
	}
	for _, l := range lists {
		if b, err := os.ReadFile(l); err == nil && len(b) > 0 {
			t.Errorf("children left: %s", b)
		}
	}
}

func TestEveryProbeIsListedOnceAndNeedsWhatComesBefore(t *testing.T) {
	s := &session{o: ProbeOptions{Dirs: []string{"/a"}}}
	var seen []string
	for _, st := range s.steps() {
		if slices.Contains(seen, st.name) {
			t.Errorf("%s is there twice", st.name)
		}
		for _, n := range st.needs {
			if !slices.Contains(seen, n) {
				t.Errorf("%s needs %s, which does not come before it", st.name, n)
			}
		}
		seen = append(seen, st.name)
	}
}
