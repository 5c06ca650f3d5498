// Package fact holds what is known about a host as plain data, so that a plan
// can be made (and tested) for a host that is not this one. It never asks the
// kernel anything: that is package host's part.
package fact

// State is the outcome of a probe. The zero value is Unknown: "could not tell"
// never means "available".
type State string

// The three outcomes.
const (
	Unknown     State = ""
	Available   State = "available"
	Unavailable State = "unavailable"
)

// Feature is one probed ability of the host.
type Feature struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail,omitempty"` // what was found, e.g. "ABI 7"
	Why    string `json:"why,omitempty"`    // why it is unavailable or unknown
	Since  string `json:"since,omitempty"`  // first kernel that has it
	Remedy string `json:"remedy,omitempty"`
}

// IDRange is a line of /etc/subuid or /etc/subgid: Count ids from Start.
type IDRange struct {
	Start uint32 `json:"start"`
	Count uint32 `json:"count"`
}

// Host is what the plan needs to know about a host.
type Host struct {
	Kernel string `json:"kernel"` // release, as uname -r
	Arch   string `json:"arch"`   // GOARCH

	EUID     int    `json:"euid"`
	EGID     int    `json:"egid"`
	UserName string `json:"user_name"` // login name, "" if the uid has none
	// Privileged means: may make mounts, cgroups and any id map by itself
	// (effective uid 0 with CAP_SYS_ADMIN in the initial user namespace's terms).
	Privileged bool `json:"privileged"`
	// UserNS means: not in the initial user namespace (a container's, say), so
	// only ids of our own map can be given on and Privileged is never true.
	UserNS bool `json:"user_ns,omitempty"`

	SubUID []IDRange `json:"sub_uid,omitempty"`
	SubGID []IDRange `json:"sub_gid,omitempty"`
	// FreeSubID is the first range of 65,536 ids that no line of /etc/subuid or
	// /etc/subgid gives to anybody: what root maps sandboxes to by default.
	FreeSubID IDRange `json:"free_sub_id"`
	NewUIDMap string  `json:"newuidmap,omitempty"` // path, "" if absent or not usable
	NewGIDMap string  `json:"newgidmap,omitempty"`

	LandlockABI int    `json:"landlock_abi"` // 0: none
	Lockdown    string `json:"lockdown"`     // none, integrity, confidentiality, "" if the kernel does not say
	Cgroup      Cgroup `json:"cgroup"`

	// Toolchain lists the paths of the host toolchain root that exist here,
	// in mount order; only jobs without a rootfs need it.
	Toolchain []HostPath `json:"toolchain,omitempty"`
	CPUs      int        `json:"cpus"`

	Features map[string]Feature `json:"features,omitempty"` // by name, as doctor prints them
}

// HostPath is one entry of the host toolchain root.
type HostPath struct {
	Path string `json:"path"`
	// Link is the target if Path is a symbolic link (usr-merged /bin), else "".
	Link string `json:"link,omitempty"`
	// Source is what to bind if it is not Path itself: where a symbolic link
	// ends that leaves the toolchain and so cannot be recreated. Else "".
	Source string `json:"source,omitempty"`
	Dir    bool   `json:"dir"`
}

// RemedyMapRefused is for a map that newuidmap(1) or newgidmap(1) refuse.
const RemedyMapRefused = "check your lines in /etc/subuid and /etc/subgid, and that your group is the one of your line in /etc/passwd (id -g; newgrp changes it)"

// Cgroup says what the host's control groups can do for us.
type Cgroup struct {
	Layout      string             `json:"layout"` // v2, v1, hybrid, none
	Controllers map[string]Feature `json:"controllers,omitempty"`
	SwapAbsent  bool               `json:"swap_absent,omitempty"` // the kernel cannot swap at all
	Why         string             `json:"why,omitempty"`
	Remedy      string             `json:"remedy,omitempty"`
}

// SwapUnlimited reports whether, with these states of its controllers, a limit of memory
// leaves a sandbox swap that nothing limits.
func (c Cgroup) SwapUnlimited(memory, swap State) bool {
	return memory == Available && swap == Unavailable && !c.SwapAbsent
}

// Feature gives a probed feature; one that nobody probed is Unknown.
func (h Host) Feature(name string) Feature {
	if f, ok := h.Features[name]; ok {
		return f
	}
	return Feature{Name: name, Why: "not probed"}
}

// KernelAtLeast reports whether the host's kernel is major.minor or newer.
func (h Host) KernelAtLeast(major, minor int) bool {
	ma, mi := parseRelease(h.Kernel)
	return ma > major || ma == major && mi >= minor
}

func parseRelease(s string) (major, minor int) {
	n, field := 0, 0
	digits := false
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] >= '0' && s[i] <= '9' {
			n = n*10 + int(s[i]-'0')
			digits = true
			continue
		}
		if !digits {
			break
		}
		if field == 0 {
			major = n
		} else {
			return major, n
		}
		field++
		n, digits = 0, false
		if i < len(s) && s[i] != '.' {
			break
		}
	}
	return major, minor
}
