package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// cgroupSteps reports the facts of package cgroups, and the two abilities of
// the v2 hierarchy that are not a controller's.
func (s *session) cgroupSteps() []step {
	given := func(name string, find func() fact.Feature) step {
		return step{name, nil, func(context.Context) fact.Feature { return find() }}
	}
	steps := []step{given(featCgroup, func() fact.Feature { return cgroupFeature(s.o.Host.Cgroup) })}
	for _, name := range []string{featCgroupMemory, featCgroupSwap, featCgroupCPU, featCgroupPids, featCgroupIO} {
		steps = append(steps, given(name, func() fact.Feature { return controllerFeature(s.o.Host.Cgroup, name) }))
	}
	return append(steps,
		given(featCgroupKill, func() fact.Feature { return cgroupKill("") }),
		step{featCgroupClone, nil, s.cloneIntoCgroup})
}

func cgroupFeature(c fact.Cgroup) fact.Feature {
	f := fact.Feature{Name: featCgroup}
	switch {
	case c.Layout == "":
		f.Why = "the cgroups of this host were not looked at"
	case c.Why != "":
		f.State, f.Why, f.Remedy = fact.Unavailable, c.Why, c.Remedy
	case c.Layout == "none":
		f.State, f.Why = fact.Unavailable, "no cgroup file system is mounted"
	default:
		f.State, f.Detail = fact.Available, c.Layout
	}
	return f
}

func controllerFeature(c fact.Cgroup, name string) fact.Feature {
	all := cgroupFeature(c)
	if all.State != fact.Available {
		all.Name, all.Detail = name, ""
		return all
	}
	f, ok := c.Controllers[strings.TrimPrefix(name, featCgroup+".")]
	if !ok {
		f = fact.Feature{Why: "this controller was not looked at"}
	}
	f.Name = name
	return f
}

// v2Groups is where the v2 hierarchy is mounted and our own group in it.
func v2Groups(r root) (mount, own string, err error) {
	b, err := r.read("/proc/self/mountinfo", 4<<20)
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if ok && len(f) > 4 && f[3] == "/" && strings.HasPrefix(after, "cgroup2 ") {
			mount = f[4]
		}
	}
	if mount == "" {
		return "", "", errNoV2
	}
	if b, err = r.read("/proc/self/cgroup", 64<<10); err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return mount, filepath.Join(mount, p), nil
		}
	}
	return "", "", errNoV2
}

var errNoV2 = errors.New("no cgroup v2 hierarchy is mounted")

const remedyV2 = "boot with systemd.unified_cgroup_hierarchy=1"

// cgroupKill looks for the file: to write it needs a group with processes, and
// doctor makes no groups.
func cgroupKill(r root) fact.Feature {
	mount, own, err := v2Groups(r)
	if errors.Is(err, errNoV2) {
		return unusable(featCgroupKill, err.Error(), remedyV2)
	}
	f := fact.Feature{Name: featCgroupKill, Since: since(featCgroupKill)}
	if err != nil {
		f.Why = firstLine(err)
		return f
	}
	// Every group but the root has it.
	dirs := []string{own}
	if own == mount {
		children, _ := filepath.Glob(r.path(mount) + "/*/cgroup.procs")
		if len(children) == 0 {
			f.Why = "there is no group but the root of the hierarchy to look at"
			return f
		}
		dirs = []string{strings.TrimPrefix(filepath.Dir(children[0]), string(r))}
	}
	var st unix.Stat_t
	switch err := unix.Stat(r.path(dirs[0]+"/cgroup.kill"), &st); {
	case err == nil:
		f.State = fact.Available
	case errors.Is(err, unix.ENOENT) && unix.Stat(r.path(dirs[0]+"/cgroup.procs"), &st) == nil:
		f.State, f.Why, f.Remedy = fact.Unavailable, "the kernel's groups have no cgroup.kill", "boot Linux "+f.Since+" or newer"
	default:
		f.Why = "looking for cgroup.kill: " + err.Error()
	}
	return f
}

// cloneIntoCgroup starts a child straight in a group: the one that we are in,
// so that nothing has to be made.
func (s *session) cloneIntoCgroup(ctx context.Context) fact.Feature {
	f := fact.Feature{Name: featCgroupClone, Since: since(featCgroupClone)}
	_, own, err := v2Groups("")
	if errors.Is(err, errNoV2) {
		return unusable(featCgroupClone, err.Error(), remedyV2)
	}
	if err == nil && s.broken != "" {
		err = errors.New(s.broken)
	}
	if err != nil {
		f.Why = firstLine(err)
		return f
	}
	dir, err := os.Open(own)
	if err != nil {
		f.Why = "opening our own group: " + firstLine(err)
		return f
	}
	defer dir.Close()
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	_, err = ask(ctx, startProbe, "", &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())})
	var errno unix.Errno
	switch {
	case err == nil:
		f.State, f.Detail = fact.Available, "into "+own
	case errors.Is(err, unix.EACCES):
		f.Why = fmt.Sprintf("only the owner of a group may start processes in it, and %s is not ours; in a delegated group it may work", own)
		f.Remedy = "systemd-run --user --scope -p Delegate=yes nucleus doctor"
	case errors.As(err, &errno) && meansNo(errno):
		why, remedy := explainErrno(errno, f.Since, firstLine(err), s.o.Host, s.res)
		return unusable(featCgroupClone, why, remedy)
	default:
		f.Why = firstLine(err)
	}
	return f
}
