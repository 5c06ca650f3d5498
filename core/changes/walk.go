package changes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Options of Write.
type Options struct {
	// Target is where the sandbox sees the overlay, "/" or a path.
	Target string
	// Content asks for what is in regular files.
	Content bool
	// Own are paths below Target that were made before the workload was: no directory of
	// that name is told of, and no file that was not changed since. Whole are such of which
	// nothing is told.
	Own, Whole map[string]bool
	// Since is when the workload had not begun yet, in nanoseconds since 1970.
	Since int64
}

// Write writes all that differs between an overlay's upper and its lower directory. Each
// directory comes before what it holds, and names in one are in bytewise order.
//
// Both are descriptors, which stay the caller's. The caller has to be in the overlay's user
// namespace, if it has one, and may read what belongs to any id of it.
func Write(w io.Writer, upper, lower int, o Options) error {
	out, err := newWriter(w)
	if err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(upper, &fs); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	x := &walk{o: o, out: out, links: map[uint64]string{}, buf: make([]byte, 32<<10), room: fs.Blocks * uint64(fs.Bsize)}
	up, err := openAt(upper, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return os.NewSyscallError("openat2", err)
	}
	low, err := openAt(lower, ".", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		_ = unix.Close(up)
		return os.NewSyscallError("openat2", err)
	}
	if err := x.dir(up, low, strings.TrimSuffix(o.Target, "/"), 0, false); err != nil {
		return err
	}
	return out.end()
}

type walk struct {
	o       Options
	out     *writer
	entries int
	links   map[uint64]string // the first name of files that have more
	buf     []byte
	room    uint64 // how much content there can be, unless it is holes
	held    int    // bytes of names that are listed and not told of yet
}

// dir tells what an open directory holds, and closes both descriptors. low is -1 if nothing
// of the lower directory shows in it. reserved: no archive takes what it holds.
func (x *walk) dir(up, low int, path string, depth int, reserved bool) error {
	defer unix.Close(up)
	if low >= 0 {
		defer unix.Close(low)
	}
	if depth > maxDepth {
		return fmt.Errorf("the overlay has more than %d directories within each other", maxDepth)
	}
	before := x.held
	names, err := x.names(up)
	if err != nil {
		return err
	}
	defer func() { x.held = before }()
	for _, name := range names {
		if err := x.entry(up, low, path, name, depth, reserved); err != nil {
			return err
		}
	}
	return nil
}

func (x *walk) entry(up, low int, dir, name string, depth int, reserved bool) error {
	path := dir + "/" + name
	if x.o.Whole[path] {
		return nil
	}
	if x.entries++; x.entries > maxEntries {
		return fmt.Errorf("the overlay has more than %d files", maxEntries)
	}
	var st, was unix.Stat_t
	if err := statAt(up, name, &st); errors.Is(err, unix.ENOENT) {
		return nil // gone by now
	} else if err != nil {
		return fmt.Errorf("fstatat: %w", err)
	}
	existed := false
	if low >= 0 {
		existed = statAt(low, name, &was) == nil && !whiteout(&was)
	}
	reserved = reserved || strings.HasPrefix(name, Whiteout)
	if whiteout(&st) {
		if !existed {
			return nil
		}
		e := &Entry{Change: Deleted, Type: None, Path: path}
		if reserved {
			e.Type = Other
		}
		return x.out.entry(e)
	}
	e := &Entry{
		Change: Added, Type: Other, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec), Path: path,
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return x.directory(up, low, name, e, existed, &was, depth, reserved)
	}
	if x.o.Own[path] && st.Ctim.Nano() <= x.o.Since {
		return nil
	}
	switch {
	case existed && was.Mode&unix.S_IFMT == kind:
		e.Change = Modified
	case existed:
		e.Replaced = true
	}
	switch {
	case reserved:
		return x.out.entry(e)
	case kind == unix.S_IFREG:
		return x.file(up, name, e, &st)
	case kind == unix.S_IFLNK:
		e.Type = Symlink
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(up, name, buf)
		if err != nil { // it is another by now, or gone: the next look tells
			return nil
		}
		e.Target = string(buf[:n])
	}
	return x.out.entry(e)
}

