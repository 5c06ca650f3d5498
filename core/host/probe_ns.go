package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// probeUserNS uses a capability, because to be in a user namespace is not
// enough: AppArmor on Ubuntu 24.04 lets it be made and then denies every
// capability in it.
func probeUserNS(string) (string, error) {
	caps, err := effectiveCaps()
	if err != nil {
		return "", setup("asking for our capabilities", err)
	}
	if os.Geteuid() != 0 || caps&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return "", fmt.Errorf("root of the new namespace has no capabilities in it: %w", unix.EPERM)
	}
	if _, err := probeUTSNS(""); err != nil {
		return "", fmt.Errorf("using a capability in a new user namespace: %w", err)
	}
	return "single-id map", nil
}

func probeMountNS(string) (string, error) {
	_, err := scratch()
	return "", unmarked(err)
}

func probePIDNS(string) (string, error) {
	if pid := os.Getpid(); pid != 1 {
		return "", fmt.Errorf("the first process of a new pid namespace has pid %d: %w", pid, unix.EINVAL)
	}
	return "", nil
}

// probeNetNS brings loopback up, as every sandbox does.
func probeNetNS(string) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening a socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return "", setup("naming loopback", err)
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return "", fmt.Errorf("bringing loopback up: %w", err)
	}
	return "", nil
}

func probeUTSNS(string) (string, error) {
	if _, err := unshares("uts", unix.CLONE_NEWUTS); err != nil {
		return "", err
	}
	if err := unix.Sethostname([]byte("probe")); err != nil {
		return "", fmt.Errorf("setting a host name: %w", err)
	}
	return "", nil
}

// unshares moves this thread into a new namespace and looks that it did.
func unshares(name string, flag int) (string, error) {
	link := "/proc/thread-self/ns/" + name
	before, err := os.Readlink(link)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return "", setup("reading our namespace", err)
	}
	if err := unix.Unshare(flag); err != nil {
		return "", fmt.Errorf("unsharing: %w", err)
	}
	after, err := os.Readlink(link)
	if err != nil {
		return "", setup("reading our namespace", err)
	}
	if before == after {
		return "", fmt.Errorf("unsharing left us where we were: %w", unix.EINVAL)
	}
	return "", nil
}

// unmarked takes the mark of a preparation off: here it is the feature itself.
func unmarked(err error) error {
	var se *setupError
	if errors.As(err, &se) {
		return se.err
	}
	return err
}

// subIDs gives a new user namespace a subordinate range, by the way a run
// would: root writes the map, a user has newuidmap and newgidmap write it.
func (s *session) subIDs(ctx context.Context) fact.Feature {
	f := fact.Feature{Name: featSubID, Since: since(featSubID)}
	h := s.o.Host
	if known := h.Feature(featSubID); known.State == fact.Unavailable {
		return known
	}
	if s.broken != "" {
		f.Why = s.broken
		return f
	}
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	if h.Privileged {
		return s.rootMap(ctx, f)
	}
	if len(h.SubUID) == 0 || len(h.SubGID) == 0 || h.NewUIDMap == "" || h.NewGIDMap == "" {
		f.Why = "not asked for: the host facts name no range or no helper"
		return f
	}
	child, err := hold(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER})
	if err != nil {
		f.Why = firstLine(err)
		return f
	}
	defer child.release()
	pid := strconv.Itoa(child.proc.Pid)
	for _, m := range []struct {
		helper, file string
		own          int
		sub          fact.IDRange
	}{{h.NewUIDMap, "uid_map", h.EUID, h.SubUID[0]}, {h.NewGIDMap, "gid_map", h.EGID, h.SubGID[0]}} {
		args := []string{pid, "0", strconv.Itoa(m.own), "1", "1", fmt.Sprint(m.sub.Start), fmt.Sprint(m.sub.Count)}
		cmd := exec.CommandContext(ctx, m.helper, args...)
		cmd.Env = []string{}
		if out, err := cmd.CombinedOutput(); err != nil {
			if ctx.Err() != nil {
				f.Why = m.helper + " did not finish in time"
				return f
			}
			return unusable(featSubID, fmt.Sprintf("%s refuses the map: %s", m.helper, oneLine(out, err)), fact.RemedyMapRefused)
		}
		got, err := os.ReadFile("/proc/" + pid + "/" + m.file)
		if err != nil {
			f.Why = firstLine(err)
			return f
		}
		if !covers(parseExtents(got), 1, uint64(m.sub.Count)) {
			return unusable(featSubID, fmt.Sprintf("%s left the map %q", m.helper, strings.Join(strings.Fields(string(got)), " ")), remedyMapHelper)
		}
	}
	f.State = fact.Available
	f.Detail = fmt.Sprintf("%d ids from %d by newuidmap", h.SubUID[0].Count, h.SubUID[0].Start)
	return f
}

func (s *session) rootMap(ctx context.Context, f fact.Feature) fact.Feature {
	free := s.o.Host.FreeSubID
	if free.Count == 0 {
		f.Why = "not asked for: the host facts name no free range"
		return f
	}
	// The child is executed before the map is written: afterwards its ids are
	// others, to which our executable may be closed.
	child, err := hold(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER})
	if err != nil {
		f.Why = firstLine(err)
		return f
	}
	defer child.release()
	line := fmt.Sprintf("0 %d %d\n", free.Start, free.Count)
	for _, file := range []string{"uid_map", "gid_map"} {
		p := fmt.Sprintf("/proc/%d/%s", child.proc.Pid, file)
		if err := os.WriteFile(p, []byte(line), 0); err != nil {
			var errno unix.Errno
			if errors.As(err, &errno) && meansNo(errno) {
				why, remedy := explainErrno(errno, f.Since, "writing "+file+": "+errno.Error(), s.o.Host, s.res)
				return unusable(featSubID, why, remedy)
			}
			f.Why = firstLine(err)
			return f
		}
	}
	if ctx.Err() != nil {
		f.Why = firstLine(ctx.Err())
		return f
	}
	f.State = fact.Available
	f.Detail = fmt.Sprintf("%d ids from %d, written by root", free.Count, free.Start)
	return f
}

func oneLine(out []byte, err error) string {
	if s := strings.Join(strings.Fields(string(out)), " "); s != "" {
		return strconv.QuoteToASCII(s[:min(len(s), 200)])
	}
	return err.Error()
}
