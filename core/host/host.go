// Package host owns what is known about the machine we run on: the facts that
// a plan needs (Quick, on the start path of every run) and the probes that
// doctor prints (Probe, which does the real thing in throw-away children).
// It never changes the host, never decides what a job means here, and never
// takes "could not tell" for "available".
package host

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// Options says where Quick looks. The zero value is this host.
type Options struct {
	// Root is prefixed to every path that is read, "" for the real root.
	Root string
	// Cgroup is what package cgroups found; host does not look at groups itself.
	Cgroup fact.Cgroup
}

// Quick finds what every run needs to know, with a few cheap system calls; the
// toolchain, which only a job without a rootfs sees, is not among it. A file that
// cannot be read leaves its field at "not known"; an error means that the kernel
// refused to say who we are, and no plan can be made.
func Quick(o Options) (fact.Host, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fact.Host{}, fmt.Errorf("asking for the kernel release: %w", err)
	}
	caps, err := effectiveCaps()
	if err != nil {
		return fact.Host{}, fmt.Errorf("asking for our capabilities: %w", err)
	}
	r := root(o.Root)
	h := fact.Host{
		Kernel:   unix.ByteSliceToString(uts.Release[:]),
		Arch:     runtime.GOARCH,
		EUID:     unix.Geteuid(),
		EGID:     unix.Getegid(),
		CPUs:     runtime.NumCPU(),
		Cgroup:   o.Cgroup,
		Features: make(map[string]fact.Feature, 8),
	}
	ns := readUserNS(r)
	h.UserNS = ns.known && !ns.initial
	h.Privileged = h.EUID == 0 && caps&(1<<unix.CAP_SYS_ADMIN) != 0 && ns.known && ns.initial
	h.UserName = loginName(r, h.EUID)

	subFeature := readSubIDs(r, &h, ns)
	var whyTool string
	h.NewUIDMap, whyTool = findMapHelper(r, "newuidmap", unix.CAP_SETUID)
	if whyTool == "" {
		h.NewGIDMap, whyTool = findMapHelper(r, "newgidmap", unix.CAP_SETGID)
	} else {
		h.NewGIDMap, _ = findMapHelper(r, "newgidmap", unix.CAP_SETGID)
	}
	if !h.Privileged && subFeature.State != fact.Unavailable && whyTool != "" {
		subFeature = unusable(featSubID, whyTool, remedyMapHelper)
	}
	if subFeature.State != fact.Unknown {
		h.Features[featSubID] = subFeature
	}

	abi, errno := landlockABI()
	h.LandlockABI = abi
	for _, f := range landlockFeatures(abi, errno) {
		h.Features[f.Name] = f
	}
	lockdown := readLockdown(r)
	h.Lockdown = lockdown.Detail
	h.Features[featLockdown] = lockdown
	if f, bad := userNSForbidden(r, h.Privileged); bad {
		h.Features[featUserNS] = f
	}
	return h, nil
}

func unusable(name, why, remedy string) fact.Feature {
	return fact.Feature{
		Name: name, State: fact.Unavailable, Why: why,
		Since: since(name), Remedy: remedy,
	}
}

// root is a prefix for host paths, so that tests can show another host.
type root string

func (r root) path(p string) string { return string(r) + p }

// read returns at most limit bytes of a file. It bypasses os.File, whose
// poller registration costs more than these reads themselves.
func (r root) read(p string, limit int) ([]byte, error) {
	fd, err := openRetry(r.path(p), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p, Err: err} // not a text yet: most are not there, and nobody is told
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, 512)
	for {
		if len(buf) > limit {
			return nil, fmt.Errorf("reading %q: larger than %d bytes: %w", p, limit, unix.EFBIG)
		}
		if len(buf) == cap(buf) {
			buf = append(buf, make([]byte, cap(buf))...)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, fmt.Errorf("reading %q: %w", p, err)
		case n == 0:
			return buf, nil
		default:
			buf = buf[:len(buf)+n]
		}
	}
}

// word is the file's first line without surrounding space, "" if unreadable.
func (r root) word(p string) string {
	b, err := r.read(p, 4096)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}

func openRetry(p string, flags int) (int, error) {
	for {
		fd, err := unix.Open(p, flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
