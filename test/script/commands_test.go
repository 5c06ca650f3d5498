package script

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// condition answers [root] and [rootless], by who runs the script, and [superuser], by
// who runs the tests.
func (id *identity) condition(cond string) (bool, error) {
	switch cond {
	case "root":
		return id.account.UID == 0, nil
	case "rootless":
		return id.account.UID != 0, nil
	case "superuser":
		return os.Geteuid() == 0, nil
	}
	return false, fmt.Errorf("unknown condition %q; what a script needs of its host is said by \"needs\"", cond)
}

// requirement knows the words of the command "needs".
func requirement(word string) (testutil.Requirement, error) {
	kind, value, _ := strings.Cut(word, ":")
	switch kind {
	case "root":
		return testutil.Root, nil
	case "rootless":
		return testutil.Unprivileged, nil
	case "subid":
		return testutil.SubID, nil
	case "userns":
		return testutil.UserNS, nil
	case "cgroup-v2":
		return testutil.CgroupV2, nil
	case "cgroup":
		return testutil.CgroupController(value), nil
	case "program":
		return testutil.Program(value), nil
	case "runsc":
		return testutil.Runsc, nil
	case "landlock":
		abi, err := strconv.Atoi(value)
		return testutil.Landlock(abi), err
	}
	return testutil.Requirement{}, fmt.Errorf("unknown requirement %q", word)
}

// needs skips the script if the identity does not have one of the requirements.
func (id *identity) needs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: needs REQUIREMENT...")
	}
	t, ok := ts.Value(testKey{}).(*testing.T)
	if !ok {
		ts.Fatalf("needs: the script has no test")
	}
	for _, word := range args {
		req, err := requirement(word)
		ts.Check(err)
		if id.wrappers != "" && word != "runsc" { // which is copied for each identity
			req.Probe = func() testutil.Finding { return id.probeAs(word) }
		}
		testutil.Needs(t, req)
	}
}

// exits runs a program and asserts its exit status.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	got := 0
	if exit != nil {
		got = exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			ts.Fatalf("killed by %s, want exit status %d", status.Signal(), want)
		}
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// await waits until a file exists and is not empty.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await FILE")
	}
	path := ts.MkAbs(args[0])
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if st, err := os.Stat(path); err == nil && st.Size() > 0 {
			return
		}
	}
	ts.Fatalf("%s did not appear", args[0])
}

// rootfs makes a small root file system of the identity's own.
func (id *identity) rootfs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: rootfs DIR")
	}
	busybox, err := exec.LookPath("busybox")
	ts.Check(err)
	program, err := os.ReadFile(busybox)
	ts.Check(err)
	root := ts.MkAbs(args[0])
	for _, dir := range []string{"bin", "etc", "usr/share"} {
		ts.Check(os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	ts.Check(os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755))
	for _, applet := range strings.Fields("sh cat echo ls id touch mkdir rm stat true sleep mount hostname env grep ln readlink wc dd test sha256sum find") {
		ts.Check(os.Symlink("busybox", filepath.Join(root, "bin", applet)))
	}
	ts.Check(os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home/web:/bin/sh\n"), 0o644))
	ts.Check(os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\nweb:x:1000:\ndata:x:2000:\n"), 0o644))
	ts.Check(os.WriteFile(filepath.Join(root, "usr/share/word"), []byte("from the rootfs\n"), 0o644))
	id.own(ts, root)
}

// examples copies the project's examples.
func (id *identity) examples(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: examples DIR")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.CopyFS(dir, os.DirFS("../../examples")))
	id.own(ts, dir)
}
