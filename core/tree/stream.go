package tree

import (
	"encoding/binary"
	"fmt"
	"io"
)

// The stream that Pack writes and Unpack reads. Integers are little-endian, a
// string is its 16-bit length and its bytes, a time is 64-bit seconds and
// 32-bit nanoseconds.
//
//	stream = streamMagic dir trailer
//	dir    = 'D' name mode time {dir | file | link} 'U'     the root's name is ""
//	file   = 'F' name mode time size64 content
//	link   = 'L' name time target
//	trailer = 'Z' files64 bytes64 digest[32]
//
// Names are single elements and rise strictly within a directory, so a stream
// can neither name a path nor give one name twice. Supervisor and init are
// installed together; the magic only tells a mixed installation.
const (
	streamMagic = "nucleus-pack-v1\n"

	recDir     = 'D'
	recUp      = 'U'
	recFile    = 'F'
	recLink    = 'L'
	recTrailer = 'Z'
)

// Defaults of the limits of Pack and Unpack. Copied trees live in memory.
const (
	DefaultMaxBytes = 1 << 30
	DefaultMaxFiles = 1 << 18
	DefaultMaxDepth = 128
)

const (
	maxName   = 255
	maxTarget = 4095 // PATH_MAX without its NUL
	permMask  = 0o777
	// streamBuffer is all the memory that the content of files takes in init.
	streamBuffer = 64 << 10
)

// limits counts a tree against what is accepted.
type limits struct {
	maxBytes, maxFiles int64
	bytes, files       int64
}

func newLimits(maxBytes, maxFiles int64) limits {
	if maxBytes <= 0 {
		maxBytes = DefaultMaxBytes
	}
	if maxFiles <= 0 {
		maxFiles = DefaultMaxFiles
	}
	return limits{maxBytes: maxBytes, maxFiles: maxFiles}
}

func (l *limits) file(path string) error {
	if l.files >= l.maxFiles {
		return &LimitError{What: "files", Limit: l.maxFiles, Path: path}
	}
	l.files++
	return nil
}

// content takes an announced size, so that nothing too large is even begun.
func (l *limits) content(size int64, path string) error {
	if size > l.maxBytes-l.bytes {
		return &LimitError{What: "bytes", Limit: l.maxBytes, Path: path}
	}
	l.bytes += size
	return nil
}

// streamReader reads the fields of a stream through one fixed buffer. The first
// error stays and every later field is zero.
type streamReader struct {
	r      io.Reader
	buf    []byte
	lo, hi int
	err    error
}

// need gives the next n bytes, n at most the size of the buffer.
func (s *streamReader) need(n int) []byte {
	if s.err != nil {
		return make([]byte, n)
	}
	if s.hi-s.lo < n {
		copy(s.buf, s.buf[s.lo:s.hi])
		s.hi -= s.lo
		s.lo = 0
		for s.hi < n {
			if s.fill(); s.err != nil {
				return make([]byte, n)
			}
		}
	}
	b := s.buf[s.lo : s.lo+n]
	s.lo += n
	return b
}

func (s *streamReader) fill() {
	n, err := io.ReadAtLeast(s.r, s.buf[s.hi:], 1)
	s.hi += n
	switch err {
	case nil:
	case io.EOF, io.ErrUnexpectedEOF:
		s.err = fmt.Errorf("%w: it ends early", ErrStream)
	default:
		s.err = fmt.Errorf("reading packed tree: %w", err)
	}
}

// some gives between 1 and limit bytes, as many as are there.
func (s *streamReader) some(limit int64) []byte {
	if s.lo == s.hi {
		s.lo, s.hi = 0, 0
		if s.fill(); s.err != nil {
			return nil
		}
	}
	n := int(min(limit, int64(s.hi-s.lo)))
	b := s.buf[s.lo : s.lo+n]
	s.lo += n
	return b
}

func (s *streamReader) u8() uint8   { return s.need(1)[0] }
func (s *streamReader) u16() uint16 { return binary.LittleEndian.Uint16(s.need(2)) }
func (s *streamReader) u32() uint32 { return binary.LittleEndian.Uint32(s.need(4)) }
func (s *streamReader) u64() uint64 { return binary.LittleEndian.Uint64(s.need(8)) }

// str reads a string of at most limit bytes.
func (s *streamReader) str(limit int) string {
	n := int(s.u16())
	if s.err == nil && n > limit {
		s.err = fmt.Errorf("%w: string of %d bytes", ErrStream, n)
	}
	if s.err != nil {
		return ""
	}
	return string(s.need(n))
}
