// Package manifest is what a plugin says about itself before it is configured. It
// is plain Go, so that a host can read it without speaking gRPC.
package manifest

// Service is something that a plugin can offer.
type Service string

// The services.
const (
	Network Service = "network"
	Runtime Service = "runtime"
	Secrets Service = "secrets"
	Hooks   Service = "hooks"
)

// FeatureClose is that of a plugin which has something to undo when its host ends it,
// and is told by Shutdown.
const FeatureClose = "base.close"

// Version is that of a service's contract, "1.0". A higher minor version only adds.
type Version struct {
	Service Service `json:"service"`
	Version string  `json:"version"`
}

// Lifetime says how long one process of a plugin may be used.
type Lifetime uint8

// The lifetimes. The zero value is the safe one.
const (
	OneShot  Lifetime = iota // for one run
	WarmOK                   // may be kept for later runs, whose host is another process
	Resident                 // owns live state, and must live as long as the sandbox
)

var lifetimes = [...]string{"one-shot", "warm-ok", "resident"}

func (l Lifetime) String() string {
	if int(l) < len(lifetimes) {
		return lifetimes[l]
	}
	return "unknown"
}

// Needs is what a plugin needs beyond the nothing that it gets. The host gives it
// only what its operator allows.
type Needs struct {
	Capabilities  []string `json:"capabilities,omitempty"` // "CAP_NET_ADMIN"
	HostNetwork   bool     `json:"host_network,omitempty"`
	WritablePaths []string `json:"writable_paths,omitempty"` // beside its state and run directories
	Root          bool     `json:"root,omitempty"`           // uid 0
}

// Info is a plugin's manifest.
type Info struct {
	Name        string    `json:"name"`
	Version     string    `json:"version"`
	SDKVersion  string    `json:"sdk_version"`
	Description string    `json:"description,omitempty"`
	DocsURL     string    `json:"docs_url,omitempty"`
	Services    []Version `json:"services"`
	Features    []string  `json:"features,omitempty"` // "secrets.renew"
	Needs       Needs     `json:"needs"`
	Lifetime    Lifetime  `json:"lifetime"`
	// HandleVersions are those of handles that it understands.
	HandleVersions []uint32 `json:"handle_versions,omitempty"`
}

// State is a plugin's health.
type State uint8

// The states.
const (
	OK State = iota
	Degraded
	Failed
)

// Health is how a plugin fares.
type Health struct {
	State       State
	Message     string
	LiveObjects uint32 // leases, connections: what a shutdown would lose
}
