package pluginhost

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/tail"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// userNamespace is that of a process.
func userNamespace(t *testing.T, pid int) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// A backend of networks that runs as the owner of sandboxes is beside them, and not
// above; root's has a user that owns nothing. The others see whose a file is.
func TestBackendIsBesideTheSandboxes(t *testing.T) {
	for _, as := range []manifest.Service{manifest.Network, manifest.Secrets, manifest.Hooks, manifest.Runtime, ""} {
		t.Run(string(as), func(t *testing.T) {
			r := newRig(t, nil)
			p, err := r.Host.Start(t.Context(), "chatty", as)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			beside := as == manifest.Network && os.Geteuid() != 0
			own, theirs := userNamespace(t, os.Getpid()), userNamespace(t, p.Pid())
			if (own != theirs) != beside {
				t.Errorf("its user namespace is %s, and the host's is %s", theirs, own)
			}
			if !beside {
				return
			}
			for file, want := range map[string]string{
				"uid_map": fmt.Sprintf("%d %[1]d 1", os.Geteuid()), "gid_map": fmt.Sprintf("%d %[1]d 1", os.Getegid()), "setgroups": "deny",
			} {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Pid(), file))
				if err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(strings.Fields(string(b)), " "); got != want {
					t.Errorf("%s is %q, want %q", file, got, want)
				}
			}
		})
	}
}

func TestApart(t *testing.T) {
	ordinary := os.Geteuid() != 0
	for _, c := range []struct {
		as       manifest.Service
		switchTo bool
		caps     []string
		want     bool
	}{
		{manifest.Network, false, nil, ordinary},
		{manifest.Network, true, nil, false},
		{manifest.Network, false, []string{"CAP_NET_ADMIN"}, false},
		{manifest.Secrets, false, nil, false},
	} {
		if got := apart(c.as, c.switchTo, c.caps); got != c.want {
			t.Errorf("%s, switched %v, with %q: %v", c.as, c.switchTo, c.caps, got)
		}
	}
}

// The namespace alone keeps a process of the owner's out of his sandboxes, without a
// filter and without Landlock.
func TestOwnerFromBesideRulesNothing(t *testing.T) {
	testutil.Needs(t, testutil.Unprivileged, testutil.UserNS)
	one := func(id int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: 1}}
	}
	sandbox := exec.Command("/bin/sleep", "1000")
	sandbox.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, UidMappings: one(os.Geteuid()), GidMappings: one(os.Getegid()), Pdeathsig: syscall.SIGKILL,
	}
	if err := sandbox.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = sandbox.Process.Kill()
		_ = sandbox.Wait()
	}()
	const attempts = `#!/bin/sh
try() { "$@" >/dev/null 2>&1 && echo "$2 $3: done"; }
try nsenter --preserve-credentials --user --net --target $VICTIM true
try cat /proc/$VICTIM/environ
try ls /proc/$VICTIM/root/
try readlink /proc/$VICTIM/ns/net
try unshare --user --map-root-user nsenter --net=/proc/$VICTIM/ns/net true
echo end
`
	for _, apart := range []bool{false, true} {
		l := launch{
			uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), apart: apart,
			env: environment([]string{fmt.Sprint("VICTIM=", sandbox.Process.Pid)}, "/tmp", nil),
		}
		out, _, wait := launched(t, l, attempts)
		wait()
		if done := strings.Count(out, ": done"); apart && out != "end\n" || !apart && done < 4 {
			t.Errorf("apart %t: it has\n%s", apart, out)
		}
	}
}

// Where no more user namespaces can be made there is no plugin, and what to do is told.
func TestNoNamespaceLeft(t *testing.T) {
	testutil.Needs(t, testutil.Unprivileged, testutil.UserNS)
	self := func(id int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: id, HostID: id, Size: 1}}
	}
	cmd := exec.Command("/proc/self/exe", asFull)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: self(os.Geteuid()), GidMappings: self(os.Getegid()), AmbientCaps: []uintptr{unix.CAP_SYS_RESOURCE},
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`plugin "p": starting it: making its user namespace: the limit of their number`, "hint: raise the limit in /proc/sys/user/max_user_namespaces\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
}

const asFull = "start-where-full"

// startWhereFull tells what comes of a start where no user namespace can be made.
func startWhereFull() {
	program, err := os.Open("/bin/true")
	if err == nil {
		err = os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	p := &Plugin{Name: "p", said: &tail.Tail{}, proc: &process{group: &group{}, launch: launch{
		program: &Program{Path: program.Name(), File: program}, stdout: program, stderr: program, lifeline: program,
		uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), apart: true,
	}}}
	_, err = p.proc.launch.start()
	err = p.notReady(err)
	var told *Error
	if errors.As(err, &told) {
		fmt.Printf("%v\nhint: %s\n", err, told.Hint)
	}
	os.Exit(0)
}

// A host that lets nobody make user namespaces says so at different places: at the clone,
// or, with AppArmor, when the namespace is to be used.
func TestNamespaceIsRefused(t *testing.T) {
	l := launch{apart: true}
	for call, want := range map[string]bool{"clone3": true, "open uid_map": false, "write uid_map": true, "write gid_map": true, "prctl PR_CAPBSET_DROP": true, "execve": false} {
		var made *apartError
		if got := errors.As(l.refused(os.NewSyscallError(call, unix.EPERM)), &made); got != want {
			t.Errorf("%s: %v, want %v", call, got, want)
		}
	}
	var made *apartError
	if l.apart = false; errors.As(l.refused(os.NewSyscallError("clone3", unix.EPERM)), &made) {
		t.Error("without a namespace of its own")
	}
}