func (x *walk) directory(up, low int, name string, e *Entry, existed bool, was *unix.Stat_t, depth int, reserved bool) error {
	fd, err := openAt(up, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if replaced(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening a directory: %w", os.NewSyscallError("openat2", err))
	}
	if e.Type = Directory; reserved {
		e.Type = Other
	}
	below, tell := -1, true
	switch {
	case !existed:
		tell = !x.o.Own[e.Path]
	case was.Mode&unix.S_IFMT != unix.S_IFDIR || opaque(fd):
		e.Replaced = true
	default:
		e.Change = Modified
		tell = !x.o.Own[e.Path] && (was.Mode != e.Mode|unix.S_IFDIR || was.Uid != e.UID || was.Gid != e.GID)
		// Where something is mounted in the lower directory the overlay shows what is
		// below that mount, which nobody can look at.
		if below, err = openAt(low, name, unix.O_PATH|unix.O_DIRECTORY); err != nil {
			below = -1
		}
	}
	if tell {
		if err := x.out.entry(e); err != nil {
			_ = unix.Close(fd)
			if below >= 0 {
				_ = unix.Close(below)
			}
			return err
		}
	}
	return x.dir(fd, below, e.Path, depth+1, reserved)
}

// file tells of a regular file, and gives its content if it is wanted: as many bytes as were
// announced, though it may have become shorter.
func (x *walk) file(up int, name string, e *Entry, st *unix.Stat_t) error {
	e.Type, e.Size = File, uint64(st.Size)
	if !x.o.Content {
		return x.out.entry(e)
	}
	if st.Nlink > 1 {
		if first, ok := x.links[st.Ino]; ok {
			e.Type, e.Size, e.Target = Hardlink, 0, first
			return x.out.entry(e)
		}
	}
	fd, err := openAt(up, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if replaced(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening a file: %w", os.NewSyscallError("openat2", err))
	}
	defer unix.Close(fd)
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if now.Mode&unix.S_IFMT != unix.S_IFREG || now.Ino != st.Ino {
		return nil
	}
	e.Size = uint64(now.Size)
	if e.Size > x.room {
		return errors.New("the files of the overlay have more holes than content, and an archive would be larger than the overlay can be: `nucleus pause` the sandbox if they change at this moment, and try again")
	}
	x.room -= e.Size
	if st.Nlink > 1 && len(x.links) < maxLinks {
		x.links[st.Ino] = e.Path
	}
	if err := x.out.entry(e); err != nil {
		return err
	}
	return x.content(fd, e.Size)
}

func (x *walk) content(fd int, size uint64) error {
	for size > 0 {
		b := x.buf[:min(uint64(len(x.buf)), size)]
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("reading a file: %w", os.NewSyscallError("read", err))
		case n == 0:
			clear(b)
			n = len(b)
		}
		if _, err := x.out.w.Write(b[:n]); err != nil {
			return err
		}
		size -= uint64(n)
	}
	return nil
}

// whiteout reports whether an overlay shows nothing in the place of this.
func whiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// opaque reports whether an overlay shows nothing of the lower directory in this one. Which
// attribute says so is a matter of how it is mounted, and no workload can set either.
func opaque(fd int) bool {
	var b [2]byte
	for _, name := range []string{"user.overlay.opaque", "trusted.overlay.opaque"} {
		if n, err := unix.Fgetxattr(fd, name, b[:]); err == nil && n == 1 && b[0] == 'y' {
			return true
		}
	}
	return false
}

// replaced reports whether an open has failed because something else has that name by now.
func replaced(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EXDEV)
}

func statAt(dir int, name string, st *unix.Stat_t) error {
	return unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
}

// openAt opens one name in a directory, and no mount.
func openAt(dir int, name string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(dir, name, &how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// names lists a directory, sorted.
func (x *walk) names(fd int) ([]string, error) {
	var list []string
	for {
		n, err := unix.Getdents(fd, x.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOENT): // it was removed
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("listing a directory: %w", os.NewSyscallError("getdents64", err))
		case n <= 0:
			slices.Sort(list)
			return slices.Compact(list), nil // one that was removed and made again may be there twice
		}
		for b := x.buf[:n]; len(b) > 0; {
			// struct linux_dirent64, getdents64(2).
			size := binary.NativeEndian.Uint16(b[16:])
			name, _, _ := strings.Cut(string(b[19:size]), "\x00")
			if name != "." && name != ".." {
				list = append(list, name)
				x.held += len(name) + nameCost
			}
			b = b[size:]
		}
		if len(list) > maxNames || x.held > maxHeld {
			return nil, fmt.Errorf("the overlay has more than %d files in one directory, or in those above each other more than %d MiB of names", maxNames, maxHeld>>20)
		}
	}
}
