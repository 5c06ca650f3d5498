package runtime

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// Bounds of an answer of Prepare.
const (
	MaxSpec  = 1 << 20  // bytes of config.json
	MaxWords = 256      // arguments of one command, and variables
	MaxText  = 64 << 10 // bytes of both
	MaxFacts = 32
	MaxFact  = 1 << 10 // bytes

	maxFactName = 64
	maxPath     = 4096 // limits.h
)

// Check tells what is wrong with an answer, as the core does before anything is made of
// it. The program's file is not looked at.
func (p *Prepared) Check() error {
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
		signal = []string{WordSignal}
	}
	if len(p.Signal.Args) > 0 && len(p.Exec.Args) > 0 {
		exec, signal = []string{WordPIDFile}, append(signal, WordPID)
	}
	var group []string
	if len(p.SignalGroup.Args) > 0 {
		if exec == nil {
			return errors.New("signal group: without exec and signal there is no process that leads one")
		}
		group = signal
	}
	for _, c := range []struct {
		name    string
		command Command
		known   []string
		needed  []string
	}{
		{"run", p.Run, []string{WordID, WordPIDFile, WordFailureFile}, nil},
		{"exec", p.Exec, []string{WordID, WordPIDFile}, exec},
		{"signal", p.Signal, []string{WordID, WordPID, WordSignal}, signal},
		{"signal group", p.SignalGroup, []string{WordID, WordPID, WordSignal}, group},
	} {
		if err := checkCommand(c.command, c.known, c.needed); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	if err := p.Checkpoint.check(); err != nil {
		return err
	}
	return checkFacts(p.Facts)
}

func (c *Checkpoint) check() error {
	given := 0
	commands := []struct {
		name    string
		command Command
		known   []string
		image   bool
	}{
		{"checkpoint: pause", c.Pause, []string{WordID}, false},
		{"checkpoint: save", c.Save, []string{WordID, WordImage}, true},
		{"checkpoint: resume", c.Resume, []string{WordID}, false},
		{"checkpoint: restore", c.Restore, []string{WordID, WordPIDFile, WordFailureFile, WordImage}, true},
	}
	for _, x := range commands {
		if err := checkCommand(x.command, x.known, nil); err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
		if len(x.command.Args) == 0 {
			continue
		}
		given++
		if x.image && !slices.ContainsFunc(x.command.Args, func(a string) bool { return strings.Contains(a, WordImage) }) {
			return fmt.Errorf("%s: without %s in its arguments there is no image", x.name, WordImage)
		}
	}
	if given != 0 && given != len(commands) {
		return fmt.Errorf("checkpoint: it has %d of its %d commands, and has all or none", given, len(commands))
	}
	return nil
}

func checkProgram(p Program) error {
	switch {
	case len(p.Path) >= maxPath || !printable(p.Path):
		return errors.New("its path is too long, or not printable")
	case !filepath.IsAbs(p.Path) || filepath.Clean(p.Path) != p.Path:
		return fmt.Errorf("%q is no absolute, clean path", p.Path)
	}
	if b, err := hex.DecodeString(p.SHA256); err != nil || len(b) != 0 && len(b) != 32 {
		return errors.New("its SHA-256 is not of 64 hexadecimal digits")
	}
	for i, d := range p.Devices {
		if !slices.Contains(devices(), d) || slices.Contains(p.Devices[:i], d) {
			return fmt.Errorf("device %q: a runtime may have, once: %s", d, strings.Join(devices(), " "))
		}
	}
	return nil
}

// devices are what a program may have beside the harmless ones.
func devices() []string { return []string{"/dev/kvm"} }

// checkSpec looks at what the core relies on, and at what would be done in the place
// of the core.
func checkSpec(b []byte) error {
	if len(b) > MaxSpec {
		return fmt.Errorf("it has %d bytes, and may have %d", len(b), MaxSpec)
	}
	var s struct {
		Version string `json:"ociVersion"`
		Process *struct {
			Args []string `json:"args"`
		} `json:"process"`
		Root *struct {
			Path string `json:"path"`
		} `json:"root"`
		Hooks *struct{} `json:"hooks"`
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	switch {
	case s.Version == "":
		return errors.New("it has no ociVersion")
	case s.Process == nil || len(s.Process.Args) == 0:
		return errors.New("it has no process")
	case s.Root == nil || s.Root.Path != RootPath:
		return fmt.Errorf("its root is not %s", RootPath)
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

func checkCommand(c Command, known, needed []string) error {
	size := 0
	for _, s := range slices.Concat(c.Args, c.Env) {
		if size += len(s) + 1; strings.ContainsRune(s, 0) {
			return errors.New("there is a NUL in it")
		}
	}
	if len(c.Args) > MaxWords || len(c.Env) > MaxWords || size > MaxText {
		return fmt.Errorf("it has %d arguments and %d variables of %d bytes, and may have %d of each, of %d bytes", len(c.Args), len(c.Env), size, MaxWords, MaxText)
	}
	if len(c.Args) > 0 && c.Args[0] == "" {
		return errors.New("its first argument, the program's name, is empty")
	}
	var found []string
	for _, a := range c.Args {
		for _, w := range words(a) {
			if !slices.Contains(known, w) {
				return fmt.Errorf("argument %q: %s is not replaced here, but %s", a, w, strings.Join(known, " "))
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
			return fmt.Errorf("variable %q is none, or there twice", kv)
		}
		names = append(names, name)
	}
	return nil
}

func checkFacts(facts map[string]string) error {
	if len(facts) > MaxFacts {
		return fmt.Errorf("%d facts: there may be %d", len(facts), MaxFacts)
	}
	for k, v := range facts {
		if k == "" || len(k) > maxFactName || len(v) > MaxFact || !printable(k) || !printable(v) {
			return fmt.Errorf("fact %q: it is too long, or not printable", k)
		}
	}
	return nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar })
}
