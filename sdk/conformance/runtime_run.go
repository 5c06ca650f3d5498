package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/conformance/internal/cell"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// box is a sandbox that the program runs.
type box struct {
	k    *Checker
	cell *cell.Cell
	how  *runtime.Prepared
	simple
	run *execution
}

// execution is a call of the program.
type execution struct {
	*cell.Process
	out, errs *pipe
	input     *os.File
	known     *int // its status, once it has ended
}

// pipe collects what is written to it.
type pipe struct {
	mu   sync.Mutex
	b    []byte
	read *os.File
	done chan struct{}
}

// newPipe gives the end to write to, too.
func newPipe() (*pipe, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	return follow(r), w, nil
}

func follow(r *os.File) *pipe {
	p := &pipe{read: r, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		b := make([]byte, 4096)
		for {
			n, err := r.Read(b)
			p.mu.Lock()
			p.b = append(p.b, b[:min(n, maxTranscript-len(p.b))]...)
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return p
}

func (p *pipe) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.b)
}

// await waits for a text.
func (p *pipe) await(text string, limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(pause) {
		if strings.Contains(p.String(), text) {
			return true
		}
	}
	return false
}

// end waits for what is still to be read: not for ever, since others may hold the pipe.
func (p *pipe) end() {
	_ = p.read.SetReadDeadline(time.Now().Add(time.Second)) // then it is read for longer
	<-p.done
	p.read.Close()
}

// busybox is the program of workloads: a static one of the host.
func busybox() (string, error) {
	for _, name := range []string{"busybox", "busybox.static", "busybox-static"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			continue
		}
		if needs, err := interpreted(path); err == nil && !needs {
			return path, nil
		}
	}
	return "", skip("this host has no static busybox, which the sandboxes of these rules run: apt-get install busybox-static")
}

// inBox runs a rule about a sandbox whose workload is a line for the shell.
func (k *Checker) inBox(ctx context.Context, line string, terminal bool, rule func(*box) error) error {
	return k.inBoxOf(ctx, simple{args: []string{"/bin/sh", "-c", line}, terminal: terminal}, rule)
}

func (k *Checker) inBoxOf(ctx context.Context, of simple, rule func(*box) error) error {
	return k.withRuntime(ctx, func(p *process) error {
		if err := k.canPrepare(); err != nil {
			return err
		}
		if err := wire.FromRuntimePrepared(k.known.prepared).Check(); err != nil {
			return skip("its answer can't be used: see runtime/answer")
		}
		b := &box{k: k, simple: of}
		if os.Geteuid() == 0 {
			b.user = user
		}
		r, err := k.runtimeRequest(k.id(), b.simple)
		if err != nil {
			return err
		}
		got, err := k.prepare(ctx, p, r)
		switch {
		case err != nil && of.terminal && typed(err):
			return skip("it has no terminals: %s", tell(err))
		case err != nil:
			return broken("Prepare: %s%s", tell(err), p.said())
		}
		b.how = wire.FromRuntimePrepared(got)
		if err := b.open(); err != nil {
			return err
		}
		defer b.cell.Close()
		return rule(b)
	})
}

func (b *box) open() error {
	program, err := busybox()
	if err != nil {
		return err
	}
	dir, err := b.k.newDir("b")
	if err != nil {
		return err
	}
	root, rootfs := filepath.Join(dir, "root"), filepath.Join(dir, "rootfs")
	if err := errors.Join(os.Mkdir(root, 0o755), os.Mkdir(rootfs, 0o755)); err != nil {
		return err
	}
	if err := cell.Rootfs(rootfs, program, "sh", "sleep", "id", "cat", "kill", "true", "grep"); err != nil {
		return err
	}
	b.cell, err = cell.New(cell.Layout{Dir: root, Program: b.how.Program.Path, Rootfs: rootfs, Config: b.how.Spec, Libraries: b.how.Program.Libraries, Devices: b.how.Program.Devices})
	if errors.Is(err, cell.ErrUnavailable) {
		return skip("%v", err)
	}
	return err
}

