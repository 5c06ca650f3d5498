// Package wipe owns the memory that secret values are read into, so that no copy
// of a value stays behind which nobody can overwrite.
package wipe

import (
	"errors"
	"io"
	"runtime"
)

// ErrTooLong tells that there was more to read than allowed.
var ErrTooLong = errors.New("too long")

// Bytes overwrites buffers.
func Bytes(bs ...[]byte) {
	for _, b := range bs {
		b = b[:cap(b)]
		clear(b)
		// Without it a compiler may find that nobody reads the zeros.
		runtime.KeepAlive(b)
	}
}

// Read reads everything, at most limit bytes. io.ReadAll would leave a copy behind
// at each growth of its buffer.
func Read(r io.Reader, limit int) ([]byte, error) {
	b := make([]byte, 0, min(4096, limit+1))
	for {
		if len(b) == cap(b) {
			bigger := make([]byte, len(b), min(2*cap(b), limit+1))
			copy(bigger, b)
			Bytes(b)
			b = bigger
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case len(b) > limit:
			err = ErrTooLong
		case errors.Is(err, io.EOF):
			return b, nil
		}
		if err != nil {
			Bytes(b)
			return nil, err
		}
	}
}
