package namespaces

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// TestMain plays init when Start has made this program a sandbox's first
// process: it says what it finds and waits for the end of its control socket.
func TestMain(m *testing.M) {
	if os.Args[0] != "nucleus-init" {
		os.Exit(m.Run())
	}
	if os.Getuid() != 0 {
		// Ids that were mapped from outside come a moment after the clone.
		for range 200 {
			if unix.Setresgid(0, 0, 0) == nil && unix.Setresuid(0, 0, 0) == nil {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	b, err := json.Marshal(look())
	if err == nil {
		_, err = unix.Write(3, b)
	}
	if err != nil {
		os.Exit(1)
	}
	buf := make([]byte, 1)
	_, _ = unix.Read(3, buf)
	os.Exit(7)
}

// view is what init sees of itself.
type view struct {
	Pid, Sid, UID, GID int
	Death              int
	Loopback           uint16 // its flags
	Env                []string
}

func look() view {
	v := view{Pid: os.Getpid(), UID: os.Getuid(), GID: os.Getgid(), Env: os.Environ()}
	v.Sid, _ = unix.Getsid(0)
	var death int32
	_ = unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&death)), 0, 0, 0)
	v.Death = int(death)
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		if lo, err := unix.NewIfreq("lo"); err == nil && unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo) == nil {
			v.Loopback = lo.Uint16()
		}
		_ = unix.Close(fd)
	}
	return v
}

func links(dir string) map[string]string {
	out := map[string]string{}
	for _, n := range []string{"user", "pid", "mnt", "net", "uts", "ipc", "cgroup"} {
		out[n], _ = os.Readlink(filepath.Join(dir, n))
	}
	return out
}

type started struct {
	in      *Init
	control *os.File
	release chan struct{}
	seen    view
}

// onThread runs f on a thread that ends with it. Go's main thread never ends: a
// locked goroutine that leaves it is parked.
func onThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		defer runtime.UnlockOSThread()
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // another one, for this is taken
			f()
		}()
		<-done
	}()
}

// begin starts init as the lifecycle does, from a thread that stays.
func begin(t *testing.T, p *plan.Plan) (*started, error) {
	t.Helper()
	return startWith(t, p, nil)
}

func startWith(t *testing.T, p *plan.Plan, g *Begun) (*started, error) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &started{control: os.NewFile(uintptr(pair[0]), "control"), release: make(chan struct{})}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	n := int(null.Fd())
	failed := make(chan error)
	onThread(func() {
		var err error
		s.in, err = Start(p, Options{Path: "/proc/self/exe", Stdio: [3]int{n, n, n}, Control: pair[1], LastCap: lastCap(t), Begun: g})
		_ = unix.Close(pair[1])
		failed <- err
		<-s.release
	})
	if err := <-failed; err != nil {
		close(s.release)
		_ = s.control.Close()
		return nil, err
	}
	t.Cleanup(func() {
		s.in.Kill()
		_, _ = s.in.Wait()
		s.in.Close()
		_ = s.control.Close()
		select {
		case <-s.release:
		default:
			close(s.release)
		}
	})
	buf := make([]byte, 64<<10)
	m, err := unix.Read(int(s.control.Fd()), buf)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(buf[:m], &s.seen); err != nil {
		t.Fatalf("%q: %v", buf[:m], err)
	}
	return s, nil
}

func lastCap(t *testing.T) uintptr {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return uintptr(n)
}

func namespaces(types ...specs.LinuxNamespaceType) []specs.LinuxNamespace {
	var out []specs.LinuxNamespace
	for _, x := range types {
		out = append(out, specs.LinuxNamespace{Type: x})
	}
	return out
}

var all = namespaces(specs.UserNamespace, specs.PIDNamespace, specs.MountNamespace, specs.NetworkNamespace, specs.UTSNamespace, specs.IPCNamespace, specs.CgroupNamespace)

func oneID() plan.IDs {
	return plan.IDs{
		Kind: "single",
		UIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(os.Geteuid()), Size: 1}},
		GIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(os.Getegid()), Size: 1}},
	}
}