const (
	// boxLimit is for whatever a sandbox does, all of which takes a moment.
	boxLimit = 6 * time.Second
	// expectLimit is for what need not come.
	expectLimit = 2 * time.Second

	boxID       = "0123456789abcdef0123456789abcdef"
	runPIDFile  = runtime.StatePath + "/run.pid"
	execPIDFile = runtime.StatePath + "/exec.pid"
	failureFile = runtime.StatePath + "/failure"
)

// call executes the program. What it writes is read to its end by close.
func (b *box) call(c runtime.Command, further *os.File, words ...string) (_ *execution, err error) {
	r := &execution{}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	var stdout, stderr, stdin *os.File
	if r.out, stdout, err = newPipe(); err == nil {
		theirs = append(theirs, stdout)
		r.errs, stderr, err = newPipe()
	}
	if err == nil {
		theirs = append(theirs, stderr)
		stdin, r.input, err = os.Pipe()
	}
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, stdin)
	files := []*os.File{stdin, stdout, stderr}
	if further != nil {
		files = append(files, further)
	}
	args := cell.Replace(c.Args, append(words, runtime.WordID, boxID)...)
	r.Process, err = b.cell.Start(cell.Command{Args: args, Env: c.Env, Files: files})
	return r, err
}

// start runs the workload.
func (b *box) start() (err error) {
	b.run, err = b.call(b.how.Run, nil, runtime.WordPIDFile, runPIDFile, runtime.WordFailureFile, failureFile)
	return err
}

// endsWithin leaves the status for ended.
func (r *execution) endsWithin(limit time.Duration) bool {
	status, ok := r.Wait(limit)
	if ok {
		r.known = &status
	}
	return ok
}

// ended waits for the end of a call, and tells what it has to be.
func (r *execution) ended(want int) error {
	ok := r.known != nil || r.endsWithin(boxLimit)
	r.input.Close()
	if !ok {
		return broken("it still runs after %s; standard error: %q", boxLimit, r.errs)
	}
	r.out.end()
	r.errs.end()
	if *r.known != want {
		return broken("it ended with %d, and not with %d; standard error: %q", *r.known, want, r.errs)
	}
	return nil
}

// signal sends one to the workload, or to a further process, which has a number.
func (b *box) signal(to *execution, pid string, s syscall.Signal) error {
	if len(b.how.Signal.Args) == 0 {
		return to.Signal(s)
	}
	return b.signalBy("Signal", b.how.Signal, pid, s)
}

func (b *box) signalBy(name string, c runtime.Command, pid string, s syscall.Signal) error {
	r, err := b.call(c, nil, runtime.WordPID, pid, runtime.WordSignal, strconv.Itoa(int(s)))
	if err != nil {
		return err
	}
	if err := r.ended(0); err != nil {
		return fmt.Errorf("the command %s: %w", name, err)
	}
	return nil
}

func runsWorkload(ctx context.Context, k *Checker) error {
	line := `read x; echo "$x|$CHECK|$(pwd)|$(id -u)|$(id -g)"; echo problem >&2; exit 7`
	return k.inBox(ctx, line, false, func(b *box) error {
		if err := b.start(); err != nil {
			return err
		}
		if _, err := b.run.input.WriteString("input\n"); err != nil {
			return err
		}
		if err := b.run.ended(7); err != nil {
			return err
		}
		want := fmt.Sprintf("input|a b|/tmp|%d|%d\n", b.user, b.user)
		if got := b.run.out.String(); got != want {
			return broken("standard output is %q, and not %q", got, want)
		}
		if got := b.run.errs.String(); got != "problem\n" {
			return broken("standard error is %q, and not %q", got, "problem\n")
		}
		// There need not be one.
		if text, err := b.cell.Read(failureFile); err == nil && text != "" {
			return broken("it has not failed, and %s says %q", runtime.WordFailureFile, text)
		}
		return nil
	})
}

