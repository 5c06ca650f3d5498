// Package job owns the job file: it decodes the HCL that a user writes into a
// Job and says what is wrong with it, with file, line and remedy. It never
// looks at the host: what a job means on this host is package plan's part.
package job

import (
	"slices"
	"time"

	"github.com/hashicorp/hcl/v2"
)

// Job is what the user asks for. A nil pointer, an empty string or a nil slice
// means "not said"; defaults that depend on the host are filled in by the plan.
type Job struct {
	Name string
	// File is the job file as the user named it, "" for a job made from
	// command-line arguments; Dir is the absolute directory that relative
	// host paths in it start from.
	File string
	Dir  string

	Mode          Mode
	AllowDegraded []string
	Trust         string

	Command  []string
	Env      map[string]string
	Workdir  string
	User     string
	Groups   []string
	Hostname string
	TTY      bool
	Init     bool
	Timeout  time.Duration
	Stop     Stop
	Umask    *uint32

	Rootfs     *Rootfs
	Namespaces Namespaces
	Resources  Resources
	Context    *Context
	Workspace  *Workspace
	Volumes    []Volume
	Tmpfs      []Tmpfs
	Network    Network
	Secrets    []Secret
	Runtime    *Runtime
	Security   Security

	Readiness *Readiness
	Health    *Health
	Restart   *Restart
	SDNotify  bool
	// SocketActivation: the workload gets the sockets that were passed to nucleus.
	SocketActivation bool

	// DependsOn are jobs of the same file that `nucleus up` starts before this one.
	DependsOn []Dependency

	Hooks       []Hook
	PluginHooks []PluginHook

	// Ranges says where each field came from, by its HCL path:
	// "resources.memory", `volume["data"].source`, "network.publish[0].host".
	// Blocks have entries too ("resources", "hook[0]"); the job block's is
	// "job". Range and Where look up the nearest.
	Ranges map[string]hcl.Range

	eval *hcl.EvalContext
}

// EvalContext holds the variables, locals and functions that the Config bodies
// may refer to: decode them with it. It is nil if the file has no such body.
func (j *Job) EvalContext() *hcl.EvalContext { return j.eval }

// Mode decides what must hold for a run to start (agent, strict-agent, production).
type Mode string

// The modes, from the most permissive to the strictest.
const (
	ModeAgent       Mode = "agent"
	ModeStrictAgent Mode = "strict-agent"
	ModeProduction  Mode = "production"
)

// Strict reports whether a default protection that the host lacks is an error.
func (m Mode) Strict() bool { return m != ModeAgent }

// Stop says how the workload is asked to end.
type Stop struct {
	Signal string        // canonical name, "SIGTERM" by default
	Grace  time.Duration // 10 s by default
}

// Rootfs is a directory that becomes the sandbox's root.
type Rootfs struct {
	Path     string // absolute
	Digest   string // "sha256:<hex>", "" if not pinned
	Writable string // none | overlay
}

// Namespaces holds the choices about user and time namespaces.
type Namespaces struct {
	User   string // auto | host | keep-id | map
	UIDMap []IDMap
	GIDMap []IDMap
	Time   bool
}

// IDMap is one line of a user namespace's map: Size ids from Container inside
// stand for as many from Host outside.
type IDMap struct {
	Container, Host, Size uint32
}

// Resources are limits; nil or zero means "not said".
type Resources struct {
	Memory     *int64 // bytes
	Swap       *int64 // bytes beyond memory
	MemoryHigh *int64 // bytes
	CPUs       float64
	CPUWeight  uint64 // 1..10000, cgroup v2 scale
	Pids       *int64
	IO         []IO
	Rlimits    []Rlimit
	RootfsSize *int64 // bytes of writable root and overlay
}

// IO throttles one block device.
type IO struct {
	Device    string // the label: a device path or MAJ:MIN
	ReadBPS   uint64
	WriteBPS  uint64
	ReadIOPS  uint64
	WriteIOPS uint64
}

// Rlimit is one resource limit, named as in setrlimit(2) without "RLIMIT_", in lower case.
type Rlimit struct {
	Type string
	Soft uint64 // RLIM_INFINITY is math.MaxUint64, written "unlimited"
	Hard uint64
}

// Context is a directory given to the workload read-only.
type Context struct {
	Source  string // absolute
	Target  string
	Method  string // copy | bind
	Verify  bool
	Exclude []string
}

// Workspace is the working tree, at /workspace.
type Workspace struct {
	Path string // absolute
	Mode string // bind-rw | bind-ro | overlay
	Exec bool
}

