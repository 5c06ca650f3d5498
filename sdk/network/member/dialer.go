package member

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
)

var (
	// ErrRefused says that the policy has no rule for a connection.
	ErrRefused = errors.New("the policy has no rule for that connection to the job")
	// ErrAbsent says that the job is not there at the moment.
	ErrAbsent = errors.New("the job is not there")
	errClosed = errors.New("the core takes no more requests for members of the stack")
)

// Dialer is the plugin's end. It may be asked from several goroutines.
type Dialer struct {
	conn  *net.UnixConn
	slots chan struct{}
	done  chan struct{} // closed when nobody answers any more

	mu      sync.Mutex
	last    uint32
	pending map[uint32]chan reply
}

type reply struct {
	Answer
	file *os.File // nil for none
}

// New takes over the descriptor, which is closed.
func New(f *os.File) (*Dialer, error) {
	defer f.Close()
	c, err := descriptors.Conn(f)
	if err != nil {
		return nil, err
	}
	d := &Dialer{conn: c, slots: make(chan struct{}, MaxRequests), done: make(chan struct{}), pending: make(map[uint32]chan reply)}
	go d.receive()
	return d, nil
}

// Close ends all that is asked for.
func (d *Dialer) Close() { d.conn.Close() }

// Look tells in which families a job has an address now; ErrAbsent if it is not there.
func (d *Dialer) Look(ctx context.Context, job dnsname.Name) (Families, error) {
	r, err := d.ask(ctx, Request{Job: string(job)})
	if r.file != nil {
		r.file.Close()
	}
	return r.Families, err
}

// Dial gives a socket that is connected to a port of a job, or about to be: of UDP it
// is, and of TCP it can be written to, or has its error, when that is known. It does not
// block. It cannot be connected to anything else: what comes from elsewhere does not
// pass it.
func (d *Dialer) Dial(ctx context.Context, p Protocol, f Families, job dnsname.Name, port uint16) (*os.File, error) {
	r, err := d.ask(ctx, Request{Protocol: p, Family: f, Port: port, Job: string(job)})
	if err == nil && r.file == nil {
		err = fmt.Errorf("%w: no socket came", ErrMalformed)
	}
	return r.file, err
}

func (d *Dialer) ask(ctx context.Context, q Request) (reply, error) {
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-d.done:
		return reply{}, errClosed
	case <-ctx.Done():
		return reply{}, context.Cause(ctx)
	}
	got := make(chan reply, 1)
	d.mu.Lock()
	d.last++
	q.ID = d.last
	d.pending[q.ID] = got
	d.mu.Unlock()
	if _, err := d.conn.Write(q.Encode()); err != nil {
		d.forget(q.ID, got)
		return reply{}, fmt.Errorf("%w: %w", errClosed, err)
	}
	select {
	case r := <-got:
		return r, r.err()
	case <-d.done:
		d.forget(q.ID, got)
		return reply{}, errClosed
	case <-ctx.Done():
		d.forget(q.ID, got)
		return reply{}, context.Cause(ctx)
	}
}

// forget is for a request whose answer nobody waits for any more.
func (d *Dialer) forget(id uint32, got chan reply) {
	d.mu.Lock()
	delete(d.pending, id)
	d.mu.Unlock()
	select {
	case r := <-got:
		if r.file != nil {
			r.file.Close()
		}
	default:
	}
}

func (r reply) err() error {
	switch r.Outcome {
	case Done:
		return nil
	case Refused:
		return ErrRefused
	case Absent:
		return ErrAbsent
	default:
		return os.NewSyscallError("connect", syscall.Errno(r.Errno))
	}
}

// receive gives answers to those who wait for them.
func (d *Dialer) receive() {
	defer close(d.done)
	defer d.conn.Close()
	for {
		b, file, err := Receive(d.conn, AnswerSize)
		if err != nil {
			return
		}
		a, err := DecodeAnswer(b)
		if err != nil {
			if file != nil {
				file.Close()
			}
			return
		}
		d.mu.Lock()
		got := d.pending[a.ID]
		delete(d.pending, a.ID)
		if got != nil {
			got <- reply{a, file} // one answer to a request: there is room
		}
		d.mu.Unlock()
		if got == nil && file != nil {
			file.Close()
		}
	}
}

// Receive takes one message of at most so many bytes, and its descriptor, nil for none.
func Receive(c *net.UnixConn, most int) ([]byte, *os.File, error) {
	b, oob := make([]byte, most+1), make([]byte, syscall.CmsgSpace(4))
	n, on, flags, _, err := c.ReadMsgUnix(b, oob)
	if err != nil && on == 0 {
		return nil, nil, err
	}
	// With descriptors it is no end, although an empty packet is taken for one.
	var files []*os.File
	if on > 0 {
		messages, err := syscall.ParseSocketControlMessage(oob[:on])
		if err != nil {
			return nil, nil, os.NewSyscallError("parse control message", err)
		}
		for i := range messages {
			fds, err := syscall.ParseUnixRights(&messages[i])
			if err != nil {
				continue // credentials, which nobody has asked for
			}
			for _, fd := range fds {
				files = append(files, os.NewFile(uintptr(fd), "member"))
			}
		}
	}
	if n == 0 || n > most || flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0 || len(files) > 1 {
		for _, f := range files {
			f.Close()
		}
		return nil, nil, fmt.Errorf("%w: %d bytes, %d descriptors", ErrMalformed, n, len(files))
	}
	if len(files) == 0 {
		return b[:n], nil, nil
	}
	return b[:n], files[0], nil
}
