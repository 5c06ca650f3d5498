package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// spawned are the processes that were asked for beside the workload.
type spawned struct {
	mu   sync.Mutex
	byID map[uint32]*stage2
}

// ended gives what there is to tell of a process that the reaping goroutine has
// seen the end of, if it is one of these. It is called with the lock held.
func (s *spawned) ended(pid int, ws syscall.WaitStatus) (initproto.Ended, bool) {
	for id, p := range s.byID {
		if p.pid == pid {
			delete(s.byID, id)
			e := initproto.Ended{ID: id, Exited: p.exited(uint32(ws)), Answer: p.note.heard()}
			p.free()
			return e, true
		}
	}
	return initproto.Ended{}, false
}

// free lets go of what init keeps for a process that has ended, or is not wanted.
func (s *stage2) free() {
	_ = unix.Close(s.pidfd)
	unmapNote(s.note)
	if s.remove != "" {
		_ = unix.Unlink(s.remove) // it may have made none
	}
}

// signal does nothing for a process that is gone: its end is on the way, or told.
func (s *spawned) signal(id uint32, n unix.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.byID[id]
	if p == nil {
		return
	}
	// Not reaped yet, for that needs the lock: the pid is still its own.
	if n == unix.SIGKILL {
		_ = unix.Kill(-p.pid, n) // ESRCH: it leads no group yet
	}
	_ = unix.PidfdSendSignal(p.pidfd, n, nil, 0)
}

// spawn makes one more process of the sandbox. That it cannot be made is no reason
// for init to end: the answer tells.
func (in *initProcess) spawn(msg []byte, fds []int) error {
	var s initproto.Spawn
	if err := initproto.Decode(msg, &s); err != nil {
		return err
	}
	// Its end, which closes the pidfd, comes after the answer that passes it on: a
	// workload that kills what it can reach may be that quick.
	in.spawned.mu.Lock()
	defer in.spawned.mu.Unlock()
	pass, err := in.stage2For(&s, fds)
	answer := initproto.Spawned{ID: s.ID}
	if err != nil {
		answer.What = err.Error()
		var errno syscall.Errno
		if errors.As(err, &errno) {
			answer.Errno = uint32(errno)
		}
	}
	serr := in.conn.Send(initproto.Encode(initproto.KindSpawned, &answer), pass...)
	if len(pass) > 1 {
		_ = unix.Close(pass[1]) // the supervisor has its own
	}
	if len(pass) > 0 && errors.Is(serr, unix.ETOOMANYREFS) {
		// Processes of init's user, perhaps in other sandboxes, leave so many descriptors
		// unread that no more can be passed. What waits at its gate ends with that.
		in.spawned.drop(s.ID)
		refused := initproto.Spawned{ID: s.ID, Errno: uint32(unix.ETOOMANYREFS), What: "passing it on: " + serr.Error()}
		return in.conn.Send(initproto.Encode(initproto.KindSpawned, &refused))
	}
	return serr
}

// drop kills a process that nobody was told of: its end is nobody's to hear either. It is
// called with the lock held.
func (s *spawned) drop(id uint32) {
	p := s.byID[id]
	_ = unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
	p.free()
	delete(s.byID, id)
}

// stage2For gives the descriptors that the supervisor gets: the pidfd, which stays
// open here, and the master of a terminal, which does not. It is called with the lock
// of spawned held.
func (in *initProcess) stage2For(s *initproto.Spawn, fds []int) (pass []int, err error) {
	dials := len(s.Dial.Addrs) > 0
	streams := 3
	if s.TTY || dials {
		streams = 0
	}
	want := 1 + streams
	if s.Pass {
		want++
	}
	if len(fds) != want || s.ID == 0 {
		return nil, fmt.Errorf("%w: %d descriptors", initproto.ErrMessage, len(fds))
	}
	tty := terminal{master: -1}
	if s.TTY {
		if tty, err = terminalFor(s.UID, s.GID); err != nil {
			return nil, err
		}
	}
	defer func() {
		if tty.slave > 0 {
			_ = unix.Close(tty.slave)
		}
		if err != nil && tty.master >= 0 {
			_ = unix.Close(tty.master)
		}
	}()
	note, err := sharedNote()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unmapNote(note)
		}
	}()
	p := in.setup.Process
	p.Paths, p.Args, p.Env, p.SecretEnv, p.Cwd, p.Gate = s.Paths, s.Args, s.Env, nil, s.Cwd, 0
	p.UID, p.GID, p.Groups, p.Listen = s.UID, s.GID, s.Groups, nil
	pr, err := prepare(&p, s.Dial, fds[:1], tty.slave, note)
	if err != nil {
		return nil, err
	}
	if streams > 0 {
		pr.stdio, pr.given = [3]uintptr{uintptr(fds[1]), uintptr(fds[2]), uintptr(fds[3])}, true
	}
	w := &in.spawned
	if w.byID[s.ID] != nil {
		return nil, fmt.Errorf("%w: process %d exists", initproto.ErrMessage, s.ID)
	}
	if s.Pass {
		if err := pr.pass([]int32{int32(want - 1)}, 0, fds); err != nil {
			return nil, err
		}
	}
	pid, pidfd, errno := fork(pr)
	pr.passed()
	if errno != 0 {
		return nil, os.NewSyscallError("clone", errno)
	}
	if w.byID == nil {
		w.byID = map[uint32]*stage2{}
	}
	w.byID[s.ID] = &stage2{pid: pid, pidfd: pidfd, note: note, from: pr, remove: s.Remove}
	pass = []int{pidfd}
	if tty.master >= 0 {
		pass = append(pass, tty.master)
	}
	return pass, nil
}
