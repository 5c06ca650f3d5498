package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// withoutNFTables makes the test binary a program of its arguments to which the kernel
// says what one without nfnetlink says: there is no such protocol.
const withoutNFTables = "NUCLEUS_TEST_WITHOUT_NFTABLES"

func becomeWithoutNFTables(args []string) error {
	const (
		load, equal, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
		argument         = 16 // of struct seccomp_data; 8 bytes each, the low half first here
	)
	filter := []unix.SockFilter{
		{Code: load, K: 0},
		{Code: equal, Jf: 5, K: unix.SYS_SOCKET},
		{Code: load, K: argument},
		{Code: equal, Jf: 3, K: unix.AF_NETLINK},
		{Code: load, K: argument + 2*8},
		{Code: equal, Jf: 1, K: unix.NETLINK_NETFILTER},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if err := os.Unsetenv(withoutNFTables); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", args[0], syscall.Exec(args[0], args, os.Environ()))
}

// W21: mode agent let a failed egress policy pass with a warning, and the network was up.
// Who has a kernel without nftables learns what netbridge lacks; nothing is left, and
// nothing is owed that no collector could ever bring. netuserspace takes its other path.
func TestHostWithoutNFTables(t *testing.T) {
	netlab.Needs(t)
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Fatal("the filter is for machines that have the low half first")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"netbridge/root", "netuserspace/root"} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, setups[name])
			before, files := s.settled()
			path := s.write(job{network: policy, probes: []probe.Probe{{ID: "self", Kind: probe.Self}}})
			lacking := func(args ...string) (int, string) {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				program := filepath.Join(s.who.bins, "nucleus")
				cmd := s.lab.Host.CommandAs(ctx, s.who.uid, s.who.gid, self, append([]string{program}, args...)...)
				cmd.Env = append(s.who.env(), withoutNFTables+"=1")
				out, err := cmd.CombinedOutput()
				return exitCode(t, cmd, err), string(out)
			}
			code, text := lacking("run", "-host-config", s.conf, "-config", path)
			switch s.backend {
			case "netuserspace":
				if code != 0 || !strings.Contains(text, `"ID":"self","OK":true`) {
					t.Errorf("exit code %d, want 0: %s", code, text)
				}
			case "netbridge":
				if code != 125 || !strings.Contains(text, "this kernel has no nftables") || !strings.Contains(text, "nucleus doctor") {
					t.Errorf("exit code %d, want 125, what is missing, and where to look: %s", code, text)
				}
				if strings.Contains(text, "teardown") {
					t.Errorf("something is owed: %s", text)
				}
			}
			if code, text := lacking("gc", "-host-config", s.conf); code != 0 || text != "" {
				t.Errorf("nucleus gc: exit code %d: %s", code, text)
			}
			s.left(before, files)
		})
	}
}
