package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
)

// serve obeys the supervisor until it closes the socket. PID 1 ends with it,
// and with PID 1 the kernel ends every process of the sandbox.
func (in *initProcess) serve() error {
	go in.reap()
	for {
		if err := in.awaitMessage(); err != nil {
			return err
		}
		msg, fds, err := in.conn.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		k, err := initproto.KindOf(msg)
		if err == nil {
			err = in.obey(k, msg, fds)
		}
		channel.CloseAll(fds)
		if err != nil {
			return err
		}
	}
}

// awaitMessage waits for the supervisor. This thread hears of the workload's end, too: the
// other one, which reaps, may still have to wait for Go's runtime to give it a turn, and the
// workload may be over before that.
//
// By select(2), for poll(2) takes no more descriptors than RLIMIT_NOFILE says, which the
// workload may have set to none.
func (in *initProcess) awaitMessage() error {
	conn, work := in.conn.FD(), in.work.pidfd
	for last := max(conn, work); last < unix.FD_SETSIZE; {
		var ready unix.FdSet
		ready.Set(conn)
		ready.Set(work)
		_, err := unix.Select(last+1, &ready, nil, nil, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("select", err)
		case !ready.IsSet(work):
			return nil
		default:
			var ws syscall.WaitStatus
			if pid, err := syscall.Wait4(in.work.pid, &ws, unix.WNOHANG, nil); err == nil && pid == in.work.pid {
				in.over(ws)
			}
			// The other thread has it, and ends this process, or will: a workload that is
			// traced by another is its tracer's first.
			return nil
		}
	}
	return nil
}

// obey carries out one message. The descriptors stay the caller's.
func (in *initProcess) obey(k initproto.Kind, msg []byte, fds []int) error {
	switch k {
	case initproto.KindSignal:
		var s initproto.Signal
		if err := initproto.Decode(msg, &s); err != nil {
			return err
		}
		in.signal(s)
		return nil
	case initproto.KindSpawn:
		return in.spawn(msg, fds)
	case initproto.KindSocket:
		return in.socket(msg)
	case initproto.KindHooks:
		return in.startHooks(msg, fds)
	}
	return fmt.Errorf("%w: kind %d", initproto.ErrMessage, k)
}

// socket makes a socket of this network namespace for the supervisor, which connects it.
// Why there is none is told, and no reason to end.
func (in *initProcess) socket(msg []byte) error {
	var s initproto.Socket
	if err := initproto.Decode(msg, &s); err != nil {
		return err
	}
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if s.V6 {
		family = unix.AF_INET6
	}
	if s.Datagram {
		kind = unix.SOCK_DGRAM
	}
	made := initproto.SocketMade{ID: s.ID}
	var pass []int
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	var errno syscall.Errno
	switch {
	case err == nil:
		defer unix.Close(fd)
		pass = []int{fd}
	case errors.As(err, &errno):
		made.Errno = uint32(errno)
	}
	err = in.conn.Send(initproto.Encode(initproto.KindSocketMade, &made), pass...)
	if len(pass) > 0 && errors.Is(err, unix.ETOOMANYREFS) { // as in spawn
		made.Errno = uint32(unix.ETOOMANYREFS)
		return in.conn.Send(initproto.Encode(initproto.KindSocketMade, &made))
	}
	return err
}

// signal passes a signal on. A workload that is gone is no error: its Exited
// is on the way.
func (in *initProcess) signal(s initproto.Signal) {
	switch {
	case s.All:
		_ = unix.Kill(-1, unix.Signal(s.Number))
		return
	case s.Spawned != 0:
		in.spawned.signal(s.Spawned, unix.Signal(s.Number))
		return
	}
	_ = unix.PidfdSendSignal(in.work.pidfd, unix.Signal(s.Number), nil, 0)
}

// reap collects every orphan of the sandbox, reports the end of the workload
// and ends this process with it.
func (in *initProcess) reap() {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		if pid != in.work.pid {
			if e, ok := in.spawned.ended(pid, ws); ok {
				if err := in.conn.Send(initproto.Encode(initproto.KindEnded, &e)); err != nil {
					os.Exit(125)
				}
				continue
			}
			in.hooks.ended(pid, ws)
			continue
		}
		in.over(ws)
	}
}

// over tells of the workload's end, and with it this process, and so the sandbox, ends. The
// kernel is at it, with whatever else runs here, before the supervisor has woken up.
func (in *initProcess) over(ws syscall.WaitStatus) {
	e := in.work.exited(uint32(ws))
	if err := in.conn.Send(initproto.Encode(initproto.KindExited, &e)); err != nil {
		os.Exit(125)
	}
	os.Exit(0)
}