func confinesWorkload(ctx context.Context, k *Checker) error {
	line := `for f in ` + strings.Join([]string{runtime.ProgramPath, runtime.BundlePath, runtime.StatePath, runtime.RootPath, "/usr"}, " ") +
		`; do if [ -e $f ]; then echo $f; fi; done`
	return k.inBox(ctx, line, false, func(b *box) error {
		if err := b.start(); err != nil {
			return err
		}
		if err := b.run.ended(0); err != nil {
			return err
		}
		if got := b.run.out.String(); got != "" {
			return broken("the workload sees %q", strings.Fields(got))
		}
		return nil
	})
}

func runsOnTerminal(ctx context.Context, k *Checker) error {
	return k.inBox(ctx, `[ -t 0 ] && [ -t 1 ] && echo "a terminal" && exit 5`, true, func(b *box) error {
		master, slave, err := terminal()
		if err != nil {
			return err
		}
		out := follow(master)
		r := &execution{out: out}
		r.Process, err = b.cell.Start(cell.Command{
			Args: cell.Replace(b.how.Run.Args, runtime.WordID, boxID, runtime.WordPIDFile, runPIDFile, runtime.WordFailureFile, failureFile), Env: b.how.Run.Env,
			Files: []*os.File{slave, slave, slave}, Terminal: true,
		})
		slave.Close()
		if err != nil {
			return err
		}
		status, ok := r.Wait(boxLimit)
		if !ok {
			return broken("it still runs after %s; the terminal: %q", boxLimit, out)
		}
		out.end()
		if status != 5 || !strings.Contains(out.String(), "a terminal") {
			return broken("it ended with %d, and not with 5; the terminal: %q", status, out)
		}
		return nil
	})
}

// terminal gives both ends of one.
func terminal() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("open /dev/ptmx", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
	}
	return master, slave, err
}

