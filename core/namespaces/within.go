package namespaces

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/birth"
)

// maxWords bounds what a reader has to say of why it failed.
const maxWords = 4 << 10

// secNoRoot is SECBIT_NOROOT of capabilities(7): uid 0 gets nothing by an exec.
const secNoRoot = 1

// ReadWithin runs a program of ours, path or what the descriptor program has if it is not nil, in a user namespace, or in the present one if userNS is
// nil, with files as its descriptors from 0 on but 2, and returns when it has ended. It
// is in no other namespace and no control group of the sandbox's, which does not see it and
// whose freezing does not stop it. In the user namespace it may read what belongs to any of
// its ids, and do no more. What it writes to 2 is its error.
func ReadWithin(ctx context.Context, userNS *os.File, path string, program *os.File, argv []string, files []*os.File) error {
	words, its, err := os.Pipe()
	if err != nil {
		return err
	}
	defer words.Close()
	defer its.Close()
	files = append([]*os.File{files[0], files[1], its}, files[2:]...)
	p, high, err := readerProgram(userNS, path, program, argv, files)
	if err != nil {
		closeAll(high)
		return err
	}
	// The parent-death signal follows the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	child, err := p.Clone(0, -1)
	if err == nil {
		err = child.Await(nil)
	}
	closeAll(high) // it has its own; those of 2 would keep its end from being seen
	if err != nil {
		return err
	}
	defer unix.Close(child.PidFD)
	_ = its.Close()
	ended, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-ctx.Done():
			_ = unix.PidfdSendSignal(child.PidFD, unix.SIGKILL, nil, 0) // it may have ended by itself
		case <-ended:
		}
	}()
	said, _ := io.ReadAll(io.LimitReader(words, maxWords)) // what there is of it
	_, _ = io.Copy(io.Discard, words)
	var ws syscall.WaitStatus
	for {
		if _, err = syscall.Wait4(child.Pid, &ws, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	close(ended)
	<-watched
	switch text := strings.TrimSpace(string(said)); {
	case err != nil:
		return os.NewSyscallError("wait4", err)
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted: %w", context.Cause(ctx))
	case ws.Signaled():
		return fmt.Errorf("the process that reads it was ended by signal %d", ws.Signal())
	case ws.ExitStatus() != 0 && text == "":
		return fmt.Errorf("the process that reads it ended with code %d and says nothing of it", ws.ExitStatus())
	case ws.ExitStatus() != 0:
		return errors.New(text)
	}
	return nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// readerProgram gives the first steps of such a process, and the descriptors that they name.
func readerProgram(userNS *os.File, path string, program *os.File, argv []string, files []*os.File) (_ *birth.Program, high []int, err error) {
	p := birth.New()
	up := func(f *os.File) (uintptr, error) {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, birth.HighFD)
		if err != nil {
			return 0, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
		}
		high = append(high, fd)
		return uintptr(fd), nil
	}
	p.DefaultSignals()
	p.Call(birth.Must, "setsid", unix.SYS_SETSID)
	if userNS != nil {
		fd, err := up(userNS)
		if err != nil {
			return nil, high, err
		}
		p.Call(birth.Must, "setns", unix.SYS_SETNS, fd, unix.CLONE_NEWUSER)
	}
	if userNS != nil || os.Geteuid() == 0 {
		// Its user may be the root of its namespace, who would get all at the exec.
		p.Call(birth.Must, "prctl PR_SET_SECUREBITS", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, secNoRoot, 0, 0, 0)
		only := new([2]unix.CapUserData)
		only[0] = unix.CapUserData{Effective: 1 << unix.CAP_DAC_READ_SEARCH, Permitted: 1 << unix.CAP_DAC_READ_SEARCH, Inheritable: 1 << unix.CAP_DAC_READ_SEARCH}
		header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		p.Keep(only)
		p.Keep(header)
		p.Call(birth.Must, "capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(only)))
		p.Call(birth.Must, "prctl PR_CAP_AMBIENT", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_DAC_READ_SEARCH, 0, 0)
	}
	p.Call(birth.Must, "prctl PR_SET_NO_NEW_PRIVS", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	// After the change of namespace, which clears it.
	p.Call(birth.Must, "prctl PR_SET_PDEATHSIG", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	for to, f := range files {
		fd, err := up(f)
		if err != nil {
			return nil, high, err
		}
		p.Call(birth.Must, "dup3", unix.SYS_DUP3, fd, uintptr(to), 0)
	}
	p.HoldExec(len(files))
	last := len(files)
	if program != nil {
		fd, err := up(program)
		if err != nil {
			return nil, high, err
		}
		last++
		p.Call(birth.Must, "dup3", unix.SYS_DUP3, fd, uintptr(last), unix.O_CLOEXEC)
		path = ""
	}
	p.Call(birth.Must, "close_range", unix.SYS_CLOSE_RANGE, uintptr(last+1), uintptr(^uint32(0)), 0)
	prog, err := p.String(path)
	if err != nil {
		return nil, high, err
	}
	args, err := p.Strings(argv...)
	if err != nil {
		return nil, high, err
	}
	env, err := p.Strings("GOMAXPROCS=1")
	if err != nil {
		return nil, high, err
	}
	p.Unblock()
	if program != nil {
		p.Call(birth.Must, "execveat", unix.SYS_EXECVEAT, uintptr(last), prog, args, env, unix.AT_EMPTY_PATH)
	} else {
		p.Call(birth.Must, "execve", unix.SYS_EXECVE, prog, args, env)
	}
	return p, high, nil
}
