package pluginhost

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// confess is a program that tells all that it has.
const confess = `#!/bin/sh
grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Umask):' /proc/self/status
env
for fd in 0 1 2 3 4 5 6 7 8 9; do
	[ -e /proc/$$/fd/$fd ] && echo "fd $fd"
done
readlink /proc/$$/fd/0
echo "session $(cut -d' ' -f6 /proc/$$/stat) $$"
pwd
ulimit -n
[ "$WAIT" ] && cat <&3 >/dev/null
echo end
`

func launched(t *testing.T, l launch, text string) (out string, lifeline *os.File, wait func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	write(t, path, text, 0o755)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	alive, held, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	l.program, l.stdout, l.stderr, l.lifeline = &Program{Name: "p", Path: path, File: f}, w, w, alive
	p, err := l.start()
	_, _ = w.Close(), alive.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = held.Close() })
	var b bytes.Buffer
	s := bufio.NewScanner(r)
	for s.Scan() {
		fmt.Fprintln(&b, s.Text())
		if l.env != nil && slices.Contains(l.env, "WAIT=1") && strings.Trim(s.Text(), "0123456789") == "" {
			break
		}
	}
	return b.String(), held, func() {
		_, _ = io.Copy(io.Discard, r)
		if _, err := p.Wait(); err != nil {
			t.Error(err)
		}
	}
}

// A plugin has what is written down here, and nothing of its host's.
func TestLaunchGivesNothingElse(t *testing.T) {
	t.Setenv("HOST_CANARY", "1")
	stray, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer stray.Close()
	l := launch{env: environment([]string{"COOKIE=c"}, "/tmp", map[string]string{"GIVEN": "v"})}
	out, _, wait := launched(t, l, confess)
	wait()
	for _, want := range []string{
		"NoNewPrivs:\t1\n", "COOKIE=c\n", "GIVEN=v\n", "TMPDIR=/tmp\n", "NUCLEUS_LIFELINE_FD=3\n", "/dev/null\n", "Umask:\t0077\n", fmt.Sprintf("%d\n", maxFiles), "end\n", "\n/\n",
		"CapBnd:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapAmb:\t0000000000000000\n",
	} {
		if strings.HasPrefix(want, "CapBnd") && os.Geteuid() != 0 {
			continue // no privilege can come of it
		}
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, none := range []string{"HOST_CANARY", "fd 5\n", "fd 6\n", "fd 7\n"} {
		if strings.Contains(out, none) {
			t.Errorf("%q in\n%s", none, out)
		}
	}
	_, session, _ := strings.Cut(out, "session ")
	var sid, pid int
	if _, err := fmt.Sscanf(session, "%d %d", &sid, &pid); err != nil || sid != pid {
		t.Errorf("session %d of process %d, %v", sid, pid, err)
	}
}

func TestLaunchAsAnotherUser(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	l := launch{uid: 61200, gid: 61200, switchU: true, caps: []string{"CAP_NET_ADMIN"}}
	out, _, wait := launched(t, l, confess)
	wait()
	const netAdmin = "0000000000001000"
	for _, want := range []string{
		"Uid:\t61200\t61200\t61200\t61200\n", "Gid:\t61200\t61200\t61200\t61200\n", "Groups:\t \n",
		"CapEff:\t" + netAdmin, "CapPrm:\t" + netAdmin, "CapBnd:\t" + netAdmin, "CapAmb:\t" + netAdmin,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	// What was taken was taken from a thread that is gone, not from this process.
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "NoNewPrivs:\t1\n") {
		t.Error("the host itself has no_new_privs")
	}
}

// A root without CAP_SYS_RESOURCE may not set the limits of another user's process:
// the process sets its own.
func TestLaunchLimitsWithoutCapability(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	var out string
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is not as it was
		header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capget(header, &caps[0]); err != nil {
			t.Error(err)
			return
		}
		caps[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
		caps[0].Permitted &^= 1 << unix.CAP_SYS_RESOURCE
		if err := unix.Capset(header, &caps[0]); err != nil {
			t.Error(err)
			return
		}
		var wait func()
		out, _, wait = launched(t, launch{uid: 61200, gid: 61200, switchU: true}, confess)
		wait()
	}()
	<-done
	if !strings.Contains(out, fmt.Sprintf("\n%d\n", maxFiles)) {
		t.Errorf("no limit of %d files in\n%s", maxFiles, out)
	}
}

func TestLaunchHoldsALifeline(t *testing.T) {
	out, lifeline, wait := launched(t, launch{env: environment([]string{"WAIT=1"}, "/tmp", nil)}, confess)
	if !strings.Contains(out, "fd 3\n") {
		t.Fatalf("no descriptor 3 in\n%s", out)
	}
	done := make(chan struct{})
	go func() { wait(); close(done) }()
	select {
	case <-done:
		t.Fatal("it ended although its host lives")
	case <-time.After(50 * time.Millisecond):
	}
	if err := lifeline.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(testutil.Patient(10 * time.Second)):
		t.Error("it did not see the end of its lifeline")
	}
}

func TestAccount(t *testing.T) {
	uid, gid, switchTo, err := account(&Program{Name: "x", Host: hostconfig.Plugin{}})
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		if switchTo || int(uid) != os.Geteuid() {
			t.Errorf("account %d, switched %v", uid, switchTo)
		}
		return
	}
	if !switchTo || uid != gid || uid < firstUID || uid > lastUID {
		t.Errorf("account %d:%d, switched %v", uid, gid, switchTo)
	}
	other, _, _, err := account(&Program{Name: "y"})
	if err != nil || other == uid {
		t.Errorf("two plugins have one account: %d, %v", other, err)
	}
	if uid, _, _, err = account(&Program{Name: "x", Host: hostconfig.Plugin{User: "root"}}); err != nil || uid != 0 {
		t.Errorf("root: %d, %v", uid, err)
	}
	if _, _, _, err = account(&Program{Name: "x", Host: hostconfig.Plugin{User: "nobody-here"}}); err == nil {
		t.Error("a user that does not exist")
	}
}

func TestUnknownCapability(t *testing.T) {
	if _, err := numbers([]string{"CAP_FLY"}); err == nil {
		t.Error("no error")
	}
	keep, err := numbers([]string{"CAP_NET_ADMIN"})
	if err != nil || !slices.Equal(keep, []capability.Cap{capability.CAP_NET_ADMIN}) {
		t.Errorf("%v, %v", keep, err)
	}
}
