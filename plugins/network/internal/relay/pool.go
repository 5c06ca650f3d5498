package relay

import (
	"sync"

	"golang.org/x/sys/unix"
)

const (
	bufferSize = 64 << 10
	// pipeSize is what an ordinary user may give a pipe (pipe-max-size).
	pipeSize = 1 << 20
	// spare is how many pipes are kept for the next use.
	spare = 32
)

type buffer [bufferSize]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

func getBuffer() *buffer {
	b, _ := buffers.Get().(*buffer)
	return b
}

func (b *buffer) put() { buffers.Put(b) }

// pipe is empty while nobody has it.
type pipe struct{ r, w int }

var pipes = make(chan *pipe, spare)

func getPipe() (*pipe, error) {
	select {
	case p := <-pipes:
		return p, nil
	default:
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	// Fails when the user has many large pipes: then this one is small.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{fds[0], fds[1]}, nil
}

func (p *pipe) put() {
	select {
	case pipes <- p:
	default:
		p.close()
	}
}

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}
