package descriptors

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// What nobody takes is closed: its call was cancelled, or answered from memory.
const (
	keepFor = 30 * time.Second
	keepAll = 4 * MaxFiles
)

// Receiver is a plugin's end.
type Receiver struct {
	conn    *net.UnixConn
	keepFor time.Duration
	done    chan struct{} // closed when nothing more is read

	mu      sync.Mutex
	parcels []*parcel     // oldest first, each tag once
	changed chan struct{} // closed when something has come
	over    error         // why nothing more will
}

// parcel is what came under one tag.
type parcel struct {
	tag   string
	fds   []int
	err   error // it was refused
	timer *time.Timer
}

func (p *parcel) weight() int { return max(len(p.fds), 1) }

func (p *parcel) close() {
	if p.timer != nil {
		p.timer.Stop()
	}
	for _, fd := range p.fds {
		_ = syscall.Close(fd) // there is nothing to do about it
	}
}

// Receive reads from an inherited end, until Close.
func Receive(f *os.File) (*Receiver, error) { return receive(f, keepFor) }

func receive(f *os.File, keepFor time.Duration) (*Receiver, error) {
	conn, err := Conn(f)
	if err != nil {
		return nil, fmt.Errorf("the side channel for descriptors: %w", err)
	}
	r := &Receiver{conn: conn, keepFor: keepFor, done: make(chan struct{}), changed: make(chan struct{})}
	go r.read()
	return r, nil
}

func (r *Receiver) read() {
	defer close(r.done)
	for {
		p, err := r.next()
		r.mu.Lock()
		switch {
		case err != nil:
			r.over = err
		case p != nil:
			r.keep(p)
		}
		close(r.changed)
		r.changed = make(chan struct{})
		r.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// next reads one message. It gives nothing for one that names no tag.
func (r *Receiver) next() (*parcel, error) {
	b := make([]byte, header+MaxTag+1)
	oob := make([]byte, syscall.CmsgSpace(4*MaxFiles))
	// Go asks for MSG_CMSG_CLOEXEC, so that no child of ours has them.
	n, oobn, flags, _, err := r.conn.ReadMsgUnix(b, oob)
	p := &parcel{}
	var perr error
	p.fds, perr = rights(oob[:oobn])
	if err != nil {
		p.close()
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
			return nil, ErrClosed
		}
		return nil, fmt.Errorf("the side channel for descriptors: %w", err)
	}
	if n <= header || n > header+MaxTag || flags&syscall.MSG_TRUNC != 0 {
		p.close()
		return nil, nil
	}
	p.tag = string(b[header:n])
	switch {
	case b[0] != form:
		p.err = fmt.Errorf("the host sent descriptors in the form %d, which is not known", b[0])
	case perr != nil:
		p.err = fmt.Errorf("the host's descriptors: %w", perr)
	case flags&syscall.MSG_CTRUNC != 0 || len(p.fds) != int(b[1]) || len(p.fds) > MaxFiles:
		p.err = fmt.Errorf("of the host's %d descriptors %d arrived: there may be no room for more", b[1], len(p.fds))
	}
	if p.err != nil {
		p.close()
		p.fds = nil
	}
	return p, nil
}

// rights are the descriptors of a control message, with an error, too.
func rights(oob []byte) ([]int, error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	var fds []int
	for i := range messages {
		got, rerr := syscall.ParseUnixRights(&messages[i])
		fds, err = append(fds, got...), errors.Join(err, rerr)
	}
	return fds, err
}

// keep is called with the lock held.
func (r *Receiver) keep(p *parcel) {
	r.remove(p.tag).close() // of an earlier try
	weight := p.weight()
	for _, q := range r.parcels {
		weight += q.weight()
	}
	for ; weight > keepAll; r.parcels = r.parcels[1:] {
		weight -= r.parcels[0].weight()
		r.parcels[0].close()
	}
	r.parcels = append(r.parcels, p)
	p.timer = time.AfterFunc(r.keepFor, func() { r.expire(p) })
}

func (r *Receiver) expire(p *parcel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.parcels {
		if q == p {
			r.remove(p.tag).close()
			return
		}
	}
}

// remove is called with the lock held. It gives an empty parcel where there is none.
func (r *Receiver) remove(tag string) *parcel {
	for i, p := range r.parcels {
		if p.tag == tag {
			r.parcels = append(r.parcels[:i:i], r.parcels[i+1:]...)
			return p
		}
	}
	return &parcel{}
}

// Take gives what the host has sent under a tag, and waits for it no longer than the
// context. There must be as many as names, which become those of the files. They are
// the caller's.
func (r *Receiver) Take(ctx context.Context, tag string, names []string) ([]*os.File, error) {
	for {
		r.mu.Lock()
		p, over, changed := r.remove(tag), r.over, r.changed
		r.mu.Unlock()
		if p.tag != "" {
			return p.files(names)
		}
		if over != nil {
			return nil, fmt.Errorf("%d descriptors were to come under %q: %w", len(names), tag, over)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%d descriptors were to come under %q: %w", len(names), tag, context.Cause(ctx))
		}
	}
}

func (p *parcel) files(names []string) ([]*os.File, error) {
	if p.err == nil && len(p.fds) != len(names) {
		p.err = fmt.Errorf("%d descriptors were to come under %q, and %d came", len(names), p.tag, len(p.fds))
	}
	if p.err != nil {
		p.close()
		return nil, p.err
	}
	p.timer.Stop()
	files := make([]*os.File, len(p.fds))
	for i, fd := range p.fds {
		files[i] = os.NewFile(uintptr(fd), names[i])
	}
	return files, nil
}

// Close ends it, and closes what nobody has taken.
func (r *Receiver) Close() error {
	err := r.conn.Close()
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.parcels {
		p.close()
	}
	r.parcels = nil
	return err
}
