package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// failureFile is where the program says why it has failed. The workload does not see it.
const failureFile = runtime.StatePath + "/failure"

// logged is a line as glog and its like write it: what a program has noted down on its
// way, which is no failure. gVisor has some that a workload can bring about.
var logged = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[DIWEF][0-9]{4} [0-9:.]+ +[0-9]+ [^ \]]+\] `)
})

// What is read of it, and what is shown: the beginning says what it was.
const (
	maxFailure      = 1 << 20
	maxFailureLines = 4
	maxFailureText  = 600
)

// holdState keeps the program's directory: init's root ends with init, and what the
// program has left is looked at afterwards. It is opened before the program runs, which
// could mount something else over it.
func (s *Sandbox) holdState() error {
	if s.foreign.answer == nil {
		return nil
	}
	fd, err := s.inInitRoot(runtime.StatePath, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return s.reason("exec", err)
	}
	s.foreign.state = os.NewFile(uintptr(fd), runtime.StatePath)
	return nil
}

// programFailure tells of an end that is not the workload's: the program has written down
// why it failed, or a signal has ended it that nobody here has sent. One by which somebody
// wants an end may have come from the terminal.
func (s *Sandbox) programFailure(x initproto.Exited) error {
	if s.foreign.answer == nil {
		return nil
	}
	text := s.foreign.failure()
	ws := syscall.WaitStatus(x.Status)
	if text == "" && ws.Signaled() && !Ends(ws.Signal()) && !s.foreign.signalled.Load() {
		text = "it was ended by " + unix.SignalName(ws.Signal())
	}
	if text == "" {
		return nil
	}
	return &PhaseError{Phase: "exec", Origin: "runtime", Err: fmt.Errorf("the program of runtime %q has failed: %s", s.plan.Runtime.Plugin, text)}
}

// failure reads what the program has written down, "" if that is nothing.
func (e *enclosed) failure() string {
	if e.state == nil {
		return ""
	}
	fd, err := unix.Openat2(int(e.state.Fd()), path.Base(failureFile), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if errors.Is(err, unix.ENOENT) {
		return ""
	}
	if err != nil {
		return "what it says of it cannot be read: " + err.Error()
	}
	f := os.NewFile(uintptr(fd), failureFile)
	defer f.Close()
	// It is the program's, and may be anything by now.
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return "what it says of it is no file"
	}
	b := make([]byte, maxFailure)
	n, _ := f.ReadAt(b, 0) // what could be read is what there is
	return failureText(string(b[:n]))
}

// failureText gives the first lines of what a program says, on one line and safe to be
// shown. Programs that run OCI bundles write JSON, if they do, as runc's log has it.
func failureText(said string) string {
	var lines []string
	for said = strings.TrimSpace(said); said != "" && len(lines) < maxFailureLines; said = strings.TrimSpace(said) {
		var entry struct {
			Msg string `json:"msg"`
		}
		d := json.NewDecoder(strings.NewReader(said))
		if said[0] == '{' && d.Decode(&entry) == nil && entry.Msg != "" {
			lines, said = append(lines, entry.Msg), said[d.InputOffset():]
			continue
		}
		line, rest, _ := strings.Cut(said, "\n")
		if logged().MatchString(line) {
			said = rest
			continue
		}
		lines, said = append(lines, strings.TrimSpace(line)), rest
		if strings.HasPrefix(rest, "\n") {
			break // what follows is the trace of a panic
		}
	}
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(strings.Join(lines, "; "), " "))
	if len(text) > maxFailureText {
		text = strings.ToValidUTF8(text[:maxFailureText], "") + "…"
	}
	return strings.TrimSpace(text)
}
