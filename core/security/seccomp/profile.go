package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Profile is an OCI seccomp profile as it was written: the LinuxSeccomp object of the runtime specification, with the
// extensions of Docker and containers-common.
type Profile struct {
	Name             string
	DefaultAction    string
	DefaultErrnoRet  *uint
	DefaultErrno     string
	Architectures    []string
	ArchMap          []ArchMap
	Flags            []string
	ListenerPath     string
	ListenerMetadata string
	Syscalls         []SyscallGroup

	lines map[string]int // of the keys, for errors
}

// ArchMap is a set of architectures of which the one of this machine applies.
type ArchMap struct {
	Architecture     string   `json:"architecture"`
	SubArchitectures []string `json:"subArchitectures"`
}

// SyscallGroup gives one action to a set of calls.
type SyscallGroup struct {
	Names    []string      `json:"names"`
	Name     string        `json:"name"` // the form of old Docker profiles
	Action   string        `json:"action"`
	ErrnoRet *uint         `json:"errnoRet"`
	Errno    string        `json:"errno"`
	Args     []SyscallArg  `json:"args"`
	Comment  string        `json:"comment"`
	Includes ProfileFilter `json:"includes"`
	Excludes ProfileFilter `json:"excludes"`

	line int
}

// SyscallArg is a condition on an argument; for SCMP_CMP_MASKED_EQ, Value is the mask.
type SyscallArg struct {
	Index    uint   `json:"index"`
	Value    uint64 `json:"value"`
	ValueTwo uint64 `json:"valueTwo"`
	Op       string `json:"op"`
}

// ProfileFilter limits a group to some sandboxes and hosts.
type ProfileFilter struct {
	Caps      []string `json:"caps"`
	Arches    []string `json:"arches"`
	MinKernel string   `json:"minKernel"`
}

// ProfileError is a fault in a profile at a line of its file.
type ProfileError struct {
	Name string
	Line int
	Err  error
}

func (e *ProfileError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("seccomp profile %q: %v", e.Name, e.Err)
	}
	return fmt.Sprintf("seccomp profile %q, line %d: %v", e.Name, e.Line, e.Err)
}

func (e *ProfileError) Unwrap() error { return e.Err }

// maxProfileSize bounds what is read as a profile; the largest in use has some 30 KiB.
const maxProfileSize = 1 << 20

// ParseProfile reads a profile. It is strict, since a misspelt key of a security policy must not pass for an absent one:
// unknown keys, repeated keys and trailing data are errors, as are actions, comparisons and errno names that do not
// exist. What depends on the sandbox is looked at by [Request.Resolve].
func ParseProfile(name string, data []byte) (*Profile, error) {
	if len(data) > maxProfileSize {
		return nil, &ProfileError{Name: name, Err: fmt.Errorf("%d bytes are more than the limit of %d", len(data), maxProfileSize)}
	}
	r := &profileReader{data: data, dec: json.NewDecoder(bytes.NewReader(data)), profile: &Profile{Name: name, lines: map[string]int{}}}
	if err := r.read(); err != nil {
		return nil, r.located(err)
	}
	return r.profile, nil
}

type profileReader struct {
	data    []byte
	dec     *json.Decoder
	profile *Profile
	start   int64 // of the value being decoded
}

func (r *profileReader) located(err error) error {
	offset := r.start
	var syntax *json.SyntaxError
	var located *ProfileError
	switch {
	case errors.As(err, &located):
		return err
	case errors.As(err, &syntax):
		offset = r.dec.InputOffset()
		if len(r.data) > 0 && errors.Is(err, io.ErrUnexpectedEOF) {
			offset = int64(len(r.data))
		}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		offset, err = int64(len(r.data)), errors.New("file ends within the profile")
	}
	return &ProfileError{Name: r.profile.Name, Line: r.line(offset), Err: err}
}

func (r *profileReader) line(offset int64) int {
	offset = min(max(offset, 0), int64(len(r.data)))
	return 1 + bytes.Count(r.data[:offset], []byte("\n"))
}

func (r *profileReader) read() error {
	if err := r.delim('{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for r.dec.More() {
		r.start = r.valueStart()
		token, err := r.dec.Token()
		if err != nil {
			return err
		}
		key, ok := token.(string)
		if !ok {
			return fmt.Errorf("want a key, not %v", token)
		}
		if seen[key] {
			return fmt.Errorf("key %q is there twice", key)
		}
		seen[key] = true
		r.profile.lines[key] = r.line(r.start)
		if err := r.field(key); err != nil {
			return err
		}
	}
	if err := r.delim('}'); err != nil {
		return err
	}
	r.start = r.dec.InputOffset()
	if _, err := r.dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the profile")
	}
	return r.profile.check()
}

