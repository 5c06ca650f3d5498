package wipe

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReadGivesEverythingUpToItsLimit(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 10000} {
		want := strings.Repeat("x", n)
		got, err := Read(iotest.OneByteReader(strings.NewReader(want)), 10000)
		if err != nil || string(got) != want {
			t.Errorf("of %d bytes: %d, %v", n, len(got), err)
		}
	}
	if b, err := Read(strings.NewReader("12345"), 4); !errors.Is(err, ErrTooLong) || b != nil {
		t.Errorf("five bytes of four: %q, %v", b, err)
	}
}

// spy keeps the buffers that it was asked to fill, as an attacker who reads the
// process's memory would find them.
type spy struct {
	r    io.Reader
	seen [][]byte
}

func (s *spy) Read(p []byte) (int, error) {
	s.seen = append(s.seen, p)
	return s.r.Read(p)
}

func TestReadLeavesNoCopyBehind(t *testing.T) {
	s := &spy{r: strings.NewReader(strings.Repeat("s3cret", 5000))}
	got, err := Read(s, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range s.seen {
		if &old[:cap(old)][cap(old)-1] != &got[:cap(got)][cap(got)-1] && bytes.ContainsAny(old, "s3cret") {
			t.Errorf("a buffer of %d bytes still has its bytes", len(old))
		}
	}
	broken := errors.New("broken")
	s = &spy{r: io.MultiReader(strings.NewReader("s3cret"), iotest.ErrReader(broken))}
	if _, err := Read(s, 1<<20); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if bytes.ContainsAny(s.seen[0], "s3cret") {
		t.Error("the bytes before an error stay")
	}
}

func TestBytesOverwritesTheWholeCapacity(t *testing.T) {
	b := []byte("s3cret\n")
	Bytes(b[:3])
	if !bytes.Equal(b, make([]byte, 7)) {
		t.Errorf("left %q", b)
	}
}
