package exec

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

func TestExitCode(t *testing.T) {
	for _, test := range []struct {
		status       syscall.WaitStatus
		code, signal int
	}{
		{0, 0, 0},
		{7 << 8, 7, 0},
		{255 << 8, 255, 0},
		{9, 137, 9},
		{15, 143, 15},
		{11 | 0x80, 139, 11}, // with a core dump
	} {
		if code, signal := ExitCode(test.status); code != test.code || signal != test.signal {
			t.Errorf("status %#x: %d, %d, want %d, %d", int(test.status), code, signal, test.code, test.signal)
		}
	}
}

func TestStageFailure(t *testing.T) {
	if err := StageFailure(initproto.Exited{Status: 127 << 8}, "x"); err != nil {
		t.Errorf("a workload that returns 127 is no failure of ours: %v", err)
	}
	for _, test := range []struct {
		errno syscall.Errno
		code  int
		said  string
	}{
		{unix.ENOENT, CodeNotFound, "not found"},
		{unix.ENOTDIR, CodeNotFound, "not found"},
		{unix.EACCES, CodeNotExecutable, "permission denied"},
		{unix.ENOEXEC, CodeNotExecutable, "exec format error"},
		{unix.E2BIG, CodeNotExecutable, "argument list too long"},
	} {
		err := StageFailure(initproto.Exited{Step: initproto.StepExec, Errno: uint32(test.errno)}, "prog\x1b[2J")
		var ce *CommandError
		if !errors.As(err, &ce) || ce.Code != test.code || !errors.Is(err, test.errno) || !strings.Contains(err.Error(), test.said) {
			t.Errorf("%v: %v, want code %d and %q", test.errno, err, test.code, test.said)
		}
		if strings.Contains(err.Error(), "\x1b") {
			t.Errorf("a control character comes through: %q", err)
		}
	}
	for step := initproto.StepSession; step < initproto.StepExec; step++ {
		err := StageFailure(initproto.Exited{Step: step, Errno: uint32(unix.EPERM)}, "x")
		var se *StageError
		if !errors.As(err, &se) || se.Step != step || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), step.String()) {
			t.Errorf("step %s: %v", step, err)
		}
	}
	if err := StageFailure(initproto.Exited{Step: initproto.StepGate}, "x"); err == nil || strings.Contains(err.Error(), "errno 0") {
		t.Errorf("killed at the gate: %v", err)
	}
}
