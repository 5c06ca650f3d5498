package tree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/processors"
)

const (
	// digestDepth bounds the directory handles that reading a tree holds.
	digestDepth = 512
	// chunk is how much of a file is read at once.
	chunk = 128 << 10
	// ahead is how many files may be open and waiting for their turn.
	ahead = 64
)

// Summary describes a tree.
type Summary struct {
	Digest  string   // "sha256:<hex>"
	Files   int64    // all entries but the root: files, directories, links and others
	Bytes   int64    // content of regular files
	Left    int64    // entries that Pack left out because they can't be copied, without excludes
	Skipped []string // the first maxSkipped of them
}

// maxSkipped bounds what is told of a tree that somebody has filled with FIFOs.
const maxSkipped = 32

// Digest gives "sha256:<hex>" over the canonical form of the tree at root.
func Digest(ctx context.Context, root *os.File) (string, error) {
	s, err := Attest(ctx, root, 0)
	return s.Digest, err
}

// Verify compares the tree at root with a digest; a difference is a
// *MismatchError. For workers see Attest.
func Verify(ctx context.Context, root *os.File, want string, workers int) error {
	s, err := Attest(ctx, root, workers)
	if err != nil {
		return err
	}
	if s.Digest != want {
		return &MismatchError{Want: want, Got: s.Digest}
	}
	return nil
}

// Attest is Digest with all that was counted. Up to workers files are hashed at
// a time; 0 means one for each CPU, and 1 stays on the calling thread.
func Attest(ctx context.Context, root *os.File, workers int) (Summary, error) {
	defer runtime.KeepAlive(root)
	return attest(ctx, int(root.Fd()), workers)
}

func attest(ctx context.Context, root, workers int) (Summary, error) {
	if workers <= 0 {
		var release func()
		workers, release = processors.All()
		defer release()
	}
	d := &digester{ctx: ctx, m: newManifest()}
	if workers == 1 {
		d.own = newHasher()
	} else {
		d.jobs = make(chan *job, ahead)
		defer d.start(workers)()
	}
	w := walker{ctx: ctx, v: d, maxDepth: digestDepth}
	err := w.walk(root)
	// Whatever comes first in the tree is reported first, however the workers ran.
	if first := d.flush(0); first != nil {
		err = first
	}
	if err != nil {
		return Summary{}, err
	}
	d.sum.Digest = digestString(d.m.sum())
	return d.sum, nil
}

// job is one record of the manifest on its way: a file that a worker hashes, or
// anything else, which only waits for the files before it.
type job struct {
	e    entry
	sum  [sha256.Size]byte
	caps []byte
	err  error
	done chan struct{} // nil: nothing to wait for
}

// digester turns a walk into a manifest.
type digester struct {
	ctx   context.Context
	m     *manifest
	sum   Summary
	own   *hasher   // one worker: hashes on the spot
	jobs  chan *job // more: to the workers
	queue []*job    // in canonical order
}

// start runs the workers; the function that it returns ends them.
func (d *digester) start(workers int) func() {
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			h := newHasher()
			for j := range d.jobs {
				j.err = h.file(d.ctx, j)
				close(j.done)
			}
		})
	}
	return func() {
		close(d.jobs)
		wg.Wait()
	}
}

func (d *digester) enter(e *entry) error {
	return d.push(&job{e: *e})
}

func (d *digester) leave() error { return nil }

func (d *digester) link(e *entry) error { return d.push(&job{e: *e}) }

func (d *digester) special(e *entry) error { return d.push(&job{e: *e}) }

func (d *digester) file(e *entry) error {
	j := &job{e: *e}
	if d.own != nil {
		j.err = d.own.file(d.ctx, j)
		return d.push(j)
	}
	j.done = make(chan struct{})
	d.jobs <- j
	return d.push(j)
}

// push appends to the queue and keeps it, with its open files, short.
func (d *digester) push(j *job) error {
	d.queue = append(d.queue, j)
	if d.own != nil {
		return d.flush(0)
	}
	return d.flush(ahead)
}

// flush writes records until at most keep are left. It waits for every file
// that it takes, so none stays open behind an error.
func (d *digester) flush(keep int) error {
	var failed error
	for len(d.queue) > keep || (failed != nil && len(d.queue) > 0) {
		j := d.queue[0]
		d.queue[0] = nil
		d.queue = d.queue[1:]
		if j.done != nil {
			<-j.done
		}
		if failed == nil {
			failed = j.err
		}
		if failed == nil {
			d.record(j)
		}
	}
	return failed
}

func (d *digester) record(j *job) {
	e := &j.e
	if e.path != "." {
		d.sum.Files++
	}
	switch e.kind() {
	case unix.S_IFDIR:
		d.m.dir(e.st.Mode, e.path)
	case unix.S_IFREG:
		d.sum.Bytes += e.st.Size
		d.m.file(e.st.Mode, e.st.Size, j.sum[:], e.path)
		if j.caps != nil {
			d.m.caps(j.caps, e.path)
		}
	case unix.S_IFLNK:
		d.m.link(e.path, e.target)
	default:
		d.m.special(&e.st, e.path)
	}
}

// hasher is what one worker needs.
type hasher struct {
	h   hash.Hash
	buf []byte
}

func newHasher() *hasher {
	return &hasher{h: sha256.New(), buf: make([]byte, chunk)}
}

// file hashes an open file and closes it.
func (h *hasher) file(ctx context.Context, j *job) error {
	e := &j.e
	defer unix.Close(e.fd)
	var err error
	if j.caps, err = fileCaps(e.fd, e.path); err != nil {
		return err
	}
	h.h.Reset()
	err = readAll(ctx, e, h.buf, func(b []byte) error {
		h.h.Write(b)
		return nil
	})
	if err != nil {
		return err
	}
	h.h.Sum(j.sum[:0])
	return nil
}

// readAll gives the content of a file piece by piece. It has exactly the size
// that e says and did not change meanwhile, or the result is an error.
func readAll(ctx context.Context, e *entry, buf []byte, piece func([]byte) error) error {
	left := e.st.Size
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := readFD(e.fd, buf)
		if err != nil {
			return fmt.Errorf("reading %q: %w", e.path, err)
		}
		if n == 0 {
			break
		}
		if left -= int64(n); left < 0 {
			return &ChangedError{Path: e.path}
		}
		if err := piece(buf[:n]); err != nil {
			return err
		}
	}
	if left > 0 {
		return &ChangedError{Path: e.path}
	}
	return unchanged(e.fd, e.path, &e.st)
}

// fileCaps reads the file capabilities of an open file, nil for none.
func fileCaps(fd int, path string) ([]byte, error) {
	var buf [64]byte
	for {
		n, err := unix.Fgetxattr(fd, "security.capability", buf[:])
		switch {
		case err == nil:
			return normalCaps(buf[:n]), nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
			return nil, nil
		}
		return nil, fmt.Errorf("reading the file capabilities of %q: %w", path, os.NewSyscallError("fgetxattr", err))
	}
}
