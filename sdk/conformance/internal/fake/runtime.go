package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

func ofRuntimes() bool { return os.Getenv("FAKE_SERVES") == "runtime" }

// asBox is the fake's name as the program that runs bundles. It does no more than the
// rules ask for.
const asBox = "box"

type runtimeServer struct {
	pluginv1.UnimplementedRuntimeServer
	fake *fake
}

func (s *runtimeServer) Prepare(ctx context.Context, r *pluginv1.RuntimePrepareRequest) (*pluginv1.RuntimePrepareResponse, error) {
	if broken("prepares again") {
		return s.fake.prepareRuntime(r)
	}
	got, err := s.fake.once(ctx, "Prepare", r.GetCall(), func() (any, error) { return s.fake.prepareRuntime(r) })
	if err != nil {
		return nil, err
	}
	return got.(*pluginv1.RuntimePrepareResponse), nil
}

func (f *fake) prepareRuntime(r *pluginv1.RuntimePrepareRequest) (*pluginv1.RuntimePrepareResponse, error) {
	f.disturb()
	var s bundle
	err := json.Unmarshal(r.GetSpecJson(), &s)
	known := r.GetNetwork() >= pluginv1.SandboxNetwork_SANDBOX_NETWORK_NONE && r.GetNetwork() <= pluginv1.SandboxNetwork_SANDBOX_NETWORK_OWN
	switch {
	case broken("prepares nothing"):
		return nil, status.Error(codes.FailedPrecondition, "not today")
	case !known && !broken("any network"):
		return nil, status.Errorf(codes.FailedPrecondition, "network %d", r.GetNetwork())
	case err != nil && broken("any spec"):
		r.SpecJson = []byte(`{}`)
	case err != nil && broken("fails at a spec that is none"):
		return nil, err
	case err != nil:
		return nil, status.Error(codes.InvalidArgument, err.Error())
	case s.Process.Terminal && broken("dies of terminals"):
		return nil, errors.New("index out of range")
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	defects := []string{"FAKE_DEFECT=" + os.Getenv("FAKE_DEFECT")}
	out := &pluginv1.RuntimePrepareResponse{
		Program: &pluginv1.Program{Path: self}, SpecJson: r.GetSpecJson(),
		Run:   &pluginv1.Command{Args: []string{asBox, "run", "/bundle/config.json", "{pid-file}", "{failure-file}"}, Env: defects},
		Exec:  &pluginv1.Command{Args: []string{asBox, "exec", "/dev/fd/3", "{pid-file}"}, Env: defects},
		Facts: map[string]string{"version": version},
	}
	if !broken("passes signals on") {
		out.Signal = &pluginv1.Command{Args: []string{asBox, "signal", "{pid}", "{signal}"}, Env: defects}
		out.SignalGroup = &pluginv1.Command{Args: []string{asBox, "signal-group", "{pid}", "{signal}"}, Env: defects}
	}
	if r.GetCheckpoint() {
		out.Checkpoint = checkpoints(defects)
	}
	switch {
	case broken("prepares again"), broken("counts"):
		out.Facts["run"] = fmt.Sprint(f.runs.Add(1))
	case broken("has the pid"):
		out.Facts["pid"] = fmt.Sprint(os.Getpid())
	case broken("keeps a child"):
		linger("", true)
	case broken("writes a bundle"):
		return out, os.WriteFile(filepath.Join(f.runDir, "config.json"), r.GetSpecJson(), 0o600)
	case broken("unknown word"):
		out.Run.Args = append(out.Run.Args, "{bundle}")
	case broken("host's hooks") && r.GetRootless():
		out.SpecJson = append([]byte(`{"hooks":{},`), r.GetSpecJson()[1:]...)
	case broken("another digest"):
		out.Program.Sha256 = strings.Repeat("0a", 32)
	case broken("wants libraries"):
		out.Program.Libraries = true
	case broken("names a script"):
		out.Program.Path = "/etc/passwd"
	}
	return out, nil
}

// bundle is what the box knows of a config.json.
type bundle struct {
	Process boxed `json:"process"`
	Root    struct {
		Path string `json:"path"`
	} `json:"root"`
}

type boxed struct {
	Terminal bool     `json:"terminal"`
	Args     []string `json:"args"`
	Env      []string `json:"env"`
	Cwd      string   `json:"cwd"`
	User     struct {
		UID uint32 `json:"uid"`
		GID uint32 `json:"gid"`
	} `json:"user"`
}

// box is the program's main.
func box(args []string) int {
	code, err := runBox(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "box:", err)
		return 125
	}
	return code
}

