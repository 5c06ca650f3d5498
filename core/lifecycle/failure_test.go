package lifecycle

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/runtimes"
)

func TestWhatAProgramSaysOfItsFailureIsOneSafeLine(t *testing.T) {
	long := strings.Repeat("ü", maxFailureText)
	for said, want := range map[string]string{
		"":         "",
		" \n\t\n ": "",
		"panic: index out of range\n\ngoroutine 1 [running]:\nmain.main()\n":                                       "panic: index out of range",
		"runtime: cannot allocate memory\nfatal error: out of memory\n\nruntime stack:\n":                          "runtime: cannot allocate memory; fatal error: out of memory",
		`{"msg":"running container: no \"x\"","level":"error","time":"2026-01-01"}{"msg":"again","level":"error"}`: `running container: no "x"; again`,
		"{\"msg\":\"one\"}\nthen text\n": "one; then text",
		`{"level":"error"}`:              `{"level":"error"}`,
		`{"msg":"cut of`:                 `{"msg":"cut of`,
		"1\n2\n3\n4\n5\n":                "1; 2; 3; 4",
		// What is only logged: by a workload that asks for a raw socket, for one.
		"I1129 18:17:24.194035       1 rate_limited.go:36] A process tried\n": "",
		"W0102 15:04:05.678901 1 a.go:2] text\npanic: boom\n\ngoroutine 1":    "panic: boom",
		"\x1b]0;owned\a\u202eevil\xff\r\nnucleus: error: forged":              "]0;owned  evil ; nucleus: error: forged",
		long: long[:maxFailureText] + "…",
	} {
		if got := failureText(said); got != want {
			t.Errorf("%q: %q, want %q", said, got, want)
		}
	}
}

// Somebody who has broken into the program can leave anything in its directory.
func TestAFailureIsReadFromAFileOfTheProgramsAlone(t *testing.T) {
	canary := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(canary, []byte("CANARY"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(dir string) string { return filepath.Join(dir, filepath.Base(failureFile)) }
	for name, x := range map[string]struct {
		leave func(dir string) error
		want  string
	}{
		"nothing":      {func(string) error { return nil }, ""},
		"a file":       {func(dir string) error { return os.WriteFile(at(dir), []byte("out of luck\n"), 0o600) }, "out of luck"},
		"an empty one": {func(dir string) error { return os.WriteFile(at(dir), nil, 0o600) }, ""},
		"a link":       {func(dir string) error { return os.Symlink(canary, at(dir)) }, "cannot be read: too many levels"},
		"a pipe":       {func(dir string) error { return unix.Mkfifo(at(dir), 0o600) }, "is no file"},
		"a directory":  {func(dir string) error { return os.Mkdir(at(dir), 0o700) }, "is no file"},
		"a large one":  {func(dir string) error { return os.WriteFile(at(dir), []byte(strings.Repeat("x\n", 1<<20)), 0o600) }, "x; x; x; x"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := x.leave(dir); err != nil {
				t.Fatal(err)
			}
			state, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer state.Close()
			e := enclosed{state: state}
			got := e.failure()
			if x.want == "" && got != "" || !strings.Contains(got, x.want) || strings.Contains(got, "CANARY") {
				t.Errorf("%q, want %q", got, x.want)
			}
		})
	}
}

func TestASignalThatNobodySentIsTheProgramsEnd(t *testing.T) {
	for _, x := range []struct {
		status    unix.Signal
		signalled bool
		failed    bool
	}{
		{unix.SIGKILL, false, true},
		{unix.SIGSEGV, false, true},
		{unix.SIGKILL, true, false},
		{unix.SIGINT, false, false}, // of a terminal
		{0, false, false},
	} {
		s := &Sandbox{plan: &plan.Plan{Runtime: &plan.Runtime{Plugin: "box"}}}
		s.foreign.answer = &runtimes.Answer{}
		s.foreign.signalled.Store(x.signalled)
		err := s.programFailure(initproto.Exited{Status: uint32(x.status)})
		var pe *PhaseError
		if errors.As(err, &pe) != x.failed || x.failed && (pe.Origin != "runtime" || !strings.Contains(pe.Error(), `runtime "box" has failed: it was ended by SIG`)) {
			t.Errorf("%+v: %v", x, err)
		}
	}
	if err := new(Sandbox).programFailure(initproto.Exited{Status: uint32(unix.SIGKILL)}); err != nil {
		t.Errorf("the native runtime has no program: %v", err)
	}
}
