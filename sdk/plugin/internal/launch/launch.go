// Package launch takes over what a host hands to a plugin process, before other
// code can spoil it: standard output, the lifeline, the inherited descriptors.
//
// It acts in its init function, since a program's other packages print in theirs,
// and a single line of theirs on standard output would break the handshake. Go
// initialises packages by import path as soon as what they import is ready, so this
// one imports the standard library only, to come early; a program's main package
// always comes later. Nothing happens in a process that no host has started.
package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// How host and plugin know each other. The cookie is no secret: it tells a plugin
// from a program that was started by hand.
const (
	CookieKey   = "NUCLEUS_PLUGIN_COOKIE"
	CookieValue = "3c1d9f6e2b7a4850-nucleus-plugin"
	LifelineFD  = "NUCLEUS_LIFELINE_FD"
	PeerUID     = "NUCLEUS_PEER_UID"
	// DescriptorsFD is optional: the plugin's end of sdk/plugin/descriptors.
	DescriptorsFD = "NUCLEUS_DESCRIPTORS_FD"
)

// Process is how this process was started.
type Process struct {
	ByHost    bool
	Handshake *os.File // what standard output was
	Parent    int      // 0 if it is outside of our pid namespace
	// Descriptors is our end of the side channel, nil for none.
	Descriptors *os.File
	Err         error

	lifeline *os.File
	peerUID  int64 // -1 for none
}

// This is the running process. It is set once, before main.
var This = Process{peerUID: -1}

func init() {
	if os.Getenv(CookieKey) != CookieValue {
		return
	}
	This = take()
}

func take() Process {
	p := Process{ByHost: true, Parent: os.Getppid(), peerUID: -1}
	rename()
	// What we make, sockets above all, is for our user alone. The host cannot set
	// the mask for us: it is the host's whole process's.
	syscall.Umask(0o077)
	var err error
	if p.Handshake, err = swapStdout(); err != nil {
		p.Err = err
		return p
	}
	var lerr, derr error
	p.lifeline, lerr = inherited(LifelineFD, "lifeline")
	p.Descriptors, derr = inherited(DescriptorsFD, "descriptors")
	p.Err = errors.Join(lerr, derr)
	closeOnExec()
	if s := os.Getenv(PeerUID); s != "" {
		uid, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			p.Err = errors.Join(p.Err, fmt.Errorf("%s=%q is no user id", PeerUID, s))
		}
		p.peerUID = int64(uid)
	}
	// A child of ours is no plugin of this host.
	for _, k := range []string{CookieKey, LifelineFD, PeerUID, DescriptorsFD} {
		_ = os.Unsetenv(k) // it fails only for names that are none
	}
	return p
}

// rename gives the process the name that ps(1) and ss(8) show of it: the host executes a
// descriptor, so it would be that one's number. It is the main thread's, where init
// functions run. nucleus-plugin-NAME is NAME, as the kernel keeps 15 bytes.
func rename() {
	name, err := syscall.BytePtrFromString(strings.TrimPrefix(filepath.Base(os.Args[0]), "nucleus-plugin-"))
	if err == nil {
		_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0)
	}
}

// swapStdout gives descriptor 1 to the log and keeps what it was. By number, so
// that children and C code are covered, too.
func swapStdout() (*os.File, error) {
	fd, err := dupCloexec(1)
	if err != nil {
		return nil, fmt.Errorf("keeping standard output: %w", err)
	}
	if err := syscall.Dup3(2, 1, 0); err != nil {
		return nil, fmt.Errorf("taking standard output away: %w", os.NewSyscallError("dup3", err))
	}
	return os.NewFile(uintptr(fd), "handshake"), nil
}

func dupCloexec(fd int) (int, error) {
	n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 3)
	if errno != 0 {
		return -1, os.NewSyscallError("fcntl", errno)
	}
	return int(n), nil
}

// inherited is the descriptor whose number a variable has; nil without one.
func inherited(variable, name string) (*os.File, error) {
	s := os.Getenv(variable)
	if s == "" {
		return nil, nil
	}
	fd, err := strconv.Atoi(s)
	var st syscall.Stat_t
	if err != nil || fd < 3 || syscall.Fstat(fd, &st) != nil {
		return nil, fmt.Errorf("%s=%q is no open descriptor", variable, s)
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name), nil
}

// closeOnExec keeps every inherited descriptor from our children: a child with a
// copy of a pipe would keep it open after us.
func closeOnExec() {
	const (
		sysCloseRange     = 436 // the same on all architectures
		closeRangeCloexec = 4   // Linux 5.11; on an older one the lifeline alone is marked
	)
	_, _, _ = syscall.Syscall(sysCloseRange, 3, uintptr(^uint32(0)), closeRangeCloexec)
}

// PeerUIDs are the users that may talk to this process: its own, and the host's
// where that is another.
func (p *Process) PeerUIDs() []uint32 {
	uids := []uint32{uint32(os.Geteuid())}
	if p.peerUID >= 0 {
		uids = append(uids, uint32(p.peerUID))
	}
	return uids
}

// Watch calls dead when the host is gone: its end of the lifeline closes with it,
// however it ends. Keep is what it has said by then: how long a plugin may stay for
// other hosts, 0 for not at all. Without a lifeline Watch returns at once, and calls
// nothing.
func (p *Process) Watch(dead func(keep time.Duration)) {
	if p.lifeline == nil {
		return
	}
	go func() {
		said, _ := io.ReadAll(io.LimitReader(p.lifeline, maxSaid))
		_, _ = io.Copy(io.Discard, p.lifeline)
		dead(keepTime(string(said)))
	}()
}

// maxSaid is more than a host has to say on the lifeline.
const maxSaid = 64

// keepTime reads one line of decimal milliseconds. What is anything else, or was cut
// off, is not said.
func keepTime(said string) time.Duration {
	line, ok := strings.CutSuffix(said, "\n")
	ms, err := strconv.ParseUint(line, 10, 32)
	if !ok || err != nil {
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}

// Mute lets this process, and what it starts from now on, print to nowhere: who read
// it is gone, and a write would end a process.
func Mute() error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for _, fd := range []int{1, 2} {
		if err := syscall.Dup3(int(null.Fd()), fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	return nil
}

// Undumpable keeps this process's memory from core files, and from other processes
// of its user.
func Undumpable() error {
	if _, _, errno := syscall.Syscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0); errno != 0 {
		return os.NewSyscallError("prctl PR_SET_DUMPABLE", errno)
	}
	return nil
}