func passesSignals(ctx context.Context, k *Checker) error {
	for _, c := range []struct {
		line string
		want int
	}{
		{`trap "exit 9" TERM; echo ready; while :; do sleep 0.05; done`, 9},
		{`echo ready; exec sleep 60`, 128 + int(unix.SIGTERM)},
		{`echo ready; exec sleep 60`, 128 + int(unix.SIGKILL)},
	} {
		if err := k.inBox(ctx, c.line, false, func(b *box) error {
			if err := b.start(); err != nil {
				return err
			}
			if !b.run.out.await("ready", boxLimit) {
				return broken("the workload did not start within %s; standard error: %q", boxLimit, b.run.errs)
			}
			s := unix.SIGTERM
			if c.want > 128 {
				s = syscall.Signal(c.want - 128)
			}
			if err := b.signal(b.run, "1", s); err != nil {
				return err
			}
			// The first process of a pid namespace, which the workload may be, gets no signal
			// that it does not expect but SIGKILL (pid_namespaces(7)).
			if c.want == 128+int(unix.SIGTERM) && !b.run.endsWithin(expectLimit) {
				return nil
			}
			if err := b.run.ended(c.want); err != nil {
				return fmt.Errorf("%s of %q: %w", s, c.line, err)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// further starts one more process.
func (b *box) further(line string) (*execution, error) {
	s := b.simple
	s.args = []string{"/bin/sh", "-c", line}
	text, err := json.Marshal(s.process())
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("process", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "process")
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return b.call(b.how.Exec, f, runtime.WordPIDFile, execPIDFile)
}

// withFurther runs a rule beside a workload that waits.
func (k *Checker) withFurther(ctx context.Context, rule func(*box) error) error {
	return k.inBox(ctx, `echo there > /tmp/mark; echo ready; read x; exit 4`, false, func(b *box) error {
		if len(b.how.Exec.Args) == 0 {
			return skip("it has no further processes")
		}
		if err := b.start(); err != nil {
			return err
		}
		if !b.run.out.await("ready", boxLimit) {
			return broken("the workload did not start within %s; standard error: %q", boxLimit, b.run.errs)
		}
		if err := rule(b); err != nil {
			return err
		}
		if _, err := b.run.input.WriteString("\n"); err != nil {
			return broken("the workload has ended: %v", err)
		}
		if err := b.run.ended(4); err != nil {
			return fmt.Errorf("the workload: %w", err)
		}
		return nil
	})
}

func runsFurther(ctx context.Context, k *Checker) error {
	return k.withFurther(ctx, func(b *box) error {
		r, err := b.further(`echo "$CHECK|$(pwd)|$(id -u)|$(cat /tmp/mark)"; exit 6`)
		if err != nil {
			return err
		}
		if err := r.ended(6); err != nil {
			return err
		}
		if got, want := r.out.String(), fmt.Sprintf("a b|/tmp|%d|there\n", b.user); got != want {
			return broken("standard output is %q, and not %q", got, want)
		}
		return nil
	})
}

func killsFurther(ctx context.Context, k *Checker) error {
	return k.withFurther(ctx, func(b *box) error {
		r, err := b.further(`echo ready; exec sleep 4711`)
		if err != nil {
			return err
		}
		if !r.out.await("ready", boxLimit) {
			return broken("it did not start within %s; standard error: %q", boxLimit, r.errs)
		}
		pid := ""
		if len(b.how.Signal.Args) > 0 {
			if pid, err = b.number(); err != nil {
				return err
			}
		}
		if err := b.signal(r, pid, unix.SIGKILL); err != nil {
			return err
		}
		if err := r.ended(128 + int(unix.SIGKILL)); err != nil {
			return err
		}
		return b.gone(`471[1]`) // which is not in the line that looks for it
	})
}

// number reads what Exec writes down, which may come after what the process itself says.
func (b *box) number() (string, error) {
	for end := time.Now().Add(expectLimit); ; time.Sleep(pause) {
		text, err := b.cell.Read(execPIDFile)
		pid := strings.TrimSpace(text)
		if n, nerr := strconv.Atoi(pid); err == nil && nerr == nil && n > 1 {
			return pid, nil
		}
		if time.Now().After(end) {
			return "", broken("%s holds %q, %v, and not the number of the process", execPIDFile, text, err)
		}
	}
}

func killsGroup(ctx context.Context, k *Checker) error {
	return k.withFurther(ctx, func(b *box) error {
		if len(b.how.SignalGroup.Args) == 0 {
			return skip("it does not say how a group is signalled")
		}
		r, err := b.further(`sh -c 'sleep 4711; true' >/dev/null 2>&1 & sleep 0.3; echo ready; sleep 4711; true`)
		if err != nil {
			return err
		}
		if !r.out.await("ready", boxLimit) {
			return broken("it did not start within %s; standard error: %q", boxLimit, r.errs)
		}
		pid, err := b.number()
		if err == nil {
			err = b.signalBy("SignalGroup", b.how.SignalGroup, pid, unix.SIGKILL)
		}
		if err == nil {
			err = r.ended(128 + int(unix.SIGKILL))
		}
		if err != nil {
			return err
		}
		return b.gone(`471[1]`)
	})
}

// gone waits until no process inside has the pattern in its arguments.
func (b *box) gone(pattern string) error {
	for end := time.Now().Add(endLimit); ; {
		r, err := b.further(`! grep -l "` + pattern + `" /proc/[0-9]*/cmdline 2>/dev/null`)
		if err != nil {
			return err
		}
		if err := r.ended(0); err == nil || time.Now().After(end) {
			if err != nil {
				return broken("%s later it is still there: %q", endLimit, r.out)
			}
			return nil
		}
	}
}

func endsAll(ctx context.Context, k *Checker) error {
	return k.inBox(ctx, `sleep 60 >/dev/null 2>&1 & echo ready; exit 0`, false, func(b *box) error {
		if err := b.start(); err != nil {
			return err
		}
		if err := b.run.ended(0); err != nil {
			return err
		}
		for end := time.Now().Add(endLimit); ; time.Sleep(pause) {
			left, err := b.cell.Others()
			switch {
			case err != nil || left == "":
				return err
			case time.Now().After(end):
				return broken("%s later there still are: %s", endLimit, left)
			}
		}
	})
}