// Volume is a host file or directory bound into the sandbox.
type Volume struct {
	Name     string
	Source   string // absolute
	Target   string
	ReadOnly bool
	Create   bool
	Exec     bool // as ReadOnly unless said: what can be written is not executed
}

// Tmpfs is a private file system in memory.
type Tmpfs struct {
	Target string
	Size   *int64
	Mode   uint32
	Exec   *bool // nil: as the default sandbox has it there
}

// Network names the backend ("none", "host" or a plugin) and what is asked of it.
type Network struct {
	Backend string
	Config  hcl.Body // decoded by the plugin's schema; nil if absent
	Publish []Publish
	DNS     []string
	Egress  *Egress
	// OnFailure says what becomes of the sandbox when its network ends before it:
	// "stop", or "closed" for going on without one.
	OnFailure string
}

// Plugin tells whether the backend is a plugin.
func (n Network) Plugin() bool { return n.Backend != "none" && n.Backend != "host" }

// JobsRule is the place of the first rule of egress that has jobs, -1 if none has.
func (n Network) JobsRule() int {
	if n.Egress == nil {
		return -1
	}
	return slices.IndexFunc(n.Egress.Allow, func(r EgressRule) bool { return len(r.Jobs) > 0 })
}

// Publish makes a port of the sandbox reachable from the host.
type Publish struct {
	HostIP    string
	HostPort  uint16
	Container uint16
	Protocol  string // tcp | udp
}

// Egress lists what may be reached. A nil Egress means "not said"; one without rules denies all.
type Egress struct {
	Allow []EgressRule
}

// EgressRule allows names, CIDRs and jobs of the same file on ports.
type EgressRule struct {
	Names []string // canonical
	CIDRs []string
	Jobs  []string
	Ports []string // "443/tcp"
	// WithoutInit are those of the jobs that have none. It says nothing of this job.
	WithoutInit []string `json:"-"`
}

// Secret is a value fetched by a provider of a secrets plugin.
type Secret struct {
	Name     string
	Provider string
	Config   hcl.Body
	Target   string
	Env      string
	Mode     uint32
}

// Runtime names a runtime plugin; a nil Runtime is the native one.
type Runtime struct {
	Plugin string
	Config hcl.Body
	// Checkpoint: its state can be saved and restored.
	Checkpoint bool `json:",omitempty"`
}

// Security narrows or widens the default policy.
type Security struct {
	Keep              []string // canonical "CAP_…" names
	CapabilitiesGiven bool
	Seccomp           *Seccomp
	Landlock          []LandlockRule
	LandlockTCP       *LandlockTCP // nil: TCP is as the network has it
	Lockdown          string       // "", integrity, confidentiality
	NoDefaultLandlock bool
}

// Seccomp replaces or extends the default filter.
type Seccomp struct {
	Profile string // absolute path, "" for the default
	SHA256  string
	Mode    string // enforce | trace
	Record  string // absolute path of the profile that a trace writes, "" for none
	Allow   []string
}

// LandlockRule adds access for paths inside the sandbox.
type LandlockRule struct {
	Paths  []string
	Access []string // read write create remove execute
}

// LandlockTCP confines TCP to these ports; a list that is empty grants none.
type LandlockTCP struct {
	Connect, Bind []uint16
}

// Readiness is the probe that must succeed before the sandbox counts as ready.
type Readiness struct {
	Probe
	Interval, Timeout time.Duration
}

// Health is the probe that is repeated for life.
type Health struct {
	Probe
	Interval, Timeout, StartPeriod time.Duration
	Retries                        int
	OnFailure                      string // stop | restart
}

// Probe is exactly one of its kinds.
type Probe struct {
	Exec   []string
	TCP    uint16
	HTTP   string
	Notify bool
}

// Restart is the policy after the workload has ended.
type Restart struct {
	On       string // failure | always
	Attempts int
	Backoff  time.Duration
}

// Dependency is a job of the same file, and how far it must have come.
type Dependency struct {
	Job       string
	Condition Condition
}

// Condition is what a job waits for of another.
type Condition string

// The conditions.
const (
	ConditionStarted Condition = "started" // its workload runs
	ConditionReady   Condition = "ready"   // its readiness probe has passed
	ConditionExited  Condition = "exited"  // it has ended with exit code 0
)

// Hook is an OCI hook: a host command run at one phase with the state on its stdin.
type Hook struct {
	Phase   string
	Command []string
	Env     map[string]string
	Timeout time.Duration
}

// PluginHook names a hooks plugin.
type PluginHook struct {
	Plugin  string
	Config  hcl.Body
	Timeout time.Duration // of each call
}
