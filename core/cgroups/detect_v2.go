package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// leafName is the group that holds the supervisor when the delegated group is
// the one it was started in: a v2 group with controllers for its children may
// not have processes of its own.
const leafName = "nucleus-supervisor"

const delegateRemedy = "systemd-run --user --scope -p Delegate=yes nucleus run ..."

// place is a candidate for the parent of our groups, on v2.
type place struct {
	dir       string
	leaf      string // this process has to move there first
	delegated bool
}

// detectV2 chooses the parent by this rule, first match wins:
//
//  1. the operator's choice;
//  2. the root of the hierarchy, if we run in it: it may have processes;
//  3. inside the delegation that we run in, the nearest group above ours that
//     is free of processes ("beside ours");
//  4. our own group, if we are alone in it: we move to a leaf of it;
//  5. outside a delegation, the nearest writable group above ours that is free
//     of processes.
//
// A delegation is the nearest group, ours or above it, that systemd marked as
// such; for an ordinary user, failing that, all that the user may write to.
func (h host) detectV2(f *Facts, own map[string]string, m mount, parent string) {
	dir, err := m.dir(own[unified])
	if err != nil {
		f.unusable(err.Error(), "start nucleus in the cgroup namespace in which the hierarchy was mounted")
		return
	}
	if strings.HasSuffix(own[unified], " (deleted)") {
		f.unusable("the group that this process runs in was removed", "start nucleus from a new shell or service")
		return
	}
	f.Own[unified] = dir
	p, why := h.placeV2(m, dir, parent)
	if why != nil {
		f.unusable(why.Why, why.Remedy)
		return
	}
	f.Parents[unified] = p.dir
	f.Leaf = p.leaf
	f.Delegated = p.delegated
	_, err = os.Stat(h.systemdDir)
	f.Shared = err == nil && parent == "" && !h.delegate(p.dir)
	h.controllersV2(f, m.point)
}

func (h host) placeV2(m mount, own, parent string) (place, *UnsupportedError) {
	if parent != "" {
		dir, err := m.dir(parent)
		if err == nil {
			err = h.holds(dir, m.point)
		}
		if err != nil {
			return place{}, &UnsupportedError{
				Why:    fmt.Sprintf("cgroup_parent %q cannot be used: %v", parent, err),
				Remedy: fmt.Sprintf("choose a group that exists, is free of processes and writable by uid %d", h.euid),
			}
		}
		return place{dir: dir, delegated: true}, nil
	}
	if own == m.point && isRootGroup(own) {
		if err := h.holds(own, m.point); err != nil {
			return place{}, h.refusedV2(own, err)
		}
		return place{dir: own}, nil
	}
	line := ancestors(m.point, own)
	inside, marked := h.delegation(line)
	for _, dir := range line[min(1, inside):inside] {
		if h.holds(dir, m.point) == nil {
			p := place{dir: dir, delegated: true}
			if filepath.Base(own) == leafName && filepath.Dir(own) == dir {
				p.leaf = own
			}
			return p, nil
		}
	}
	refused := h.alone(own)
	if refused == nil {
		return place{dir: own, leaf: filepath.Join(own, leafName), delegated: marked || h.euid != 0}, nil
	}
	for _, dir := range line[1:] {
		if h.holds(dir, m.point) == nil {
			return place{dir: dir}, nil
		}
	}
	return place{}, h.refusedV2(own, refused)
}

// ancestors lists dir and the groups above it, nearest first, up to root; only
// dir itself if it is not below root.
func ancestors(root, dir string) []string {
	line := []string{dir}
	for strings.HasPrefix(dir, root+"/") {
		dir = filepath.Dir(dir)
		line = append(line, dir)
	}
	return line
}

// delegation tells how many of the groups, ours first, are delegated to us.
func (h host) delegation(line []string) (inside int, marked bool) {
	for i, dir := range line {
		if h.delegate(dir) {
			return i + 1, true
		}
	}
	if h.euid == 0 {
		return 0, false
	}
	for inside < len(line) && h.canHold(line[inside]) == nil {
		inside++
	}
	return inside, false
}

var errPopulated = errors.New("it has processes of its own")

