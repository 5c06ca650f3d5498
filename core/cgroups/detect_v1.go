package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// v1Controller is the v1 name of a controller.
func v1Controller(name string) string {
	switch name {
	case Swap:
		return Memory
	case IO:
		return "blkio"
	}
	return name
}

// detectV1 places groups below the group that this process runs in, in each
// hierarchy by itself: v1 allows processes beside child groups, and so whatever
// limits and accounts for us also holds the sandbox.
func (h host) detectV1(f *Facts, own map[string]string, mounts map[string]mount, parent string) {
	failed := make(map[string]Feature)
	var refused []string // directories that are root's to give away
	for _, name := range v1Names {
		m, ok := mounts[name]
		if !ok {
			failed[name] = h.missingV1(name, own)
			continue
		}
		dir, err := m.dir(own[name])
		if err == nil {
			f.Own[name] = dir
			if parent != "" {
				dir, err = m.dir(parent)
			}
		}
		if err == nil {
			err = h.canHold(dir)
		}
		if errors.Is(err, os.ErrPermission) {
			refused = append(refused, dir)
		}
		switch {
		case err != nil:
			failed[name] = h.refusedV1(name, dir, err)
		case slices.Contains(strings.Split(m.options, ","), "cpuset"):
			// A fresh cpuset group has no CPU and takes no process.
			failed[name] = Feature{
				State: Unavailable, Why: fmt.Sprintf("%q is mounted together with cpuset", name),
				Remedy: "mount cpuset by itself",
			}
		default:
			f.Parents[name] = dir
		}
	}
	f.Delegated = h.euid != 0 && len(f.Parents) > 0
	for _, c := range Controllers() {
		name := v1Controller(c)
		if why, bad := failed[name]; bad {
			f.Controllers[c] = why
			continue
		}
		f.Controllers[c] = Feature{State: Available}
	}
	if dir, ok := f.Parents[Memory]; ok {
		f.Controllers[Swap], f.SwapAbsent = h.swapFeature(dir, "memory.memsw.limit_in_bytes")
	}
	if len(f.Parents) == 0 {
		first := failed[Memory]
		if len(refused) > 0 {
			first.Remedy = h.delegateV1(refused)
		}
		f.unusable(first.Why, first.Remedy)
	}
}

func (h host) missingV1(name string, own map[string]string) Feature {
	if _, ok := own[name]; ok {
		return Feature{
			State: Unavailable, Why: fmt.Sprintf("the %s hierarchy is not mounted here", name),
			Remedy: fmt.Sprintf("mount -t cgroup -o %s %s /sys/fs/cgroup/%s", name, name, name),
		}
	}
	return Feature{
		State: Unavailable, Why: fmt.Sprintf("no cgroup v1 hierarchy has %s", name),
		Remedy: "boot with systemd.unified_cgroup_hierarchy=1 for cgroup v2",
	}
}

func (h host) refusedV1(name, dir string, err error) Feature {
	ft := Feature{State: Unavailable, Why: fmt.Sprintf("groups cannot be made in the %s hierarchy: %v", name, err)}
	switch {
	case errors.Is(err, os.ErrNotExist):
		ft.Remedy = fmt.Sprintf("as root: mkdir -p %q", dir)
	case errors.Is(err, os.ErrPermission):
		ft.Remedy = h.delegateV1([]string{dir})
	default: // EROFS, or a group that is not seen in the mount
		ft.Remedy = "mount the hierarchy read-write, with the group of this process in it"
	}
	return ft
}

// delegateV1 is the command with which root gives a user a group in each of
// these hierarchies, and puts the user's shell there.
func (h host) delegateV1(dirs []string) string {
	quoted := make([]string, len(dirs))
	for i, d := range dirs {
		quoted[i] = fmt.Sprintf("%q", d)
	}
	return fmt.Sprintf(`as root, with the pid of the shell that nucleus is started from for PID: for d in %s; do mkdir -p "$d/nucleus.delegated" && chown -R %d "$d/nucleus.delegated" && echo PID >"$d/nucleus.delegated/cgroup.procs"; done`,
		strings.Join(quoted, " "), h.euid)
}

// swapFeature looks for the swap limit beside the parent: the file exists in
// every group but the root one, where only children could tell.
func (h host) swapFeature(dir, file string) (ft Feature, absent bool) {
	_, err := os.Stat(filepath.Join(dir, file))
	switch {
	case err == nil:
		return Feature{State: Available}, false
	case errors.Is(err, os.ErrNotExist):
		return h.swapLacks()
	}
	return Feature{State: Unknown, Why: fmt.Sprintf("looking for the swap limit: %v", err)}, false
}

// swapLacks is what is said of a kernel that has no limit of swap. It may have no swap at
// all (CONFIG_SWAP), and so no /proc/swaps: a /proc that shows processes alone (subset=pid)
// has no file either, but no meminfo as well: there it is not taken to be absent.
func (h host) swapLacks() (ft Feature, absent bool) {
	if exists(h.procDir, "meminfo") && !exists(h.procDir, "swaps") {
		return Feature{State: Unavailable, Why: "this kernel has no swap", Remedy: "leave out swap: there is none to limit"}, true
	}
	return Feature{State: Unavailable, Why: "the kernel does not account for swap", Remedy: "boot with swapaccount=1"}, false
}

func exists(dir, file string) bool {
	_, err := os.Stat(filepath.Join(dir, file))
	return !errors.Is(err, os.ErrNotExist)
}
