// Package relay owns the bytes of a TCP connection between its two ends: it moves
// them, passes on how each end ends, and counts. It decides nothing. A connection that
// rests holds no buffer and no pipe.
package relay

import (
	"errors"
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// Run moves bytes between the sandbox's end and the far one until both are done, and
// closes them. count is called with what came in and what went out.
func Run(inside, outside End, count func(rx, tx uint64)) { Resume(inside, outside, nil, nil, count) }

// Resume is Run for ends between which bytes were moved already: those that were read
// and are still to be written, to either end.
func Resume(inside, outside End, in, out []byte, count func(rx, tx uint64)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		move(outside, inside, out, func(n int) { count(0, uint64(n)) })
	}()
	move(inside, outside, in, func(n int) { count(uint64(n), 0) })
	<-done
	inside.Close()
	outside.Close()
}

// move moves bytes until src is done, and says so to dst. Where it fails, both ends
// are reset: neither may take what it got for all that there was.
func move(dst, src End, first []byte, count func(int)) {
	var err error
	if len(first) > 0 {
		var n int
		n, err = dst.Write(first)
		count(n)
	}
	if err == nil {
		err = pump(dst, src, count)
	}
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil && !errors.Is(err, syscall.ENOTCONN) {
		Reset(dst)
		Reset(src)
	}
}

// Reset ends a connection at once.
func Reset(c End) {
	_ = c.SetLinger(0)
	c.Close()
}

// bulk is from how many bytes at once it pays to move pages instead of bytes, and
// sparse below how many no more.
const (
	bulk   = bufferSize
	sparse = 16 << 10
)

func pump(dst, src End, count func(int)) error {
	from, err := src.SyscallConn()
	if err != nil {
		return err
	}
	to, err := dst.SyscallConn()
	if err != nil {
		return err
	}
	p := &pumping{dst: dst, from: from, to: to}
	p.read, p.fill, p.drain = p.tryRead, p.tryFill, p.tryDrain
	for {
		n, err := p.step()
		if n > 0 {
			count(n)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// pumping is one direction.
type pumping struct {
	dst      End
	from, to syscall.RawConn
	splice   bool

	// Of the step that is under way.
	buf  *buffer
	pipe *pipe
	n    int
	err  error

	read, fill, drain func(uintptr) bool // made once: they would be garbage of each step
}

// step waits for bytes and moves them.
func (p *pumping) step() (int, error) {
	p.n, p.err = 0, nil
	if p.splice {
		return p.stepPipe()
	}
	if err := p.from.Read(p.read); err != nil {
		return 0, err
	}
	if p.buf == nil {
		return 0, p.err
	}
	n := p.n
	_, err := p.dst.Write(p.buf[:n])
	p.buf.put()
	p.buf = nil
	p.splice = n >= bulk
	return n, err
}

// tryRead is called when there may be something to read.
func (p *pumping) tryRead(fd uintptr) bool {
	b := getBuffer()
	n, err := retry(func() (int, error) { return unix.Read(int(fd), b[:]) })
	switch {
	case err == unix.EAGAIN: //nolint:errorlint // an Errno as it comes from the kernel
		b.put()
		return false
	case n <= 0:
		b.put()
		p.err = ended(err)
		return true
	}
	p.buf, p.n = b, n
	return true
}

func ended(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// stepPipe moves pages through a pipe, which is held no longer than that takes.
func (p *pumping) stepPipe() (int, error) {
	if err := p.from.Read(p.fill); err != nil {
		return 0, err
	}
	if p.pipe == nil {
		return 0, p.err
	}
	n := p.n
	for p.n > 0 {
		if err := p.to.Write(p.drain); err != nil {
			p.err = err
		}
		if p.err != nil {
			p.pipe.close() // it is not empty
			p.pipe = nil
			return n - p.n, p.err
		}
	}
	p.pipe.put()
	p.pipe = nil
	p.splice = n >= sparse
	return n, nil
}

func (p *pumping) tryFill(fd uintptr) bool {
	pipe, err := getPipe()
	if err != nil { // no descriptors, no memory: bytes can still be copied
		p.splice = false
		return true
	}
	n, err := retry(func() (int, error) {
		n, err := unix.Splice(int(fd), nil, pipe.w, nil, pipeSize, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		return int(n), err
	})
	switch {
	case err == unix.EAGAIN: //nolint:errorlint // an Errno as it comes from the kernel
		pipe.put()
		return false
	case n <= 0:
		pipe.put()
		p.err = ended(err)
		return true
	}
	p.pipe, p.n = pipe, n
	return true
}

func (p *pumping) tryDrain(fd uintptr) bool {
	n, err := retry(func() (int, error) {
		n, err := unix.Splice(p.pipe.r, nil, int(fd), nil, p.n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		return int(n), err
	})
	if err == unix.EAGAIN { //nolint:errorlint // an Errno as it comes from the kernel
		return false
	}
	if err == nil && n == 0 {
		err = io.ErrShortWrite
	}
	p.err = err
	p.n -= max(n, 0)
	return true
}

func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR { //nolint:errorlint // an Errno as it comes from the kernel
			return n, err
		}
	}
}
