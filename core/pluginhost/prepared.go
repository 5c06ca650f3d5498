package pluginhost

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// Bounds of what a runtime plugin may say of how a sandbox is run.
const (
	maxWords    = 256      // arguments of one command, and variables
	maxWordText = 64 << 10 // bytes of both
	maxSpec     = 1 << 20  // bytes of config.json
	maxFacts    = 32
	maxFactName = 64      // bytes
	maxFact     = 1 << 10 // bytes
)

// checkPrepared looks at how a plugin wants a sandbox run before anything is made of
// it. The program's file is not looked at.
func checkPrepared(p *runtime.Prepared) error {
	if err := checkProgram(p.Program); err != nil {
		return fmt.Errorf("program: %w", err)
	}
	if err := checkSpec(p.Spec); err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	if len(p.Run.Args) == 0 {
		return errors.New("run: it has no arguments")
	}
	var exec, signal []string // what has to be there, or a process could not be signalled
	if len(p.Signal.Args) > 0 {
		signal = []string{runtime.WordSignal}
	}
	if len(p.Signal.Args) > 0 && len(p.Exec.Args) > 0 {
		exec, signal = []string{runtime.WordPIDFile}, append(signal, runtime.WordPID)
	}
	for _, c := range []struct {
		name    string
		command runtime.Command
		known   []string
		needed  []string
	}{
		{"run", p.Run, []string{runtime.WordID, runtime.WordPIDFile}, nil},
		{"exec", p.Exec, []string{runtime.WordID, runtime.WordPIDFile}, exec},
		{"signal", p.Signal, []string{runtime.WordID, runtime.WordPID, runtime.WordSignal}, signal},
	} {
		if err := checkCommand(c.command, c.known, c.needed); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return checkFacts(p.Facts)
}

func checkProgram(p runtime.Program) error {
	switch {
	case len(p.Path) >= unix.PathMax || !printable(p.Path):
		return errors.New("its path is too long, or not printable")
	case !filepath.IsAbs(p.Path) || filepath.Clean(p.Path) != p.Path:
		return fmt.Errorf("%q is no absolute, clean path", p.Path)
	}
	if b, err := hex.DecodeString(p.SHA256); err != nil || len(b) != 0 && len(b) != 32 {
		return errors.New("its SHA-256 is not of 64 hexadecimal digits")
	}
	for i, d := range p.Devices {
		if !slices.Contains(runtimeDevices(), d) || slices.Contains(p.Devices[:i], d) {
			return fmt.Errorf("device %q: a runtime may have, once: %s", shown(d), strings.Join(runtimeDevices(), " "))
		}
	}
	return nil
}

// runtimeDevices are what a program may have beside the harmless ones.
func runtimeDevices() []string { return []string{"/dev/kvm"} }

// checkSpec looks at what the core relies on, and at what would be done in the place
// of the core.
func checkSpec(b []byte) error {
	if len(b) > maxSpec {
		return fmt.Errorf("it has %d bytes, and may have %d", len(b), maxSpec)
	}
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	switch {
	case s.Version == "":
		return errors.New("it has no ociVersion")
	case s.Process == nil || len(s.Process.Args) == 0:
		return errors.New("it has no process")
	case s.Root == nil || s.Root.Path != runtime.RootPath:
		return fmt.Errorf("its root is not %s", runtime.RootPath)
	case s.Hooks != nil:
		return errors.New("it has hooks, which are the core's to run")
	}
	return nil
}

// words are what looks like one of those that are replaced: letters and dashes in braces.
func words(s string) []string {
	var out []string
	for {
		begin := strings.IndexByte(s, '{')
		if begin < 0 {
			return out
		}
		s = s[begin:]
		n := len(s[1:]) - len(strings.TrimLeft(s[1:], "abcdefghijklmnopqrstuvwxyz-"))
		if n > 0 && strings.HasPrefix(s[1+n:], "}") {
			out = append(out, s[:n+2])
		}
		s = s[1:]
	}
}

func checkCommand(c runtime.Command, known, needed []string) error {
	size := 0
	for _, s := range slices.Concat(c.Args, c.Env) {
		if size += len(s) + 1; strings.ContainsRune(s, 0) {
			return errors.New("there is a NUL in it")
		}
	}
	if len(c.Args) > maxWords || len(c.Env) > maxWords || size > maxWordText {
		return fmt.Errorf("it has %d arguments and %d variables of %d bytes, and may have %d of each, of %d bytes", len(c.Args), len(c.Env), size, maxWords, maxWordText)
	}
	if len(c.Args) > 0 && c.Args[0] == "" {
		return errors.New("its first argument, the program's name, is empty")
	}
	var found []string
	for _, a := range c.Args {
		for _, w := range words(a) {
			if !slices.Contains(known, w) {
				return fmt.Errorf("argument %q: %s is not replaced here, but %s", shown(a), w, strings.Join(known, " "))
			}
			found = append(found, w)
		}
	}
	for _, w := range needed {
		if !slices.Contains(found, w) {
			return fmt.Errorf("without %s in its arguments a process cannot be signalled", w)
		}
	}
	var names []string
	for _, kv := range c.Env {
		name, _, ok := strings.Cut(kv, "=")
		if !ok || name == "" || slices.Contains(names, name) {
			return fmt.Errorf("variable %q is none, or there twice", shown(kv))
		}
		names = append(names, name)
	}
	return nil
}

func checkFacts(facts map[string]string) error {
	if len(facts) > maxFacts {
		return fmt.Errorf("%d facts: there may be %d", len(facts), maxFacts)
	}
	for k, v := range facts {
		if k == "" || len(k) > maxFactName || len(v) > maxFact || !printable(k) || !printable(v) {
			return fmt.Errorf("fact %q: it is too long, or not printable", shown(k))
		}
	}
	return nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar })
}
