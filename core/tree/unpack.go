package tree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// UnpackOptions says who owns the copy and how large it may be. Zero limits are
// the defaults.
type UnpackOptions struct {
	UID, GID           uint32
	MaxBytes, MaxFiles int64
	MaxDepth           int
	// Verify reads the copy back from the file system and compares it with what
	// the stream carried.
	Verify bool
}

// Unpack writes the tree that r carries into an empty directory and gives the
// digest of what it wrote. It has the reader to itself: it may read past the
// end of the stream. It doesn't trust the stream: it creates
// everything anew, by single names in directories that it has made itself, and
// follows no link. A stream that is not wholly as Pack writes it is an
// ErrStream; what was written until then stays and is the caller's to discard.
// No file gets set-user-ID, set-group-ID or sticky bits.
func Unpack(dirfd int, r io.Reader, o UnpackOptions) (string, error) {
	if o.MaxDepth <= 0 {
		o.MaxDepth = DefaultMaxDepth
	}
	root, err := openAt(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return "", fmt.Errorf("opening the directory to unpack into: %w", os.NewSyscallError("openat2", err))
	}
	u := &unpacker{
		in: streamReader{r: r, buf: make([]byte, streamBuffer)}, o: o,
		m: newManifest(), lim: newLimits(o.MaxBytes, o.MaxFiles), h: sha256.New(),
	}
	defer u.close()
	if err := u.begin(root); err != nil {
		return "", err
	}
	for len(u.dirs) > 0 {
		if err := u.record(); err != nil {
			return "", err
		}
	}
	digest, err := u.trailer()
	if err != nil || !o.Verify {
		return digest, err
	}
	back, err := attest(context.Background(), dirfd, 1)
	if err != nil {
		return "", fmt.Errorf("reading the copy back: %w", err)
	}
	if back.Digest != digest {
		return "", fmt.Errorf("reading the copy back: %w", &MismatchError{Want: digest, Got: back.Digest})
	}
	return digest, nil
}

// openDir is a directory that is being filled.
type openDir struct {
	fd      int
	path    string
	last    string // the name that came last
	mode    uint32
	modTime unix.Timespec
}

// unpacker turns a stream into a tree.
type unpacker struct {
	in   streamReader
	o    UnpackOptions
	m    *manifest
	lim  limits
	h    hash.Hash
	dirs []openDir // from the root to where we are
}

func (u *unpacker) close() {
	for _, d := range u.dirs {
		_ = unix.Close(d.fd)
	}
}

// begin reads the head of the stream and the record of the root.
func (u *unpacker) begin(root int) error {
	u.dirs = append(u.dirs, openDir{fd: root, path: "."})
	names, err := readNames(root, ".", make([]byte, 4096))
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("unpacking: %w", unix.ENOTEMPTY)
	}
	if magic := string(u.in.need(len(streamMagic))); u.in.err == nil && magic != streamMagic {
		return fmt.Errorf("%w: it begins with %q, want %q", ErrStream, magic, streamMagic)
	}
	kind, name := u.in.u8(), u.in.str(maxName)
	mode, mtime := u.modeAndTime()
	if u.in.err != nil {
		return u.in.err
	}
	if kind != recDir || name != "" {
		return fmt.Errorf("%w: no root", ErrStream)
	}
	u.dirs[0].mode, u.dirs[0].modTime = mode, mtime
	u.m.dir(mode, ".")
	return nil
}

// record carries out one record inside the root.
func (u *unpacker) record() error {
	kind := u.in.u8()
	if kind == recUp || u.in.err != nil {
		return u.up()
	}
	name := u.in.str(maxName)
	if u.in.err != nil {
		return u.in.err
	}
	dir := &u.dirs[len(u.dirs)-1]
	if err := checkName(name, dir.last); err != nil {
		return err
	}
	dir.last = name
	path := name
	if len(u.dirs) > 1 {
		path = dir.path + "/" + name
	}
	if err := u.lim.file(path); err != nil {
		return err
	}
	switch kind {
	case recDir:
		return u.mkdir(dir.fd, name, path)
	case recFile:
		return u.file(dir.fd, name, path)
	case recLink:
		return u.link(dir.fd, name, path)
	}
	return fmt.Errorf("%w: record of kind %#x", ErrStream, kind)
}

// checkName admits what can be nothing but a new entry of the directory.
func checkName(name, last string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("%w: name %q", ErrStream, name)
	case name <= last:
		return fmt.Errorf("%w: name %q after %q", ErrStream, name, last)
	}
	return nil
}

func (u *unpacker) modeAndTime() (uint32, unix.Timespec) {
	mode := u.in.u32()
	t := unix.Timespec{Sec: int64(u.in.u64()), Nsec: int64(u.in.u32())}
	if u.in.err == nil && (mode > 0o7777 || t.Nsec >= 1e9) {
		u.in.err = fmt.Errorf("%w: mode %#o, time %d.%d", ErrStream, mode, t.Sec, t.Nsec)
	}
	return mode & permMask, t
}

