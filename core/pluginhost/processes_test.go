package pluginhost

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// What a plugin starts ends with it, whether it is closed or ends by itself; and who
// has made a session of its own keeps nobody waiting, although it holds the pipes.
func TestChildren(t *testing.T) {
	t.Run("closed", func(t *testing.T) {
		r := newRig(t, nil)
		got, err := r.fetch(t.Context(), "family")
		if err != nil {
			t.Fatal(err)
		}
		pid := pidOf(t, got["a"])
		eventually(t, "the child", func() string { return ifAlive(pid) })
	})
	t.Run("ended by itself", func(t *testing.T) {
		r := newRig(t, nil)
		inTime(t, 3*time.Second, func() {
			_, err := r.fetch(t.Context(), "bereft")
			child, ok := strings.CutPrefix(hintOf(err), "it said: ")
			if !ok {
				t.Fatalf("error %v", err)
			}
			pid := pidOf(t, child)
			eventually(t, "the child", func() string { return ifAlive(pid) })
		})
	})
	t.Run("at its start", func(t *testing.T) {
		r := newRig(t, nil)
		r.script(t, "parent", "sleep 1000 & echo $! >&2; exit 1")
		inTime(t, 2*time.Second, func() {
			_, err := r.Start(t.Context(), "parent")
			pid := pidOf(t, strings.TrimPrefix(hintOf(err), "it said: "))
			eventually(t, "the child", func() string { return ifAlive(pid) })
		})
	})
	t.Run("in its own session", func(t *testing.T) {
		r := newRig(t, nil)
		inTime(t, 3*time.Second, func() {
			got, err := r.fetch(t.Context(), "runaway")
			if err != nil {
				t.Fatal(err)
			}
			grouped := r.grouped(t)
			for _, n := range []string{"a", "b"} {
				pid := pidOf(t, got[n])
				if alive(pid) == grouped {
					t.Errorf("with a group: %v; alive: %v", grouped, alive(pid))
				}
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		})
	})
}

// What a plugin has started in a session of its own outlives a host that is killed, in
// the plugin's group; whoever comes next ends it.
func TestHostKilledLeavesAGroup(t *testing.T) {
	testutil.Needs(t, testutil.CgroupController("pids"))
	r := newRig(t, nil)
	cmd := exec.Command("/proc/self/exe", asHost, "daemon", r.run)
	cmd.Env = append(os.Environ(), envPrograms+"="+programs)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	plugin := pidOf(t, line)
	pids := procsBeside(t, plugin)
	if len(pids) != 2 {
		t.Fatalf("processes %v in the group, want the plugin and its daemon", pids)
	}
	groups := groupsOf(t, plugin)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	eventually(t, "the plugin", func() string { return ifAlive(plugin) })
	if _, err := r.fetch(t.Context(), "good"); err != nil {
		t.Errorf("the next host: %v", err)
	}
	for _, pid := range pids {
		eventually(t, "process", func() string { return ifAlive(pid) })
	}
	for _, dir := range groups {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("group %s is left", dir)
		}
	}
}

func ifAlive(pid int) string {
	if alive(pid) {
		return fmt.Sprint(pid)
	}
	return ""
}

// A host that is killed takes its plugins along, and the next one starts where it was.
func TestHostKilled(t *testing.T) {
	for _, name := range []string{"good", "chatty"} { // with the SDK and without
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			cmd := exec.Command("/proc/self/exe", asHost, name, r.run)
			cmd.Env = append(os.Environ(), envPrograms+"="+programs)
			out, err := cmd.StdoutPipe()
			if err == nil {
				err = cmd.Start()
			}
			if err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			pid := pidOf(t, line)
			if !alive(pid) {
				t.Fatal("the plugin does not run")
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // killed
			end := time.Now().Add(testutil.Patient(time.Second))
			for alive(pid) && time.Now().Before(end) {
				time.Sleep(time.Millisecond)
			}
			if alive(pid) {
				t.Error("the plugin outlives its host by a second")
			}
			if left, _ := filepath.Glob(filepath.Join(r.run, "*")); len(left) != 1 {
				t.Errorf("directories %q, want the one that the host could not remove", left)
			}
			if got, err := r.fetch(t.Context(), name); err != nil || got["a"] != "value" {
				t.Errorf("the next host: %q, %v", got, err)
			}
			// What is left of the first one is gone, too: see newRig.
		})
	}
}

// Nobody but its host may talk to a plugin.
func TestOthersAreRefused(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	r := newRig(t, nil)
	p, err := r.Start(t.Context(), "good")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	sockets, err := filepath.Glob(filepath.Join(p.dir.Path, "*", "plugin*"))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("sockets %q, %v", sockets, err)
	}
	uid := p.proc.launch.uid
	dial := func(uid uint32) string {
		cmd := exec.Command(filepath.Join(programs, Prefix+"good"), asCaller, sockets[0])
		cmd.Args[0] = "caller"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if got := dial(0); got != "refused" {
		t.Errorf("another process of the host's user: %s", got)
	}
	if got := dial(uid); got != "refused" {
		t.Errorf("another process of the plugin's user: %s", got)
	}
	if got := dial(uid + 1); !strings.Contains(got, "permission denied") {
		t.Errorf("another user: %s", got)
	}
	// The way is free: it is the plugin that refuses.
	for _, path := range []string{p.dir.Path, filepath.Dir(sockets[0]), sockets[0]} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if got := dial(uid + 1); got != "refused" {
		t.Errorf("another user whom the file system lets pass: %s", got)
	}
	if _, err := r.Describe(t.Context(), p); err != nil {
		t.Errorf("its host: %v", err)
	}
}
