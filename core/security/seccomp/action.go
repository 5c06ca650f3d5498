package seccomp

import (
	"fmt"
	"syscall"
)

// Action is what the kernel does with a call: the value that a filter returns (SECCOMP_RET_*).
type Action uint32

// The actions of the kernel. ActErrno and ActTrace carry 16 bits of data.
const (
	ActKillProcess Action = 0x80000000
	ActKillThread  Action = 0x00000000
	ActTrap        Action = 0x00030000
	ActErrno       Action = 0x00050000
	ActTrace       Action = 0x7ff00000
	ActNotify      Action = 0x7fc00000
	ActLog         Action = 0x7ffc0000
	ActAllow       Action = 0x7fff0000
)

const (
	actionMask Action = 0xffff0000
	dataMask   Action = 0x0000ffff
	// One below MAX_ERRNO of the kernel, which libseccomp excludes.
	maxErrno = 4094
)

// Errno is the action that fails a call with e.
func Errno(e syscall.Errno) Action { return ActErrno | Action(e)&dataMask }

// Kind is the action without its data.
func (a Action) Kind() Action { return a & actionMask }

// Data is the errno of ActErrno, or the message of ActTrace.
func (a Action) Data() uint16 { return uint16(a & dataMask) }

// Admits tells whether the call reaches the kernel.
func (a Action) Admits() bool { return a.Kind() == ActAllow || a.Kind() == ActLog }

// gentler tells whether b would win over a if two filters gave them for one call (seccomp_run_filters compares the kinds
// as signed numbers; the lowest wins, and among equals the filter loaded last).
func (a Action) gentler(b Action) bool { return int32(a.Kind()) > int32(b.Kind()) }

func (a Action) valid() bool {
	switch a.Kind() {
	case ActErrno:
		return a.Data() <= maxErrno
	case ActTrace:
		return true
	case ActKillProcess, ActKillThread, ActTrap, ActLog, ActAllow:
		return a.Data() == 0
	}
	return false
}

func (a Action) String() string {
	switch a.Kind() {
	case ActKillProcess:
		return "kill process"
	case ActKillThread:
		return "kill thread"
	case ActTrap:
		return "trap"
	case ActErrno:
		if name := errnoName(a.Data()); name != "" {
			return name
		}
		return fmt.Sprintf("errno %d", a.Data())
	case ActTrace:
		return fmt.Sprintf("trace %d", a.Data())
	case ActNotify:
		return "notify"
	case ActLog:
		return "log"
	case ActAllow:
		return "allow"
	}
	return fmt.Sprintf("action %#x", uint32(a))
}