func TestStartedInit(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	s, err := begin(t, &plan.Plan{Namespaces: all, IDs: oneID()})
	if err != nil {
		t.Fatal(err)
	}
	v := s.seen
	if v.Pid != 1 || v.Sid != 1 && v.Sid != 0 || v.UID != 0 || v.GID != 0 {
		t.Errorf("pid %d, session %d, ids %d:%d, want 1, its own, 0:0", v.Pid, v.Sid, v.UID, v.GID)
	}
	if v.Death != int(unix.SIGKILL) {
		t.Errorf("death signal %d, want SIGKILL", v.Death)
	}
	if v.Loopback&unix.IFF_UP == 0 {
		t.Errorf("the loopback interface is not up: flags %#x", v.Loopback)
	}
	for _, e := range v.Env {
		if name, _, _ := strings.Cut(e, "="); !slices.Contains([]string{"GOMAXPROCS", "GOGC"}, name) {
			t.Errorf("%q of the supervisor's environment got in", e)
		}
	}
	ours := links("/proc/self/ns")
	theirs := links(fmt.Sprintf("/proc/%d/ns", s.in.Pid))
	for name, link := range ours {
		// The cgroup namespace comes later: its root is the group that its maker is in.
		if same := theirs[name] == link; same != (name == "cgroup") {
			t.Errorf("namespace %s: ours %s, init's %s", name, link, theirs[name])
		}
	}
	if got, want := strings.Join(strings.Fields(read(t, s.in.Pid, "uid_map")), " "), fmt.Sprintf("0 %d 1", os.Geteuid()); got != want {
		t.Errorf("uid_map %q, want %q", got, want)
	}
	if want := fmt.Sprintf("CapEff:\t%016x\n", uint64(1)<<(lastCap(t)+1)-1); !strings.Contains(read(t, s.in.Pid, "status"), want) {
		t.Errorf("capabilities, want %s: %s", want, read(t, s.in.Pid, "status"))
	}
}

// A map that cannot be written is what the job says of it, and the helpers tell the
// first reason alone.
func TestMapsThatAreRefused(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	tell := filepath.Join(t.TempDir(), "newuidmap")
	if err := os.WriteFile(tell, []byte("#!/bin/sh\necho not yours\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	user := map[string]string{"user": "job.hcl:2"}
	both := map[string]string{"user": "job.hcl:2", "namespaces": "job.hcl:3", "namespaces.user": "job.hcl:4"}
	for _, c := range []struct {
		kind, uid, gid string
		job            map[string]string
		origin         string
	}{
		{"map", tell, "/bin/true", nil, "namespaces.uid_map"},
		{"map", "/bin/true", tell, nil, "namespaces.gid_map"},
		{"map", tell, tell, nil, "namespaces.uid_map"},
		{"keep", tell, "/bin/true", nil, "namespaces.user"},
		{"keep", tell, "/bin/true", user, "user"},
		{"keep", tell, "/bin/true", both, "namespaces.user"},
	} {
		ids := oneID()
		ids.Kind, ids.Helpers, ids.NewUIDMap, ids.NewGIDMap = c.kind, true, c.uid, c.gid
		_, err := begin(t, &plan.Plan{Namespaces: all, IDs: ids, Origins: c.job})
		var ue *UnsupportedError
		if !errors.As(err, &ue) || ue.Origin != c.origin || ue.Remedy == "" || strings.Count(err.Error(), "not yours") != 1 {
			t.Errorf("%+v: %v", c, err)
		}
	}
	var ue *UnsupportedError
	if err := startError(&mapError{"gid_map", unix.EPERM}, &plan.Plan{IDs: plan.IDs{Kind: "map"}}); !errors.As(err, &ue) || ue.Origin != "namespaces.gid_map" {
		t.Errorf("%+v", err)
	}
}

func TestSubordinateIDs(t *testing.T) {
	testutil.Needs(t, testutil.Root, testutil.UserNS)
	ids := plan.IDs{
		Kind: "range", SetGroups: true,
		UIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 700000, Size: 65536}},
		GIDs: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 700000, Size: 65536}},
	}
	s, err := begin(t, &plan.Plan{Namespaces: all, IDs: ids})
	if err != nil {
		t.Fatal(err)
	}
	status := read(t, s.in.Pid, "status")
	for _, want := range []string{"Uid:\t700000\t700000\t700000\t700000\n", "Gid:\t700000\t700000\t700000\t700000\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("init's ids on the host, want %q: %s", want, status)
		}
	}
	for line := range strings.Lines(status) {
		if groups, ok := strings.CutPrefix(line, "Groups:"); ok && strings.TrimSpace(groups) != "" {
			t.Errorf("groups of the supervisor got in: %s", line)
		}
	}
}

