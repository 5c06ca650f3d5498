package tree

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/tree/exclude"
)

// PackOptions bounds and narrows what Pack copies. Zero limits are the defaults.
type PackOptions struct {
	Exclude  []string // patterns, see exclude.Parse
	MaxBytes int64    // content of regular files
	MaxFiles int64    // all entries that no pattern excludes
	MaxDepth int
}

// Pack writes the tree at root to w, for Unpack. What a pattern excludes is not
// even opened. Devices, FIFOs and sockets can't be copied: they are left out
// and listed in the summary. A hard link becomes a file of its own. Permission
// bits are kept but set-user-ID, set-group-ID and sticky, and the summary's
// digest is that of the copy, not of the source. After an error the stream has
// no trailer, and Unpack refuses it.
func Pack(ctx context.Context, root *os.File, w io.Writer, o PackOptions) (Summary, error) {
	defer runtime.KeepAlive(root)
	skip, err := exclude.New(o.Exclude)
	if err != nil {
		return Summary{}, err
	}
	if o.MaxDepth <= 0 {
		o.MaxDepth = DefaultMaxDepth
	}
	p := &packer{
		ctx: ctx, w: bufio.NewWriterSize(w, chunk), m: newManifest(), lim: newLimits(o.MaxBytes, o.MaxFiles),
		h: sha256.New(), buf: make([]byte, chunk),
	}
	if _, err := p.w.WriteString(streamMagic); err != nil {
		return Summary{}, writing(err)
	}
	walk := walker{ctx: ctx, v: p, maxDepth: o.MaxDepth}
	if len(skip) > 0 {
		walk.skip = skip.Match
	}
	if err := walk.walk(int(root.Fd())); err != nil {
		return Summary{}, err
	}
	return p.finish()
}

func writing(err error) error { return fmt.Errorf("writing packed tree: %w", err) }

// packer turns a walk into a stream.
type packer struct {
	ctx     context.Context
	w       *bufio.Writer
	m       *manifest
	lim     limits
	h       hash.Hash
	buf     []byte
	rec     []byte
	left    int64 // entries that can't be copied
	skipped []string
}

func (p *packer) finish() (Summary, error) {
	sum := p.m.sum()
	files := p.lim.files - p.left
	p.rec = append(p.rec[:0], recTrailer)
	p.rec = binary.LittleEndian.AppendUint64(p.rec, uint64(files))
	p.rec = binary.LittleEndian.AppendUint64(p.rec, uint64(p.lim.bytes))
	p.rec = append(p.rec, sum...)
	if err := p.write(); err != nil {
		return Summary{}, err
	}
	if err := p.w.Flush(); err != nil {
		return Summary{}, writing(err)
	}
	return Summary{Digest: digestString(sum), Files: files, Bytes: p.lim.bytes, Left: p.left, Skipped: p.skipped}, nil
}

func (p *packer) enter(e *entry) error {
	name := e.name
	if e.path == "." {
		name = ""
	} else if err := p.lim.file(e.path); err != nil {
		return err
	}
	p.m.dir(e.st.Mode&permMask, e.path)
	p.start(recDir, name)
	p.mode(e)
	p.time(e)
	return p.write()
}

func (p *packer) leave() error {
	p.rec = append(p.rec[:0], recUp)
	return p.write()
}

func (p *packer) file(e *entry) error {
	defer unix.Close(e.fd)
	if err := p.lim.file(e.path); err != nil {
		return err
	}
	if err := p.lim.content(e.st.Size, e.path); err != nil {
		return err
	}
	p.start(recFile, e.name)
	p.mode(e)
	p.time(e)
	p.rec = binary.LittleEndian.AppendUint64(p.rec, uint64(e.st.Size))
	if err := p.write(); err != nil {
		return err
	}
	p.h.Reset()
	err := readAll(p.ctx, e, p.buf, func(b []byte) error {
		p.h.Write(b)
		if _, err := p.w.Write(b); err != nil {
			return writing(err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	p.m.file(e.st.Mode&permMask, e.st.Size, p.h.Sum(nil), e.path)
	return nil
}

func (p *packer) link(e *entry) error {
	if err := p.lim.file(e.path); err != nil {
		return err
	}
	p.m.link(e.path, e.target)
	p.start(recLink, e.name)
	p.time(e)
	p.str(e.target)
	return p.write()
}

func (p *packer) special(e *entry) error {
	if err := p.lim.file(e.path); err != nil {
		return err
	}
	if p.left++; len(p.skipped) < maxSkipped {
		p.skipped = append(p.skipped, e.path)
	}
	return nil
}

func (p *packer) start(kind byte, name string) {
	p.rec = append(p.rec[:0], kind)
	p.str(name)
}

func (p *packer) mode(e *entry) {
	p.rec = binary.LittleEndian.AppendUint32(p.rec, e.st.Mode&permMask)
}

func (p *packer) time(e *entry) {
	p.rec = binary.LittleEndian.AppendUint64(p.rec, uint64(e.st.Mtim.Sec))
	p.rec = binary.LittleEndian.AppendUint32(p.rec, uint32(e.st.Mtim.Nsec))
}

// str needs no check: Linux has no name of more than 255 bytes and no link of
// more than 4095.
func (p *packer) str(s string) {
	p.rec = binary.LittleEndian.AppendUint16(p.rec, uint16(len(s)))
	p.rec = append(p.rec, s...)
}

func (p *packer) write() error {
	if _, err := p.w.Write(p.rec); err != nil {
		return writing(err)
	}
	return nil
}
