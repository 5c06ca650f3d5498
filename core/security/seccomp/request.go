package seccomp

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/agext/levenshtein"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/sysno"
)

// Request is what a job asks for. The zero value is the default policy.
type Request struct {
	// Profile replaces the default policy; nil keeps it.
	Profile *Profile
	// Allow opens calls by name on top of the default policy or the profile.
	Allow []string
	// Caps are the capabilities that the workload keeps, with or without "CAP_".
	Caps []string
	// Kernel is what minKernel of a profile is compared with. Zero is filled in by [Compiler] from the running kernel.
	Kernel Kernel
}

// AllowError is a name in Allow that cannot be opened.
type AllowError struct {
	Name       string
	Reason     string
	Suggestion string // a name that may have been meant, or ""
}

func (e *AllowError) Error() string {
	msg := fmt.Sprintf("allowing system call %q: %s", e.Name, e.Reason)
	if e.Suggestion != "" {
		msg += fmt.Sprintf("; did you mean %q?", e.Suggestion)
	}
	return msg
}

// launcherCalls are what the launcher's last steps do under the filter: wait at the start gate, execute the workload, or
// give up.
var launcherCalls = []string{"execve", "exit_group", "read"}

// Resolved is a request worked out for one architecture: pure data.
type Resolved struct {
	Policy  Policy
	Name    string
	Flags   uint32
	Added   []string
	Ignored []string
}

// Digest identifies what was asked for, before it is resolved: equal requests have equal digests on every host.
func (r Request) Digest() string {
	caps := make([]string, len(r.Caps))
	for i, c := range r.Caps {
		caps[i] = capName(c)
	}
	asked := struct {
		Profile     *Profile
		Allow, Caps []string
		Kernel      Kernel
	}{r.Profile, sortedSet(r.Allow), sortedSet(caps), r.Kernel}
	if asked.Profile != nil {
		nameless := *asked.Profile
		nameless.Name = ""
		asked.Profile = &nameless
	}
	// Plain strings and numbers always encode.
	b, _ := json.Marshal(asked)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// asksNothing spares the usual start the work of resolving the default policy to find that it is the default policy.
func (r Request) asksNothing() bool {
	return r.Profile == nil && len(r.Allow) == 0 && len(openedByCaps(r.Caps)) == 0
}

func sortedSet(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}

// Resolve works the request out for this machine's architecture. All its errors are faults of the request.
func (r Request) Resolve() (Resolved, error) { return r.resolveFor(runtime.GOARCH) }

func (r Request) resolveFor(goarch string) (Resolved, error) {
	opened, ignored, err := r.checkAllow(goarch)
	if err != nil {
		return Resolved{}, err
	}
	if r.Profile != nil {
		resolved, err := r.resolveProfile(goarch, opened)
		resolved.Ignored = append(resolved.Ignored, ignored...)
		return resolved, err
	}
	resolved := Resolved{Policy: builtin(goarch, r.Caps, opened), Name: "default", Ignored: ignored}
	if len(opened) > 0 {
		resolved.Name += "+allow"
	}
	return resolved, resolved.Policy.Validate()
}

// CheckAllow tells why a name may not stand in Allow, nil if it may.
func CheckAllow(name string) *AllowError { return allowError(runtime.GOARCH, name) }

func allowError(goarch, name string) *AllowError {
	if reason := refusal(name); reason != "" {
		return &AllowError{Name: name, Reason: reason}
	}
	if !sysno.Known(name) {
		return &AllowError{Name: name, Reason: "there is no such call", Suggestion: suggestion(goarch, name)}
	}
	return nil
}

// checkAllow sorts the names into those to open and those without effect here, and reports every one that is refused.
func (r Request) checkAllow(goarch string) (opened, ignored []string, err error) {
	var errs []error
	for _, name := range sortedSet(r.Allow) {
		if err := allowError(goarch, name); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, ok := sysno.Number(goarch, name); !ok {
			ignored = append(ignored, fmt.Sprintf("allow %s: not a call of %s", name, goarch))
			continue
		}
		opened = append(opened, name)
	}
	return opened, ignored, errors.Join(errs...)
}

// refusal says why allow cannot open a call, or "".
func refusal(name string) string {
	if slices.Contains(killed.names, name) {
		return "it " + killed.why + ", and no sandbox may"
	}
	for _, n := range notAllowable {
		if n.name == name {
			return n.why
		}
	}
	return ""
}

func suggestion(goarch, name string) string {
	best, distance := "", 3
	for _, c := range sysno.Table(goarch) {
		if d := levenshtein.Distance(strings.ToLower(name), c.Name, nil); d < distance {
			best, distance = c.Name, d
		}
	}
	return best
}
