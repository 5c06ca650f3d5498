package cgroups

// Layout says how the cgroup hierarchies of a host are mounted.
type Layout string

const (
	V2     Layout = "v2"     // every controller in the one unified hierarchy
	V1     Layout = "v1"     // a hierarchy per controller (or pair of them)
	Hybrid Layout = "hybrid" // v1 controllers, beside a v2 hierarchy that has none of them
	None   Layout = "none"   // no cgroup file system is mounted here
)

// State is the answer of a probe.
type State string

const (
	Available   State = "available"
	Unavailable State = "unavailable"
	Unknown     State = "unknown" // the probe could not tell; never means available
)

// Feature is what is known of one controller.
type Feature struct {
	State  State  `json:"state"`
	Why    string `json:"why,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

// The controllers as callers and users name them, whatever the layout.
const (
	Memory  = "memory"
	Swap    = "swap" // a limit of its own; part of the memory controller
	CPU     = "cpu"
	Pids    = "pids"
	IO      = "io"
	Freezer = "freezer"
)

const anyController = "cgroup"

// Controllers lists the keys of Facts.Controllers in the order in which they
// are shown.
func Controllers() []string { return []string{Memory, Swap, CPU, Pids, IO, Freezer} }

// Facts is what the cgroups of this host can do for the calling process. It is
// plain data: nothing was changed to find it out.
type Facts struct {
	Layout      Layout             `json:"layout"`
	Controllers map[string]Feature `json:"controllers"`
	// Parents has the directory below which groups are made: by v1 controller
	// name, or under the empty key on v2.
	Parents map[string]string `json:"parents,omitempty"`
	// Own has the directory of the group that this process runs in, with the
	// same keys.
	Own map[string]string `json:"own,omitempty"`
	// Delegated: the parent was handed to us by its owner (systemd's Delegate=,
	// or by ownership), so nobody else rearranges it.
	Delegated bool `json:"delegated"`
	// Shared (v2): a service manager also writes to the parent. Groups are
	// then made with an inner leaf, which pins the controllers: the kernel
	// refuses to take a controller away from a parent whose child passes it on.
	Shared bool `json:"shared,omitempty"`
	// Enable (v2) lists the directories, top first, whose cgroup.subtree_control
	// may be extended so that a controller reaches the groups.
	Enable []string `json:"enable,omitempty"`
	// Leaf (v2) is the group in which this process has to sit so that the
	// parent is free of processes; empty if it may stay where it is.
	Leaf string `json:"leaf,omitempty"`

	// SwapAbsent: this kernel cannot swap at all, so that a missing limit of swap is
	// no loss.
	SwapAbsent bool `json:"swap_absent,omitempty"`

	Why    string `json:"why,omitempty"` // why no group can be made at all
	Remedy string `json:"remedy,omitempty"`

	enabled map[string]bool // v2: controllers that the parent passes on already
}

// Usable reports whether a group can be made at all.
func (f Facts) Usable() bool { return f.Why == "" && len(f.Parents) > 0 }

// Unsupported returns nil if the named controller can be used, and otherwise
// the error that says why not.
func (f Facts) Unsupported(controller string) error {
	if !f.Usable() {
		return &UnsupportedError{Controller: anyController, Why: f.Why, Remedy: f.Remedy}
	}
	c, ok := f.Controllers[controller]
	switch {
	case !ok:
		return &UnsupportedError{Controller: controller, Why: "Nucleus does not use this controller"}
	case c.State == Available:
		return nil
	}
	return &UnsupportedError{Controller: controller, Why: c.Why, Remedy: c.Remedy}
}

func (f *Facts) unusable(why, remedy string) {
	f.Why, f.Remedy = why, remedy
	for _, c := range Controllers() {
		f.Controllers[c] = Feature{State: Unavailable, Why: why, Remedy: remedy}
	}
}
