// Package member answers a network's plugin that asks for connections to other jobs of
// the sandbox's stack. It holds the plugin to the sandbox's own rules, whatever it asks
// for, and knows neither where the others are nor how they are reached: a Dial does. The
// words are those of sdk/network/member.
package member

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/egress"
	"github.com/nucleus-runtime/nucleus/sdk/network/member"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
)

// Dial reaches another job of the stack: it tells in which families that has an address,
// and gives a socket if the request is for one. The error is member.ErrAbsent, or has the
// errno of a connection that failed.
type Dial func(ctx context.Context, q member.Request) (member.Families, *os.File, error)

// dialTime bounds the answer to one request. The far sandbox is asked for a socket, and
// not waited for to accept.
const dialTime = 5 * time.Second

// Tell is who hears of what a plugin is not given.
type Tell struct {
	// Failed is told why a job could not be reached where that is not the job's own doing.
	Failed func(job string, err error)
	// Denied is told what was refused because there was too much of it.
	Denied func(network.Denial)
}

// Broker answers one plugin.
type Broker struct {
	conn     *net.UnixConn
	policy   *egress.Policy
	dial     Dial
	failed   func(job string, err error)
	known    known
	rate     rate
	refusals refusals

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
}

// New gives the plugin's end of a pair on which it may ask, which is the caller's to
// close.
func New(p *egress.Policy, dial Dial, tell Tell) (*Broker, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "members"), os.NewFile(uintptr(fds[1]), "members")
	defer ours.Close()
	b := &Broker{policy: p, dial: dial, failed: tell.Failed, refusals: refusals{tell: tell.Denied}, done: make(chan struct{})}
	if b.conn, err = descriptors.Conn(ours); err == nil {
		// What is sent and not read counts against all descriptors that our user has on
		// their way (unix(7), ETOOMANYREFS): a plugin that does not read gets no more.
		err = b.conn.SetWriteBuffer(1)
	}
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	go b.serve()
	return b, theirs, nil
}

// Close ends all that is asked for, and waits until it has.
func (b *Broker) Close() {
	b.cancel()
	_ = b.conn.Close() // it may have cut the plugin off already
	<-b.done
	b.refusals.close()
}

// serve answers until one of both ends is closed, or the plugin breaks the contract.
func (b *Broker) serve() {
	defer close(b.done)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer b.cancel()
	defer b.conn.Close()
	slots := make(chan struct{}, member.MaxRequests)
	for {
		slots <- struct{}{}
		q, err := b.next()
		if err != nil {
			if errors.Is(err, member.ErrMalformed) {
				b.failed("", fmt.Errorf("the plugin is not heard any more: %w", err))
			}
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			b.answer(q)
		})
	}
}

func (b *Broker) next() (member.Request, error) {
	data, file, err := member.Receive(b.conn, member.MaxRequest)
	if err != nil {
		return member.Request{}, err
	}
	if file != nil {
		_ = file.Close()
		return member.Request{}, fmt.Errorf("%w: a descriptor with a request", member.ErrMalformed)
	}
	return member.DecodeRequest(data)
}

func (b *Broker) answer(q member.Request) {
	a, file := b.decide(q)
	if file != nil {
		defer file.Close()
		err := b.pass(a, file)
		if err == nil || errors.Is(err, net.ErrClosed) {
			return
		}
		// Too many descriptors of our user's are on their way.
		a = member.Answer{ID: q.ID, Outcome: member.Absent}
	}
	_, _ = b.conn.Write(a.Encode()) // it is closed: nobody is to be told
}

func (b *Broker) pass(a member.Answer, file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { _, _, sent = b.conn.WriteMsgUnix(a.Encode(), unix.UnixRights(int(fd)), nil) })
	return errors.Join(err, sent)
}

// decide holds a request to the rules, and has it carried out.
func (b *Broker) decide(q member.Request) (member.Answer, *os.File) {
	a := member.Answer{ID: q.ID, Outcome: member.Refused}
	rule, ok := b.allowed(q)
	if !ok {
		return a, nil
	}
	if a, ok := b.known.answer(q); ok {
		return a, nil
	}
	if !b.rate.take() {
		b.refusals.add(refusal{protocol: cmp.Or(q.Protocol.String(), "dns"), job: q.Job, rule: rule})
		a.Outcome, a.Errno = member.Failed, uint16(unix.EAGAIN)
		return a, nil
	}
	ctx, cancel := context.WithTimeout(b.ctx, dialTime)
	defer cancel()
	families, file, err := b.dial(ctx, q)
	var errno syscall.Errno
	switch {
	case err == nil:
		a.Outcome, a.Families = member.Done, families
		if q.Protocol == member.None && families != 0 {
			b.known.keep(q.Job, families)
		}
		return a, file
	case errors.As(err, &errno) && errno > 0 && errno < 1<<12:
		a.Outcome, a.Errno = member.Failed, uint16(errno)
	case errors.Is(err, member.ErrAbsent):
		a.Outcome = member.Absent
		b.known.keep(q.Job, 0)
	default:
		a.Outcome = member.Absent
		if b.ctx.Err() == nil {
			b.failed(q.Job, err)
		}
	}
	return a, nil
}

// allowed tells whether the rules have that, and by which of them.
func (b *Broker) allowed(q member.Request) (rule int, ok bool) {
	name := dnsname.Name(q.Job)
	v := b.policy.Job(name, q.Protocol.String(), q.Port)
	if q.Protocol != member.None {
		return v.Rule, v.Allow
	}
	return v.Rule, slices.Contains(b.policy.Jobs(), name)
}