// runFile is where the number of the workload is.
const runFile = "/state/workload"

func runBox(args []string) (int, error) {
	if done, code, err := checkpointBox(args); done {
		return code, err
	}
	verb, file, pidFile := args[0], args[1], args[2]
	switch {
	case verb == "signal", verb == "signal-group" && broken("signals no group"):
		return signalBox(file, pidFile)
	case verb == "signal-group":
		return signalBox("-"+file, pidFile)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	in := bundle{}
	if verb == "run" {
		err = json.Unmarshal(b, &in)
	} else {
		err = json.Unmarshal(b, &in.Process)
	}
	if err != nil {
		return 0, err
	}
	p := in.Process
	if verb == "run" && len(args) > 4 {
		from, err := restoredFrom(args[4])
		if err != nil {
			return 0, err
		}
		p.Env = append(p.Env, from)
	}
	if verb == "exec" && broken("drops variables of processes") || verb == "run" && broken("drops variables") {
		p.Env = p.Env[:1]
	}
	// The workload ends with this thread, and so with the program.
	runtime.LockOSThread()
	root := "/rootfs"
	if broken("in its own root") {
		root = "/"
		p.Args[0], p.Env = "/rootfs"+p.Args[0], append(p.Env, "PATH=/rootfs/bin")
	}
	if verb == "run" {
		for _, d := range []string{"/dev", "/proc"} {
			if err := syscall.Mount(d, "/rootfs"+d, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
				return 0, fmt.Errorf("binding %s: %w", d, err)
			}
		}
	}
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Path, cmd.Err = p.Args[0], nil
	cmd.Env, cmd.Dir = p.Env, p.Cwd
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Pdeathsig: syscall.SIGKILL, Setpgid: verb == "exec"}
	if broken("leaves what it runs") {
		cmd.SysProcAttr.Pdeathsig = 0
	}
	if p.User.UID != 0 && !broken("all are root") {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: p.User.UID, Gid: p.User.GID}
	}
	if p.Terminal && broken("a pipe for a terminal") {
		cmd.Stdin = strings.NewReader("")
	}
	signals := make(chan os.Signal, 8)
	if broken("passes signals on") {
		signal.Notify(signals, syscall.SIGTERM)
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	number := []byte(strconv.Itoa(cmd.Process.Pid))
	if verb == "run" {
		err = os.WriteFile(runFile, number, 0o600)
	}
	if verb == "run" && broken("complains") {
		if err := os.WriteFile(args[3], []byte("warning: slow"), 0o600); err != nil {
			return 0, err
		}
	}
	if broken("writes no number") {
		number = nil
	}
	if err == nil {
		err = os.WriteFile(pidFile, number, 0o600)
	}
	if err != nil {
		return 0, err
	}
	_ = cmd.Wait() // its state tells
	if verb == "run" && !broken("leaves processes") {
		endOthers()
	}
	st := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case verb == "run" && broken("always well"), verb == "exec" && broken("processes are always well"):
		return 0, nil
	case st.Signaled() && broken("forgets signals"):
		return 1, nil
	case st.Signaled():
		return 128 + int(st.Signal()), nil
	}
	return st.ExitStatus(), nil
}

func signalBox(pid, number string) (int, error) {
	n, err := strconv.Atoi(number)
	if err != nil {
		return 0, err
	}
	if broken("sends no signals") {
		return 0, nil
	}
	if pid == "1" || broken("signals the workload") {
		b, err := os.ReadFile(runFile)
		if err != nil {
			return 0, err
		}
		pid = string(b)
	}
	to, err := strconv.Atoi(pid)
	if err != nil {
		return 0, err
	}
	return 0, syscall.Kill(to, syscall.Signal(n))
}

// endOthers ends what the workload has left: all are in one session.
func endOthers() {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is a good one
	for _, d := range dirs {
		n, err := strconv.Atoi(filepath.Base(d))
		if err != nil || n == os.Getpid() {
			continue
		}
		if session, err := unix.Getsid(n); err == nil && session == os.Getpid() {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
}
