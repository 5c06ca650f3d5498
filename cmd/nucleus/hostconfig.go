package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
)

// hostConfig is the host-wide configuration, read once.
type hostConfig struct {
	read   bool
	config *hostconfig.Config
	// source is what its diagnostics, and those about its defaults, show.
	source []byte
	err    error
}

// hostConfiguration reads what the flag names, else the file of this user. None
// is in order: everything has a default.
func (a *app) hostConfiguration() (*hostconfig.Config, error) {
	h := &a.host
	if h.read {
		return h.config, h.err
	}
	h.read = true
	h.config, h.err = &hostconfig.Config{}, nil
	path := a.hostConfigPath
	if path == "" {
		path = defaultHostConfig()
	}
	if path == "" {
		return h.config, nil
	}
	// Most hosts have none: that needs no text of an error.
	if a.hostConfigPath == "" && errors.Is(unix.Access(path, unix.F_OK), unix.ENOENT) {
		return h.config, nil
	}
	h.source, h.err = readTrusted(path)
	if errors.Is(h.err, fs.ErrNotExist) && a.hostConfigPath == "" { // it has gone since
		h.err = nil
		return h.config, nil
	}
	if h.err != nil {
		return nil, h.err
	}
	c, diags := hostconfig.Parse(path, h.source)
	if h.err = a.diagnostics(map[string][]byte{path: h.source}, diags); h.err == nil {
		h.config = c
	}
	return h.config, h.err
}

func defaultHostConfig() string {
	if os.Geteuid() == 0 {
		return "/etc/nucleus/nucleus.hcl"
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "nucleus", "nucleus.hcl")
}

// readTrusted reads a file that decides what is trusted, so nobody but root and
// the caller may have written it.
func readTrusted(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &hintedError{err: fmt.Errorf("host configuration: %w", err), hint: "name a file that you can read with -host-config, or leave it out"}
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("host configuration %q: %w", path, os.NewSyscallError("fstat", err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("host configuration %q: not a regular file", path)
	}
	if st.Uid != 0 && st.Uid != uint32(os.Geteuid()) || st.Mode&0o022 != 0 {
		return nil, &hintedError{
			err:  fmt.Errorf("host configuration %q: others can write to it (mode %04o, owner %d)", path, st.Mode&0o7777, st.Uid),
			hint: fmt.Sprintf("chown %d %s && chmod 0644 %s", os.Geteuid(), path, path),
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxJobFile))
	if err != nil {
		return nil, fmt.Errorf("host configuration: %w", err)
	}
	return b, nil
}

// sinks opens where events go: what the command line names, and the host's audit
// file. close is never nil.
func (a *app) sinks(where string) (to []io.Writer, closeAll func(), err error) {
	var open []io.Closer
	closeAll = func() {
		for _, f := range open {
			_ = f.Close() // a line that could not be written was reported as such
		}
	}
	c, err := a.hostConfiguration()
	if err != nil {
		return nil, closeAll, err
	}
	type sink struct{ name, hint string }
	var sinks []sink
	if where != "" {
		sinks = append(sinks, sink{where, "correct -events: a file in a directory that exists, or fd:N for an open descriptor"})
	}
	if c.Audit != nil {
		sinks = append(sinks, sink{c.Audit.File, "make its directory, or correct audit { file = … } in the host configuration"})
	}
	for _, x := range sinks {
		f, err := audit.OpenSink(x.name)
		if err != nil {
			closeAll()
			return nil, func() {}, &hintedError{err: err, hint: x.hint}
		}
		bounded := audit.Bounded(f)
		open = append(open, bounded, f)
		if strings.HasPrefix(x.name, "fd:") {
			a.inherited = append(a.inherited, f)
		}
		to = append(to, bounded)
	}
	return to, closeAll, nil
}

// hintedError is an error with a remedy.
type hintedError struct {
	err  error
	hint string
}

func (e *hintedError) Error() string { return e.err.Error() }
func (e *hintedError) Unwrap() error { return e.err }