func (u *unpacker) mkdir(dir int, name, path string) error {
	mode, mtime := u.modeAndTime()
	if u.in.err != nil {
		return u.in.err
	}
	if len(u.dirs) > u.o.MaxDepth {
		return &LimitError{What: "depth", Limit: int64(u.o.MaxDepth), Path: path}
	}
	if err := unix.Mkdirat(dir, name, 0o700); err != nil {
		return creating(path, "mkdirat", err)
	}
	fd, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return creating(path, "openat2", err)
	}
	u.dirs = append(u.dirs, openDir{fd: fd, path: path, mode: mode, modTime: mtime})
	u.m.dir(mode, path)
	return nil
}

// up completes a directory. Its mode and times come last: the mode may forbid
// to create in it, and each entry changes the time.
func (u *unpacker) up() error {
	if u.in.err != nil {
		return u.in.err
	}
	d := u.dirs[len(u.dirs)-1]
	u.dirs = u.dirs[:len(u.dirs)-1]
	defer unix.Close(d.fd)
	return u.settle(d.fd, d.path, d.mode, d.modTime)
}

func (u *unpacker) file(dir int, name, path string) error {
	mode, mtime := u.modeAndTime()
	size := u.in.u64()
	if u.in.err != nil {
		return u.in.err
	}
	if int64(size) < 0 {
		return fmt.Errorf("%w: size %d", ErrStream, size)
	}
	if err := u.lim.content(int64(size), path); err != nil {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return creating(path, "openat", err)
	}
	defer unix.Close(fd)
	u.h.Reset()
	for left := int64(size); left > 0; {
		b := u.in.some(left)
		if u.in.err != nil {
			return u.in.err
		}
		left -= int64(len(b))
		u.h.Write(b)
		if err := writeAll(fd, b); err != nil {
			return fmt.Errorf("writing %q: %w", path, err)
		}
	}
	u.m.file(mode, int64(size), u.h.Sum(nil), path)
	return u.settle(fd, path, mode, mtime)
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("write", err)
		}
		b = b[n:]
	}
	return nil
}

func (u *unpacker) link(dir int, name, path string) error {
	mtime := unix.Timespec{Sec: int64(u.in.u64()), Nsec: int64(u.in.u32())}
	target := u.in.str(maxTarget)
	if u.in.err != nil {
		return u.in.err
	}
	if mtime.Nsec >= 1e9 || target == "" || strings.ContainsRune(target, 0) {
		return fmt.Errorf("%w: link %q to %q", ErrStream, path, target)
	}
	if err := unix.Symlinkat(target, dir, name); err != nil {
		return creating(path, "symlinkat", err)
	}
	if err := unix.Fchownat(dir, name, int(u.o.UID), int(u.o.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return u.owning(path, err)
	}
	times := []unix.Timespec{mtime, mtime}
	if err := unix.UtimesNanoAt(dir, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting the time of %q: %w", path, os.NewSyscallError("utimensat", err))
	}
	u.m.link(path, target)
	return nil
}

// settle gives an open file its owner, then its mode, which a change of owner
// may have altered, then its time.
func (u *unpacker) settle(fd int, path string, mode uint32, mtime unix.Timespec) error {
	if err := unix.Fchown(fd, int(u.o.UID), int(u.o.GID)); err != nil {
		return u.owning(path, err)
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return fmt.Errorf("changing the mode of %q: %w", path, os.NewSyscallError("fchmod", err))
	}
	if err := futimens(fd, mtime); err != nil {
		return fmt.Errorf("setting the time of %q: %w", path, os.NewSyscallError("utimensat", err))
	}
	return nil
}

func (u *unpacker) owning(path string, err error) error {
	return fmt.Errorf("changing the owner of %q to %d:%d: %w", path, u.o.UID, u.o.GID, os.NewSyscallError("fchown", err))
}

func creating(path, call string, err error) error {
	return fmt.Errorf("creating %q: %w", path, os.NewSyscallError(call, err))
}

// trailer compares what was written with what Pack counted.
func (u *unpacker) trailer() (string, error) {
	kind, files, size := u.in.u8(), u.in.u64(), u.in.u64()
	want := bytes.Clone(u.in.need(sha256.Size))
	if u.in.err != nil {
		return "", u.in.err
	}
	if kind != recTrailer {
		return "", fmt.Errorf("%w: no trailer", ErrStream)
	}
	if files != uint64(u.lim.files) || size != uint64(u.lim.bytes) {
		return "", fmt.Errorf("%w: trailer counts %d files and %d bytes, %d and %d came", ErrStream, files, size, u.lim.files, u.lim.bytes)
	}
	got := u.m.sum()
	if !bytes.Equal(got, want) {
		return "", fmt.Errorf("%w: %w", ErrStream, &MismatchError{Want: digestString(want), Got: digestString(got)})
	}
	return digestString(got), nil
}