func read(t *testing.T, pid int, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// PDEATHSIG follows the thread, and init what the thread does (golang#27505).
func TestInitDiesWithItsThread(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	s, err := begin(t, &plan.Plan{Namespaces: all, IDs: oneID()})
	if err != nil {
		t.Fatal(err)
	}
	close(s.release)
	if ws := wait(t, s.in); !ws.Signaled() || ws.Signal() != unix.SIGKILL {
		t.Errorf("wait status %#x, want death by SIGKILL", int(ws))
	}
}

func wait(t *testing.T, in *Init) syscall.WaitStatus {
	t.Helper()
	type end struct {
		ws  syscall.WaitStatus
		err error
	}
	done := make(chan end, 1)
	go func() {
		ws, err := in.Wait()
		done <- end{ws, err}
	}()
	select {
	case e := <-done:
		if e.err != nil {
			t.Fatal(e.err)
		}
		return e.ws
	case <-time.After(10 * time.Second):
		t.Fatal("init lives")
		return 0
	}
}

func TestKillAndWaitMayBeRepeated(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	s, err := begin(t, &plan.Plan{Namespaces: all, IDs: oneID()})
	if err != nil {
		t.Fatal(err)
	}
	s.in.Kill()
	first := wait(t, s.in)
	s.in.Kill()
	if again := wait(t, s.in); again != first {
		t.Errorf("second Wait: %#x, was %#x", int(again), int(first))
	}
	s.in.Close()
	s.in.Kill() // must not reach whatever has the descriptor's number now
	s.in.Close()
}

func TestInitEndsWithItsSocket(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	s, err := begin(t, &plan.Plan{Namespaces: all, IDs: oneID()})
	if err != nil {
		t.Fatal(err)
	}
	_ = s.control.Close() // and nobody else, init least of all, holds our end
	if ws := wait(t, s.in); ws.ExitStatus() != 7 {
		t.Errorf("wait status %#x, want exit 7", int(ws))
	}
}

func TestStartErrorsTellWhatToDo(t *testing.T) {
	user := &plan.Plan{IDs: plan.IDs{Kind: "single"}}
	for _, test := range []struct {
		p      *plan.Plan
		err    error
		remedy string
	}{
		{user, unix.ENOSPC, "/proc/sys/user"},
		{user, unix.EPERM, "nucleus doctor"},
		{&plan.Plan{IDs: plan.IDs{Kind: "none"}}, unix.EPERM, "CAP_SYS_ADMIN"},
		{user, unix.EACCES, "make install"},
		{user, unix.ENOENT, "make install"},
		{user, unix.EAGAIN, "ulimit -u"},
		{user, unix.ETOOMANYREFS, "ulimit -n"},
		{user, unix.EBADF, "ulimit -n"},
	} {
		err := startError(test.err, test.p)
		var ue *UnsupportedError
		if !errors.As(err, &ue) || !strings.Contains(ue.Remedy, test.remedy) || !errors.Is(err, test.err) {
			t.Errorf("%v: %v with remedy %q, want %q", test.err, err, ue.Remedy, test.remedy)
		}
	}
}

// It is no missing program that a killed init is not in /proc any more.
func TestMapsOfAKilledInit(t *testing.T) {
	err := startError(&mapError{"uid_map", unix.ENOENT}, &plan.Plan{IDs: plan.IDs{Kind: "single"}})
	if !strings.HasPrefix(err.Error(), "writing id maps: ") || strings.Contains(err.Error(), "nucleus-init") {
		t.Errorf("error %v", err)
	}
}

func TestMissingInit(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	_, err := Start(&plan.Plan{Namespaces: all, IDs: oneID()}, Options{Path: "/nonexistent/nucleus-init"})
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "starting nucleus-init") {
		t.Errorf("error %v, want that nucleus-init is missing", err)
	}
}
