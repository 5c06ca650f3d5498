package relay

import (
	"errors"
	"io"
	"sync"
)

// Half is a connection whose halves close.
type Half interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Copy is Run for an inside that is no socket of the kernel's. reset ends it at once.
func Copy(inside Half, outside End, count func(rx, tx uint64), reset func()) {
	var broken sync.Once
	fail := func() {
		broken.Do(func() {
			reset()
			Reset(outside)
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		copyHalf(outside, inside, func(n int) { count(0, uint64(n)) }, fail)
	}()
	copyHalf(inside, outside, func(n int) { count(uint64(n), 0) }, fail)
	<-done
	inside.Close()
	outside.Close()
}

func copyHalf(dst, src Half, count func(int), fail func()) {
	for {
		b := getBuffer()
		n, err := src.Read(b[:])
		if n > 0 {
			if _, failed := dst.Write(b[:n]); failed != nil {
				err = failed
			} else {
				count(n)
			}
		}
		b.put()
		switch {
		case errors.Is(err, io.EOF):
			_ = dst.CloseWrite() // where it is gone, the other half says so
			return
		case err != nil:
			fail()
			return
		}
	}
}
