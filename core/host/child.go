package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// childName is the reserved argv[0] that turns this executable into a probe.
const childName = "nucleus-probe"

// reportFD is where a probe child writes its answer.
const reportFD = 3

// holdProbe is a child that only exists, so that its namespaces can be used,
// until its standard input ends.
const holdProbe = "hold"

// answer is what a probe child found. Ran is false until the probe body has
// returned: a child that dies early has not answered.
type answer struct {
	Ran    bool   `json:"ran"`
	Detail string `json:"detail,omitempty"`
	Err    string `json:"err,omitempty"`
	Errno  int    `json:"errno,omitempty"`
	// Setup: what failed was the preparation, which says nothing about the
	// feature itself.
	Setup bool `json:"setup,omitempty"`
	// Why and Remedy are the probe's own words, if it knows better than errno.
	Why    string `json:"why,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

// setupError marks a failure of the preparation for a probe.
type setupError struct{ err error }

func (e *setupError) Error() string { return e.err.Error() }
func (e *setupError) Unwrap() error { return e.err }

func setup(doing string, err error) error {
	return &setupError{fmt.Errorf("%s: %w", doing, err)}
}

// refusal is a feature that is surely not there, in the probe's own words.
type refusal struct{ why, remedy string }

func (e *refusal) Error() string { return e.why }

// MaybeChild runs a probe and exits, if this process was started to be one.
// Every program that calls Probe calls it first thing in main: Probe starts
// the program again under a reserved name. Otherwise it does nothing.
func MaybeChild() {
	if len(os.Args) < 2 || os.Args[0] != childName {
		return
	}
	// Credentials, filters and unshared namespaces belong to a thread.
	runtime.LockOSThread()
	// Not os.Exit: the program's exit hooks (the race detector sleeps a second
	// in its own) are no business of a probe.
	unix.Exit(runChild(os.Args[1:]))
}

func runChild(args []string) int {
	if args[0] == holdProbe {
		var b [1]byte
		for {
			n, err := unix.Read(0, b[:])
			if err != unix.EINTR && n <= 0 {
				return 0
			}
		}
	}
	unix.CloseOnExec(reportFD)
	var a answer
	p, ok := findProbe(args[0])
	if !ok {
		a = answer{Err: fmt.Sprintf("no probe is called %q", args[0]), Setup: true}
	} else {
		arg := ""
		if len(args) > 1 {
			arg = args[1]
		}
		detail, err := p.run(arg)
		a = toAnswer(detail, err)
	}
	b, err := json.Marshal(a)
	if err != nil {
		return 1
	}
	if _, err := os.NewFile(reportFD, "report").Write(b); err != nil {
		return 1
	}
	return 0
}

func toAnswer(detail string, err error) answer {
	a := answer{Ran: true, Detail: detail}
	if err == nil {
		return a
	}
	a.Err = err.Error()
	var errno unix.Errno
	if errors.As(err, &errno) {
		a.Errno = int(errno)
	}
	var se *setupError
	a.Setup = errors.As(err, &se)
	var no *refusal
	if errors.As(err, &no) {
		a.Why, a.Remedy = no.why, no.remedy
	}
	return a
}
