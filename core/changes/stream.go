package changes

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// The stream: a magic, entries, and a mark at its end, without which it is not all. Integers
// are little-endian, a string is its 32-bit length and its bytes. If contents were asked for,
// those of a file come after its entry.
const (
	magic = "nucleus-diff-v1\n"

	recEntry = 'E'
	recEnd   = 'Z'

	maxPath = (maxDepth + 1) * 256 // below it the target's own, which is short
	maxText = maxPath + 8192
)

// writer makes a stream.
type writer struct{ w *bufio.Writer }

func newWriter(w io.Writer) (*writer, error) {
	x := &writer{bufio.NewWriterSize(w, 64<<10)}
	_, err := x.w.WriteString(magic)
	return x, err
}

func (x *writer) entry(e *Entry) error {
	b := make([]byte, 0, 64+len(e.Path)+len(e.Target))
	replaced := byte(0)
	if e.Replaced {
		replaced = 1
	}
	b = append(b, recEntry, byte(e.Change), byte(e.Type), replaced)
	for _, n := range []uint32{e.Mode, e.UID, e.GID, e.Nsec} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	b = binary.LittleEndian.AppendUint64(b, e.Size)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Sec))
	for _, s := range []string{e.Path, e.Target} {
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	_, err := x.w.Write(b)
	return err
}

func (x *writer) end() error {
	if err := x.w.WriteByte(recEnd); err != nil {
		return err
	}
	return x.w.Flush()
}

// Reader reads a stream.
type Reader struct {
	r       *bufio.Reader
	content bool
	rest    uint64 // of the last file's content
	begun   bool
}

// NewReader reads r, a stream with the contents of files if they were asked for.
func NewReader(r io.Reader, content bool) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, 64<<10), content: content}
}

// Next gives the next entry, and io.EOF after the last one. What was not read of a file's
// content is passed over.
func (x *Reader) Next() (*Entry, error) {
	if !x.begun {
		b := make([]byte, len(magic))
		if _, err := io.ReadFull(x.r, b); err != nil || string(b) != magic {
			return nil, fmt.Errorf("%w: no beginning", ErrStream)
		}
		x.begun = true
	}
	if _, err := io.Copy(io.Discard, x); err != nil {
		return nil, err
	}
	head := make([]byte, 36)
	if _, err := io.ReadFull(x.r, head[:1]); err != nil {
		return nil, cut(err)
	}
	switch head[0] {
	case recEntry:
	case recEnd:
		return nil, io.EOF
	default:
		return nil, fmt.Errorf("%w: record %d", ErrStream, head[0])
	}
	if _, err := io.ReadFull(x.r, head[1:]); err != nil {
		return nil, cut(err)
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(head[at:]) }
	e := &Entry{
		Change: Change(head[1]), Type: Type(head[2]), Replaced: head[3] == 1, Mode: u32(4), UID: u32(8), GID: u32(12), Nsec: u32(16),
		Size: binary.LittleEndian.Uint64(head[20:]), Sec: int64(binary.LittleEndian.Uint64(head[28:])),
	}
	for _, s := range []*string{&e.Path, &e.Target} {
		var n [4]byte
		if _, err := io.ReadFull(x.r, n[:]); err != nil {
			return nil, cut(err)
		}
		size := binary.LittleEndian.Uint32(n[:])
		if size > maxText {
			return nil, fmt.Errorf("%w: text of %d bytes", ErrStream, size)
		}
		b := make([]byte, size)
		if _, err := io.ReadFull(x.r, b); err != nil {
			return nil, cut(err)
		}
		*s = string(b)
	}
	if x.content && e.Type == File {
		x.rest = e.Size
	}
	return e, nil
}

// Read reads the content of the last entry.
func (x *Reader) Read(b []byte) (int, error) {
	if x.rest == 0 {
		return 0, io.EOF
	}
	n, err := x.r.Read(b[:min(uint64(len(b)), x.rest)])
	x.rest -= uint64(n)
	if err != nil {
		return n, cut(err)
	}
	return n, nil
}

// cut is the error of a stream that ends before its end.
func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF { //nolint:errorlint // what bufio gives, as it is
		return fmt.Errorf("%w: it ends early", ErrStream)
	}
	return err
}
