package exit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/egress"
	"github.com/nucleus-runtime/nucleus/sdk/network/member"
)

// job is where a flow to another job of the stack goes: not to an address, but to whom
// the core connects.
type job struct {
	dst     netip.AddrPort // as the sandbox sees it
	verdict egress.Verdict
}

func (e *Exit) isJob(n dnsname.Name) bool { return slices.Contains(e.policy.Jobs(), n) }

func (e *Exit) findJob(proto string, dst netip.AddrPort, n dnsname.Name) (Target, error) {
	v := e.policy.Job(n, proto, dst.Port())
	switch {
	case !v.Allow:
		return Target{}, e.deny(proto, dst, n, v)
	case proto != TCP && proto != UDP: // there is no packet that could go there
		return Target{}, e.deny(proto, dst, n, egress.Verdict{Rule: v.Rule, Reason: network.ReasonProtocol})
	}
	return Target{Name: n, job: &job{dst, v}}, nil
}

// families are that of the address which the sandbox has chosen, and the other one.
func (j *job) families() [2]member.Families {
	if j.dst.Addr().Unmap().Is4() {
		return [2]member.Families{member.V4, member.V6}
	}
	return [2]member.Families{member.V6, member.V4}
}

// ask has the core connect to a job.
func (e *Exit) ask(ctx context.Context, proto string, p member.Protocol, f member.Families, t Target) (*os.File, error) {
	file, err := e.members.Dial(ctx, p, f, t.Name, t.job.dst.Port())
	if errors.Is(err, member.ErrAbsent) || errors.Is(err, member.ErrRefused) {
		v := t.job.verdict
		v.Reason = network.ReasonUnresolved
		return nil, e.deny(proto, t.job.dst, t.Name, v)
	}
	return file, err
}

// dialJobTCP tries the other family where nobody listens in the one that the sandbox
// has chosen, as for other names: where a connection is accepted before the job has
// answered, the program can not.
func (e *Exit) dialJobTCP(ctx context.Context, t Target) (*net.TCPConn, error) {
	f := t.job.families()
	c, err := e.dialJobIn(ctx, f[0], t)
	if errors.Is(err, unix.ECONNREFUSED) {
		if other, err := e.dialJobIn(ctx, f[1], t); err == nil {
			return other, nil
		}
	}
	return c, err
}

func (e *Exit) dialJobIn(ctx context.Context, f member.Families, t Target) (*net.TCPConn, error) {
	file, err := e.ask(ctx, TCP, member.TCP, f, t)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := connected(ctx, file); err != nil {
		return nil, err
	}
	return connOf[*net.TCPConn](file)
}

func (e *Exit) dialJobUDP(ctx context.Context, t Target) (*net.UDPConn, error) {
	file, err := e.ask(ctx, UDP, member.UDP, t.job.families()[0], t)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return connOf[*net.UDPConn](file)
}

// connOf makes a connection of a copy of a socket.
func connOf[C net.Conn](f *os.File) (c C, err error) {
	conn, err := net.FileConn(f)
	if err != nil {
		return c, err
	}
	c, ok := conn.(C)
	if !ok {
		conn.Close()
		return c, fmt.Errorf("a socket that came is none of %T", c)
	}
	return c, nil
}

// connected waits until a socket is, or cannot be.
func connected(ctx context.Context, f *os.File) error {
	if limit, ok := ctx.Deadline(); ok {
		if err := f.SetWriteDeadline(limit); err != nil {
			return err
		}
	}
	defer context.AfterFunc(ctx, func() { f.Close() })()
	if err := relay.Control(f, NoDelay); err != nil {
		return err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && n != 0 {
			err = syscall.Errno(n)
		}
		if err != nil {
			failed = os.NewSyscallError("connect", err)
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil // ENOTCONN: not yet
	})
	switch {
	case failed != nil:
		return failed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return os.NewSyscallError("connect", unix.ETIMEDOUT)
	}
	return err
}
