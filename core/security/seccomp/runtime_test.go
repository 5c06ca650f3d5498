package seccomp

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRuntimeFilterRefusesWhatOutlastsAProgram(t *testing.T) {
	forBoth(t, "runtime", func(t *testing.T, b built) {
		for _, tc := range []struct {
			call string
			args []uint64
			want Action
		}{
			{"ioctl", []uint64{0, tiocsti}, Errno(syscall.EPERM)},
			{"ioctl", []uint64{0, tioclinux}, Errno(syscall.EPERM)},
			{"ioctl", []uint64{0, tiocsetd}, Errno(syscall.EPERM)},
			{"ioctl", []uint64{0, tiocexcl}, Errno(syscall.EPERM)},
			{"ioctl", []uint64{0, upper | tiocexcl}, Errno(syscall.EPERM)},
			{"ioctl", []uint64{0, tcxonc, stopOutput}, Errno(syscall.EPERM)},
			{"ioctl", []uint64{0, tcxonc, 1}, ActAllow}, // TCOON
			{"ioctl", []uint64{0, 0x5413}, ActAllow},    // TIOCGWINSZ
			{"fcntl", []uint64{0, setLease}, Errno(syscall.EACCES)},
			{"fcntl", []uint64{0, setDelegation}, Errno(syscall.EACCES)},
			{"fcntl", []uint64{0, unix.F_GETFL}, ActAllow},
			{"fsetxattr", []uint64{0, 0, 0, maxAttribute}, ActAllow},
			{"fsetxattr", []uint64{0, 0, 0, maxAttribute + 1}, Errno(syscall.ENOSPC)},
			{"seccomp", []uint64{unix.SECCOMP_SET_MODE_FILTER, seccompNewListener}, ActAllow}, // of its own sandboxes
		} {
			if got := b.verdict(tc.call, tc.args...); got != tc.want {
				t.Errorf("%s(%#x): %q, want %q", tc.call, tc.args, got, tc.want)
			}
		}
	})
}

func TestRuntimeFilterBoundsSockets(t *testing.T) {
	none := Errno(syscall.EAFNOSUPPORT)
	forBoth(t, "runtime", func(t *testing.T, b built) {
		for _, tc := range []struct {
			call     string
			family   uint64
			protocol uint64
			want     Action
		}{
			{"socket", unix.AF_UNIX, 0, ActAllow},
			{"socket", unix.AF_INET, 0, ActAllow},
			{"socket", unix.AF_INET6, 0, ActAllow},
			{"socket", unix.AF_PACKET, 0x300, ActAllow}, // ETH_P_ALL
			{"socket", unix.AF_NETLINK, unix.NETLINK_ROUTE, ActAllow},
			{"socket", unix.AF_NETLINK, unix.NETLINK_NETFILTER, none},
			{"socket", unix.AF_NETLINK, unix.NETLINK_AUDIT, none},
			{"socket", unix.AF_VSOCK, 0, none},
			{"socket", unix.AF_ALG, 0, none},
			{"socket", unix.AF_XDP, 0, none},
			{"socket", unix.AF_TIPC, 0, none},
			{"socket", upper | unix.AF_VSOCK, 0, none},
			{"socketpair", unix.AF_UNIX, 0, ActAllow},
			{"socketpair", unix.AF_TIPC, 0, none},
		} {
			if got := b.verdict(tc.call, tc.family, unix.SOCK_STREAM, tc.protocol); got != tc.want {
				t.Errorf("%s(%#x, …, %d): %q, want %q", tc.call, tc.family, tc.protocol, got, tc.want)
			}
		}
	})
}