// holds reports whether dir can be the parent of our groups as it stands: we
// may make groups, move processes in from below it (the kernel wants write
// access to cgroup.procs of the common ancestor), and it is free of processes.
func (h host) holds(dir, root string) error {
	for _, name := range []string{"", "cgroup.procs"} {
		if err := h.canHold(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if dir == root && isRootGroup(dir) {
		return nil
	}
	if kind, err := os.ReadFile(filepath.Join(dir, "cgroup.type")); err == nil && string(kind) != "domain\n" {
		return fmt.Errorf("it is a %q group", strings.TrimSpace(string(kind)))
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	if len(procs) > 0 {
		return errPopulated
	}
	return nil
}

// alone reports whether we can turn our own group into a parent by moving
// ourselves, and nobody else, to a leaf of it.
func (h host) alone(dir string) error {
	if isSupervisors(dir) {
		return errPopulated // or about to be: it is for others as well
	}
	for _, name := range []string{"", "cgroup.procs", subtreeControl} {
		if err := h.canHold(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if kind, err := os.ReadFile(filepath.Join(dir, "cgroup.type")); err == nil && string(kind) != "domain\n" {
		return fmt.Errorf("it is a %q group", strings.TrimSpace(string(kind)))
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	if pids := strings.Fields(string(procs)); len(pids) != 1 || pids[0] != strconv.Itoa(h.pid) {
		return errPopulated
	}
	return nil
}

// isRootGroup tells the root of the whole hierarchy from the root of a cgroup
// namespace: only the former has no type, and only it may have both processes
// and controllers for its children.
func isRootGroup(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "cgroup.type"))
	return errors.Is(err, os.ErrNotExist)
}

func (h host) refusedV2(own string, err error) *UnsupportedError {
	_, noSystemd := os.Stat(h.systemdDir)
	e := &UnsupportedError{Controller: anyController}
	switch {
	case errors.Is(err, errPopulated):
		e.Why = fmt.Sprintf("the group that this process runs in (%q) has other processes, and no group above it is ours", own)
		e.Remedy = "start nucleus itself, not a shell, in the delegated group"
	case errors.Is(err, os.ErrPermission):
		e.Why = fmt.Sprintf("no group was delegated to uid %d: %q is not writable", h.euid, own)
		e.Remedy = "as root: make a group, chown it with its cgroup.procs and cgroup.subtree_control to this user, and start nucleus in it"
	default:
		e.Why = fmt.Sprintf("no group can be made around %q: %v", own, err)
		e.Remedy = "mount cgroup2 read-write"
		return e
	}
	if noSystemd == nil {
		e.Remedy = delegateRemedy
		if h.euid == 0 {
			e.Remedy = strings.Replace(delegateRemedy, "--user ", "", 1)
		}
	}
	return e
}

// controllersV2 finds which controllers reach, or can be made to reach, the
// groups below the parent.
func (h host) controllersV2(f *Facts, root string) {
	parent := f.Parents[unified]
	// The chain of groups in which we may pass controllers on, from the parent
	// upwards, never beyond the mark of a delegation.
	for _, dir := range ancestors(root, parent) {
		if h.canHold(filepath.Join(dir, subtreeControl)) != nil {
			break
		}
		f.Enable = append(f.Enable, dir)
		if h.delegate(dir) {
			break
		}
	}
	slices.Reverse(f.Enable)
	top := parent
	if len(f.Enable) > 0 {
		top = f.Enable[0]
	}
	offered := words(filepath.Join(top, "cgroup.controllers"))
	if len(f.Enable) == 0 {
		offered = words(filepath.Join(parent, subtreeControl))
	}
	f.enabled = make(map[string]bool)
	for _, name := range words(filepath.Join(parent, subtreeControl)) {
		f.enabled[name] = true
	}
	for _, c := range []string{Memory, CPU, Pids, IO} {
		if f.enabled[c] || slices.Contains(offered, c) {
			f.Controllers[c] = Feature{State: Available}
			continue
		}
		f.Controllers[c] = h.withheld(c, top, root)
	}
	f.Controllers[Swap] = h.swapV2(f, root, parent)
	f.Controllers[Freezer] = Feature{State: Available}
	if own := f.Own[unified]; !isRootGroup(own) {
		if _, err := os.Stat(filepath.Join(own, "cgroup.freeze")); err != nil {
			f.Controllers[Freezer] = Feature{State: Unavailable, Why: "this kernel cannot freeze a group", Remedy: "use Linux 5.2 or later"}
		}
	}
}

func (h host) withheld(controller, top, root string) Feature {
	ft := Feature{State: Unavailable, Why: fmt.Sprintf("%s is not passed on to %q", controller, top)}
	_, err := os.Stat(h.systemdDir)
	switch {
	case isRootGroup(root) && !slices.Contains(words(filepath.Join(root, "cgroup.controllers")), controller):
		ft.Why = fmt.Sprintf("the v2 hierarchy does not have %s", controller)
		ft.Remedy = "boot without cgroup_disable= and cgroup_no_v1= for it, with a kernel that has it"
	case err == nil && h.euid != 0:
		ft.Remedy = fmt.Sprintf("as root: systemctl edit user@.service, add [Service] Delegate=cpu cpuset io memory pids, then systemctl restart user@%d.service", h.euid)
	default:
		ft.Remedy = fmt.Sprintf("as root: echo +%s > cgroup.subtree_control in each group above %q", controller, top)
	}
	return ft
}

// swapV2 looks for the limit of swap in any group that has limits of memory: every one
// of a kernel has it, or none. The parent may have none itself, and no child yet.
func (h host) swapV2(f *Facts, root, parent string) Feature {
	if f.Controllers[Memory].State != Available {
		return f.Controllers[Memory]
	}
	for _, dir := range ancestors(root, parent) {
		if ft, ok := h.swapIn(f, dir); ok {
			return ft
		}
		entries, err := os.ReadDir(dir)
		if err != nil && dir == parent {
			return Feature{State: Unknown, Why: err.Error()}
		}
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			if ft, ok := h.swapIn(f, filepath.Join(dir, e.Name())); ok {
				return ft
			}
		}
	}
	ft, absent := h.swapAsBooted()
	f.SwapAbsent = absent
	return ft
}

// swapAsBooted is for a host where no group tells: what its kernel does by its version and
// command line. It is not seen to do so, but a limit that is set is read back.
func (h host) swapAsBooted() (ft Feature, absent bool) {
	lacks, absent := h.swapLacks()
	if absent {
		return lacks, true
	}
	unknown := Feature{State: Unknown, Why: "no group here has a memory controller to look at; the start tells"}
	release, err := os.ReadFile(filepath.Join(h.procDir, "sys/kernel/osrelease"))
	if err != nil {
		return unknown, false
	}
	kernel := fact.Host{Kernel: string(release)}
	switch {
	case kernel.KernelAtLeast(6, 1): // b25806dcd3d5: always
		return Feature{State: Available}, false
	case !kernel.KernelAtLeast(5, 8): // 2d1c498072de: before, by CONFIG_MEMCG_SWAP_ENABLED
		return unknown, false
	}
	line, err := os.ReadFile(filepath.Join(h.procDir, "cmdline"))
	if err != nil {
		return unknown, false
	}
	if bootedWithout(string(line)) {
		return lacks, false
	}
	return Feature{State: Available}, false
}

// bootedWithout reports whether a kernel's command line switches the account of swap off.
// The last word counts, and what follows -- is init's.
func bootedWithout(line string) (off bool) {
	for _, word := range strings.Fields(line) {
		switch strings.ReplaceAll(word, `"`, "") {
		case "swapaccount=0":
			off = true
		case "swapaccount=1":
			off = false
		case "--":
			return off
		}
	}
	return off
}

// swapIn looks in one group. Afterwards, its limit of memory is still to be there: a
// group that was removed meanwhile tells nothing.
func (h host) swapIn(f *Facts, dir string) (Feature, bool) {
	limit := filepath.Join(dir, "memory.max")
	if _, err := os.Stat(limit); err != nil {
		return Feature{}, false
	}
	ft, absent := h.swapFeature(dir, "memory.swap.max")
	if _, err := os.Stat(limit); err != nil {
		return Feature{}, false
	}
	f.SwapAbsent = absent
	return ft, true
}

// words reads a file of space-separated words; a file that cannot be read has
// none, which leads to "not available".
func words(file string) []string {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}