func (r *profileReader) field(key string) error {
	p := r.profile
	targets := map[string]any{
		"defaultAction":    &p.DefaultAction,
		"defaultErrnoRet":  &p.DefaultErrnoRet,
		"defaultErrno":     &p.DefaultErrno,
		"architectures":    &p.Architectures,
		"archMap":          &p.ArchMap,
		"flags":            &p.Flags,
		"listenerPath":     &p.ListenerPath,
		"listenerMetadata": &p.ListenerMetadata,
	}
	if key == "syscalls" {
		return r.syscalls()
	}
	target, ok := targets[key]
	if !ok {
		return fmt.Errorf("unknown key %q", key)
	}
	return r.value(target)
}

func (r *profileReader) syscalls() error {
	r.start = r.valueStart()
	token, err := r.dec.Token()
	if err != nil {
		return err
	}
	if token == nil {
		return nil
	}
	if token != json.Delim('[') {
		return errors.New("syscalls is not an array")
	}
	for r.dec.More() {
		var group SyscallGroup
		if err := r.value(&group); err != nil {
			return err
		}
		group.line = r.line(r.start)
		if err := group.check(); err != nil {
			return err
		}
		r.profile.Syscalls = append(r.profile.Syscalls, group)
	}
	return r.delim(']')
}

// value decodes one value and refuses keys that it does not know.
func (r *profileReader) value(target any) error {
	r.start = r.valueStart()
	var raw json.RawMessage
	if err := r.dec.Decode(&raw); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(target); err != nil {
		var offset int64
		var mismatch *json.UnmarshalTypeError
		if errors.As(err, &mismatch) {
			offset = r.start + mismatch.Offset
			err = fmt.Errorf("%s holds a %s, not a value of type %s", mismatch.Field, mismatch.Value, mismatch.Type)
		} else {
			offset = r.start
			err = errors.New(strings.TrimPrefix(err.Error(), "json: "))
		}
		return &ProfileError{Name: r.profile.Name, Line: r.line(offset), Err: err}
	}
	return nil
}

// valueStart is the offset of the next value: past the white space and punctuation that the decoder has yet to skip.
func (r *profileReader) valueStart() int64 {
	offset := r.dec.InputOffset()
	for offset < int64(len(r.data)) && strings.ContainsRune(" \t\r\n,:", rune(r.data[offset])) {
		offset++
	}
	return offset
}

func (r *profileReader) delim(want json.Delim) error {
	r.start = r.valueStart()
	token, err := r.dec.Token()
	if err != nil {
		return err
	}
	if token != want {
		return fmt.Errorf("want %q, not %v", want.String(), token)
	}
	return nil
}

// check looks at what concerns the profile as a whole.
func (p *Profile) check() error {
	fail := func(key string, err error) error { return &ProfileError{Name: p.Name, Line: p.lines[key], Err: err} }
	if p.DefaultAction == "" {
		return fail("defaultAction", errors.New("defaultAction is missing"))
	}
	if _, err := p.defaultAction(); err != nil {
		return fail("defaultAction", fmt.Errorf("defaultAction: %w", err))
	}
	for key, value := range map[string]string{"listenerPath": p.ListenerPath, "listenerMetadata": p.ListenerMetadata} {
		if value != "" {
			return fail(key, fmt.Errorf("%s is not supported: no agent outside of a sandbox answers its system calls", key))
		}
	}
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return fail("archMap", errors.New("architectures and archMap exclude each other"))
	}
	if _, err := p.loadFlags(); err != nil {
		return fail("flags", err)
	}
	return nil
}

func (g *SyscallGroup) check() error {
	if len(g.Names) == 0 && g.Name == "" {
		return errors.New("group has no names")
	}
	if len(g.Names) > 0 && g.Name != "" {
		return errors.New("name and names exclude each other")
	}
	if _, err := g.action(); err != nil {
		return fmt.Errorf("action: %w", err)
	}
	if _, err := g.conds(); err != nil {
		return err
	}
	for _, f := range []ProfileFilter{g.Includes, g.Excludes} {
		if f.MinKernel == "" {
			continue
		}
		if _, err := ParseKernel(f.MinKernel); err != nil {
			return fmt.Errorf("minKernel: %w", err)
		}
	}
	return nil
}

// Kernel is a kernel version as minKernel compares it.
type Kernel struct{ Major, Minor int }

// ParseKernel reads "MAJOR.MINOR" and ignores what follows, as in "6.1.0-13-amd64".
func ParseKernel(s string) (Kernel, error) {
	major, rest, ok := strings.Cut(s, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	maj, err1 := strconv.ParseUint(major, 10, 16)
	mnr, err2 := strconv.ParseUint(rest[:end], 10, 16)
	if !ok || err1 != nil || err2 != nil {
		return Kernel{}, fmt.Errorf("%q is not a kernel version", s)
	}
	return Kernel{int(maj), int(mnr)}, nil
}

func (k Kernel) less(o Kernel) bool {
	return k.Major < o.Major || k.Major == o.Major && k.Minor < o.Minor
}
