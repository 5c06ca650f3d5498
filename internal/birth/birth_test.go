package birth

import (
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// Both ways of making a child, wherever the test runs.
var ways = map[string]cloner{"shared": clone, "copied": cloneCopy}

// shell is a program that runs a script, with its output in a pipe.
func shell(t *testing.T, script string, more func(p *Program)) (*Program, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	p := New()
	p.Keep(w)
	p.DefaultSignals()
	p.Call(Must, "dup3", unix.SYS_DUP3, w.Fd(), 1, 0)
	more(p)
	path, err := p.String("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	argv, err := p.Strings("sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	envv, err := p.Strings("PATH=/usr/bin:/bin")
	if err != nil {
		t.Fatal(err)
	}
	p.Unblock()
	p.Call(Must, "execve", unix.SYS_EXECVE, path, argv, envv)
	t.Cleanup(func() { _ = w.Close() })
	return p, r
}

func said(t *testing.T, p *Program, r *os.File) string {
	t.Helper()
	for _, k := range p.keep {
		if w, ok := k.(*os.File); ok {
			_ = w.Close()
		}
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestStepsComeBeforeTheProgram(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			p, r := shell(t, "umask; ulimit -c; grep SigIgn /proc/self/status", func(p *Program) {
				p.Call(Ignore, "umask", unix.SYS_UMASK, 0o27)
				lim := &unix.Rlimit{}
				p.Keep(lim)
				p.Call(Must, "prlimit64", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, uintptr(unsafe.Pointer(lim)), 0)
			})
			old := unix.Umask(0o22)
			defer unix.Umask(old)
			b, err := p.clone(0, -1, way)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Await(nil); err != nil {
				t.Fatal(err)
			}
			defer unix.Close(b.PidFD)
			if got := said(t, p, r); !strings.HasPrefix(got, "0027\n0\n") {
				t.Errorf("it says %q", got)
			}
			if _, err := syscall.Wait4(b.Pid, nil, 0, nil); err != nil {
				t.Error(err)
			}
			if now := unix.Umask(0o22); now != 0o22 {
				t.Errorf("its umask is ours: %04o", now)
			}
		})
	}
}

func TestFailedStepIsNamed(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			p, _ := shell(t, "exit 0", func(p *Program) {
				p.Call(Ignore, "close", unix.SYS_CLOSE, 9999)
				p.Call(Must, "chdir", unix.SYS_CHDIR, 0)
			})
			b, err := p.clone(0, -1, way)
			if err != nil {
				t.Fatal(err)
			}
			pid := b.Pid
			var se *os.SyscallError
			if err := b.Await(nil); !errors.As(err, &se) || se.Syscall != "chdir" || !errors.Is(err, unix.EFAULT) {
				t.Errorf("error %v", err)
			}
			if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("it was not collected: %v", err)
			}
		})
	}
}

// Whoever made the child may find that it is not wanted.
func TestGivenUp(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			p, _ := shell(t, "exec sleep 1000", func(*Program) {})
			b, err := p.clone(0, -1, way)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Await(io.ErrUnexpectedEOF); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("error %v", err)
			}
			if err := unix.Kill(b.Pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("it is still there: %v", err)
			}
		})
	}
}

func TestNoStringWithNUL(t *testing.T) {
	if _, err := New().Strings("a", "b\x00c"); err == nil {
		t.Error("no error")
	}
}

// Who begins a process and forgets it has left the collector nothing of it to take.
func TestForgotten(t *testing.T) {
	if !Shared {
		testutil.Skip(t, "amd64", "elsewhere no process can be begun")
	}
	var wait [2]int
	if err := unix.Pipe2(wait[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	pid := func() int {
		p := New()
		one := new([8]byte)
		p.Keep(one)
		p.Call(Must, "close", unix.SYS_CLOSE, uintptr(wait[1]))
		p.Call(One, "read", unix.SYS_READ, uintptr(wait[0]), uintptr(unsafe.Pointer(one)), 1)
		b, err := p.Begin(0)
		if err != nil {
			t.Fatal(err)
		}
		return b.Pid
	}()
	var rubbish [][]byte
	for range 3 {
		runtime.GC()
		for range 2000 {
			rubbish = append(rubbish, make([]byte, begunSteps*int(unsafe.Sizeof(step{}))))
		}
	}
	runtime.KeepAlive(rubbish)
	_ = unix.Close(wait[0])
	_ = unix.Close(wait[1])
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil || ws.ExitStatus() != 1 {
		t.Errorf("wait status %#x (%v), want exit 1", int(ws), err)
	}
}
