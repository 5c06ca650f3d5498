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
			in.spawned.mu.Lock()
			if ws, ended := collect(in.work.pid); ended {
				in.over(ws)
			}
			in.spawned.mu.Unlock()
			// It is the other thread that will see it, and ends this process: a workload that
			// is traced by another is its tracer's first.
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
//
// What it has seen the end of it collects with the lock held, and tells at once: in between the
// other thread could tell the workload's end, which is the last that is heard.
func (in *initProcess) reap() {
	for {
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		in.reapOne()
	}
}

func (in *initProcess) reapOne() {
	in.spawned.mu.Lock()
	defer in.spawned.mu.Unlock()
	var ws syscall.WaitStatus
	pid, err := syscall.Wait4(-1, &ws, unix.WNOHANG, nil)
	switch {
	case err != nil || pid == 0: // the other thread was quicker
	case pid == in.work.pid:
		in.over(ws)
	case !in.endedSpawned(pid, ws):
		in.hooks.ended(pid, ws)
	}
}

// collect gives how a child has ended, if it has.
func collect(pid int) (ws syscall.WaitStatus, ended bool) {
	got, err := syscall.Wait4(pid, &ws, unix.WNOHANG, nil)
	return ws, err == nil && got == pid
}

// endedSpawned tells of the end of a process that was asked for, if pid is one. It is called
// with the lock of spawned held.
func (in *initProcess) endedSpawned(pid int, ws syscall.WaitStatus) bool {
	e, ok := in.spawned.ended(pid, ws)
	if !ok {
		return false
	}
	if err := in.conn.Send(initproto.Encode(initproto.KindEnded, &e)); err != nil {
		os.Exit(125)
	}
	return true
}

// over tells of the workload's end, and with it this process, and so the sandbox, ends. The
// kernel is at it, with whatever else runs here, before the supervisor has woken up. What has
// ended before the workload did is told before: it has an exit code, and somebody waits for
// it. The lock of spawned is held.
func (in *initProcess) over(ws syscall.WaitStatus) {
	for _, p := range in.spawned.byID {
		if ws, ended := collect(p.pid); ended {
			in.endedSpawned(p.pid, ws)
		}
	}
	e := in.work.exited(uint32(ws))
	if err := in.conn.Send(initproto.Encode(initproto.KindExited, &e)); err != nil {
		os.Exit(125)
	}
	os.Exit(0)
}
