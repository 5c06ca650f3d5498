// Package checkpoint owns the image of a sandbox on disk: how a directory becomes one,
// whole or not at all, and what must be true of one to be restored. What is in its files
// is the business of the program that writes and reads them.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Version of the manifest.
const Version = 1

const (
	manifestName = "manifest.json"
	// DataName is the directory, in that of the image, with the program's files.
	DataName = "image"

	maxManifest = 64 << 10
	maxFiles    = 64
)

// Manifest tells what an image is of, and so where it can be restored.
type Manifest struct {
	Version int       `json:"version"`
	Created time.Time `json:"created"`
	Job     string    `json:"job"`
	Sandbox string    `json:"sandbox"` // its id
	Runtime string    `json:"runtime"` // the plugin
	// Program is the SHA-256 of the runtime's program, in hexadecimal digits, and
	// ProgramVersion what the plugin says of it.
	Program        string `json:"program"`
	ProgramVersion string `json:"program_version,omitempty"`
	// Config is the SHA-256 of the config.json that the program had.
	Config string `json:"config"`
	Files  []File `json:"files"`
}

// File is one that the program has written.
type File struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// Error is an image that cannot be written or used.
type Error struct {
	Path string
	Err  error
	Hint string
}

func (e *Error) Error() string { return fmt.Sprintf("image %q: %v", e.Path, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Remedy says what to do about it.
func (e *Error) Remedy() string { return e.Hint }

// Image is one that is whole and its owner's alone.
type Image struct {
	Manifest
	Path string
	// Data is the directory with the program's files, as a path descriptor.
	Data *os.File
}

// Open looks at an image before anything of it is used: whoever could have written to it
// would be the program's memory.
func Open(path string) (_ *Image, err error) {
	fail := func(hint string, err error) error { return &Error{Path: path, Err: err, Hint: hint} }
	const name = "name a directory that nucleus checkpoint has made"
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	dir, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fail(name, os.NewSyscallError("open", err))
	}
	defer unix.Close(dir)
	if _, err := private(dir, unix.S_IFDIR); err != nil {
		return nil, fail("chmod 700 "+path+", if nobody else has written to it", err)
	}
	m, err := readManifest(dir)
	if err != nil {
		return nil, fail(name, err)
	}
	data, err := unix.Openat(dir, DataName, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fail(name, fmt.Errorf("%s: %w", DataName, err))
	}
	im := &Image{Manifest: *m, Path: path, Data: os.NewFile(uintptr(data), filepath.Join(path, DataName))}
	if err := im.whole(); err != nil {
		im.Close()
		return nil, fail("make the checkpoint again: the image was changed since, or copied in part", err)
	}
	return im, nil
}

// Close lets the descriptor go, if nobody has taken it over.
func (im *Image) Close() {
	if im.Data != nil {
		_ = im.Data.Close() // a path descriptor
		im.Data = nil
	}
}

// whole compares the files with the manifest, of which there may be no others: the program
// would read them, and nobody has looked at whose they are.
func (im *Image) whole() error {
	fd := int(im.Data.Fd())
	if _, err := private(fd, unix.S_IFDIR); err != nil {
		return fmt.Errorf("%s: %w", DataName, err)
	}
	listed := map[string]bool{}
	for _, f := range im.Files {
		listed[f.Name] = true
		at, err := unix.Openat(fd, f.Name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%q: %w", f.Name, err)
		}
		st, err := private(at, unix.S_IFREG)
		_ = unix.Close(at)
		if err != nil {
			return fmt.Errorf("%q: %w", f.Name, err)
		}
		if st.Size != f.Size {
			return fmt.Errorf("%q has %d bytes, and had %d", f.Name, st.Size, f.Size)
		}
	}
	again, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", DataName, err)
	}
	dir := os.NewFile(uintptr(again), DataName)
	defer dir.Close()
	names, err := dir.Readdirnames(maxFiles + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", DataName, err)
	}
	for _, n := range names {
		if !listed[n] {
			return fmt.Errorf("%q is not in %s", n, manifestName)
		}
	}
	return nil
}

func readManifest(dir int) (*Manifest, error) {
	fd, err := unix.Openat(dir, manifestName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("it has no %s, and so is none that nucleus checkpoint has made", manifestName)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", manifestName, err)
	}
	f := os.NewFile(uintptr(fd), manifestName)
	defer f.Close()
	if _, err := private(fd, unix.S_IFREG); err != nil {
		return nil, fmt.Errorf("%s: %w", manifestName, err)
	}
	d := json.NewDecoder(io.LimitReader(f, maxManifest))
	var m Manifest
	if err := d.Decode(&m); err != nil {
		return nil, fmt.Errorf("%s: %w", manifestName, err)
	}
	if m.Version != Version {
		return nil, fmt.Errorf("it is of version %d, and this release reads version %d", m.Version, Version)
	}
	if len(m.Files) == 0 || len(m.Files) > maxFiles {
		return nil, fmt.Errorf("%s: %d files", manifestName, len(m.Files))
	}
	for _, f := range m.Files {
		if f.Name != filepath.Base(f.Name) || f.Name == "." || f.Name == ".." {
			return nil, fmt.Errorf("%s: %q is no name of a file", manifestName, f.Name)
		}
	}
	return &m, nil
}

// private tells whether a file is of a kind, and nobody's but ours or root's.
func private(fd int, kind uint32) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != kind:
		return nil, errors.New("it is no file of the kind that it should be")
	case int(st.Uid) != os.Geteuid() && st.Uid != 0:
		return nil, fmt.Errorf("it belongs to user %d, and neither to you nor to root", st.Uid)
	case st.Mode&0o077 != 0:
		return nil, fmt.Errorf("others have rights to it (mode %04o)", st.Mode&0o7777)
	}
	return &st, nil
}

// Fits tells why the image cannot be restored with a runtime's program and its
// config.json.
func (im *Image) Fits(runtime, program, config string) error {
	fail := func(hint, format string, args ...any) error {
		return &Error{Path: im.Path, Err: fmt.Errorf(format, args...), Hint: hint}
	}
	switch {
	case im.Runtime != runtime:
		return fail("restore it with that runtime", "it is of runtime %q, and the job has %q", im.Runtime, runtime)
	case im.Program != program:
		return fail("install the program that it was made with, or make the checkpoint again", "it was made with another program of runtime %q (version %q, SHA-256 %q, and this one has %q)", runtime, im.ProgramVersion, im.Program, program)
	case im.Config != config:
		return fail("restore it with the job that it was made with: command, variables, user, mounts, limits and hostname are as they were", "it is of a sandbox of job %q with another configuration than this one's", im.Job)
	}
	return nil
}
