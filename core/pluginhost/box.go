package pluginhost

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/internal/birth"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// box is what a plugin process may not do although its user may.
type box struct {
	as       manifest.Service
	confined bool     // a Landlock domain, and the default filter
	offline  bool     // no sockets but local ones
	writable []string // beside its socket's directory
}

// boxOf gives the box of a plugin by what it is started for. One that is only asked
// what it is gets the narrowest, and so does a runtime, which only answers. A backend of
// networks that was given capabilities changes the host on purpose: its user and
// capabilities are what holds it. One without reads what a hostile workload sends, and
// needs nothing but sockets.
func boxOf(as manifest.Service, host hostconfig.Plugin) box {
	switch as {
	case manifest.Secrets:
		return box{as: as, confined: true, writable: host.Writable}
	case manifest.Network:
		return box{as: as, confined: len(host.Caps) == 0, writable: host.Writable}
	}
	return box{as: as, confined: true, offline: !host.Network, writable: host.Writable}
}

// refuses tells what a plugin says that it needs and its box does not give, and how
// its operator could give it.
func (b box) refuses(needs manifest.Needs) (what, remedy string) {
	if !b.confined {
		return "", ""
	}
	for _, path := range needs.WritablePaths {
		if !b.mayWrite(path) {
			return "to write to " + path, fmt.Sprintf("writable = [%q]", path)
		}
	}
	if needs.HostNetwork && b.offline && b.as != "" {
		return "the network", "network = true"
	}
	return "", ""
}

func (b box) mayWrite(path string) bool {
	for _, w := range b.writable {
		if rel, err := filepath.Rel(w, path); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return true
		}
	}
	return false
}

// What a confined plugin may not do outside of its places: everything that changes a
// file system. Reading and executing are not handled at all, and so are as its user
// may. The later ones are of ABI 2, 3 and 5.
const (
	changesDir = llsys.AccessFSRemoveDir | llsys.AccessFSRemoveFile | llsys.AccessFSMakeChar | llsys.AccessFSMakeDir | llsys.AccessFSMakeReg |
		llsys.AccessFSMakeSock | llsys.AccessFSMakeFifo | llsys.AccessFSMakeBlock | llsys.AccessFSMakeSym | llsys.AccessFSRefer
	changesFile = llsys.AccessFSWriteFile | llsys.AccessFSTruncate | llsys.AccessFSIoctlDev
)

// devices are what any program takes for writable.
func devices() []string {
	return []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}
}

// domain makes the Landlock ruleset of the box, as far as the kernel has Landlock;
// -1 is none.
func (b box) domain(socketDir string) (fd int, err error) {
	if !b.confined {
		return -1, nil
	}
	abi, err := llsys.LandlockGetABIVersion()
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return -1, nil
	}
	if err != nil {
		return -1, os.NewSyscallError("landlock_create_ruleset", err)
	}
	attr := llsys.RulesetAttr{HandledAccessFS: uint64(changesDir | changesFile)}
	for since, right := range map[int]uint64{2: llsys.AccessFSRefer, 3: llsys.AccessFSTruncate, 5: llsys.AccessFSIoctlDev} {
		if abi < since {
			attr.HandledAccessFS &^= right
		}
	}
	if abi >= 6 {
		attr.Scoped = llsys.ScopeAbstractUnixSocket | llsys.ScopeSignal
	}
	made, err := llsys.LandlockCreateRuleset(&attr, 0)
	if err != nil {
		return -1, os.NewSyscallError("landlock_create_ruleset", err)
	}
	// When it is entered, the plugin's own descriptors have taken the low numbers.
	rs, err := unix.FcntlInt(uintptr(made), unix.F_DUPFD_CLOEXEC, birth.HighFD)
	_ = unix.Close(made)
	if err != nil {
		return -1, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(rs)
		}
	}()
	for _, path := range append([]string{socketDir}, b.writable...) {
		if err := beneath(rs, path, attr.HandledAccessFS); err != nil {
			return -1, fmt.Errorf("letting it write to %s: %w", path, err)
		}
	}
	for _, path := range devices() {
		if err := beneath(rs, path, attr.HandledAccessFS&changesFile); err != nil && !errors.Is(err, unix.ENOENT) {
			return -1, fmt.Errorf("letting it write to %s: %w", path, err)
		}
	}
	return rs, nil
}

// beneath grants rights on a file, or on all beneath a directory.
func beneath(rs int, path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &^= changesDir // the kernel takes those for directories only
	}
	rule := llsys.PathBeneathAttr{ParentFd: fd, AllowedAccess: rights}
	return os.NewSyscallError("landlock_add_rule", llsys.LandlockAddPathBeneathRule(rs, &rule, 0))
}

// enter adds the steps into the box.
func (b box) enter(p *birth.Program, domain int) {
	if domain >= 0 {
		p.Call(birth.Must, "landlock_restrict_self", unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(domain), 0)
	}
	for _, f := range b.filters() {
		load(p, f)
	}
}

// filters are those of system calls.
func (b box) filters() (all []seccomp.Filter) {
	if b.offline {
		all = append(all, seccomp.LocalFilter())
	}
	if b.confined {
		all = append(all, seccomp.Default())
	}
	return all
}

func load(p *birth.Program, f seccomp.Filter) {
	// A copy, so that the alignment of sock_filter is certain.
	prog := make([]unix.SockFilter, len(f.BPF)/int(unsafe.Sizeof(unix.SockFilter{})))
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&prog[0])), len(f.BPF)), f.BPF)
	fprog := &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	p.Keep(fprog)
	p.Call(birth.Must, "seccomp", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), uintptr(unsafe.Pointer(fprog)))
}
