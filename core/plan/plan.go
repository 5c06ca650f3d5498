// Package plan resolves a job against a host: every mount, map, limit, filter
// and rule that a run will have, as plain data. It is the single source of
// truth: enforcement, `nucleus plan`, the posture check and the tests all read
// the same value. It is pure: it makes no system call, reads no clock and asks
// nothing of the host but what it is given.
package plan

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/job"
)

// SchemaVersion is the version of the JSON form of a Plan.
const SchemaVersion = 1

// Plan is a job resolved against a host. Where the OCI runtime specification has
// a word, it is used; what it has none for stands beside it.
type Plan struct {
	Version int      `json:"version"`
	Name    string   `json:"name"`
	File    string   `json:"file,omitempty"`
	Mode    job.Mode `json:"mode"`
	// AllowDegraded and Trust are as the job has them.
	AllowDegraded []string `json:"allowDegraded,omitempty"`
	Trust         string   `json:"trust,omitempty"`

	Process   specs.Process `json:"process"`
	ExecPaths []string      `json:"execPaths,omitempty"` // candidates for execve(2), in order
	Init      bool          `json:"init"`
	Hostname  string        `json:"hostname"`
	Timeout   time.Duration `json:"timeout,omitempty"`
	Stop      job.Stop      `json:"stop"`

	Namespaces []specs.LinuxNamespace `json:"namespaces"`
	IDs        IDs                    `json:"ids"`

	Root          Root     `json:"root"`
	Mounts        []Mount  `json:"mounts"`
	MaskedPaths   []string `json:"maskedPaths"`
	ReadonlyPaths []string `json:"readonlyPaths"`
	Files         []File   `json:"files"`
	OwnFile       []string `json:"ownFile,omitempty"` // as in Inputs
	Context       *Context `json:"context,omitempty"`
	Secrets       []Secret `json:"secrets,omitempty"`

	Resources *specs.LinuxResources `json:"resources,omitempty"`
	// Devices are the block devices whose I/O is limited, as the job names them.
	Devices []Device `json:"devices,omitempty"`
	Cgroup  Cgroup   `json:"cgroup"`

	// Runtime is nil for the native one.
	Runtime *Runtime `json:"runtime,omitempty"`

	Seccomp  Seccomp  `json:"seccomp"`
	Landlock Landlock `json:"landlock"`
	Lockdown string   `json:"lockdown,omitempty"`
	Network  Network  `json:"network"`
	Hooks    []Hook   `json:"hooks,omitempty"`
	// Readiness and Health are tried in processes that init makes beside the workload.
	Readiness *Readiness `json:"readiness,omitempty"`
	Health    *Health    `json:"health,omitempty"`
	// Restart says when the workload is started again; nil for never.
	Restart *Restart `json:"restart,omitempty"`
	Notify  *Notify  `json:"notify,omitempty"`
	// SocketActivation: the workload gets the sockets that were passed to its caller.
	SocketActivation bool `json:"socketActivation,omitempty"`
	// PluginHooks are called at the boundaries of the phases.
	PluginHooks []PluginHook `json:"pluginHooks,omitempty"`
	// Annotations are what hooks plugins have written down.
	Annotations map[string]string `json:"annotations,omitempty"`

	// Degraded lists the default protections that this host cannot give.
	Degraded []Degraded `json:"degraded,omitempty"`
	// Origins tells which line of the job a part of the plan came from, by the
	// job's own path of it ("resources.memory"); what is absent is a default.
	Origins map[string]string `json:"origins,omitempty"`
}

// Probe is one try: a command, a connection or a request.
type Probe struct {
	Exec []string `json:"exec,omitempty"`
	TCP  uint16   `json:"tcp,omitempty"`
	HTTP string   `json:"http,omitempty"`
	// Addrs are where a connection or a request goes, in the sandbox: to the first that
	// can be connected.
	Addrs []netip.AddrPort `json:"addrs,omitempty"`
}

// Readiness is what must succeed before the sandbox counts as ready.
type Readiness struct {
	Probe
	Notify   bool          `json:"notify,omitempty"` // instead: the workload says so
	Interval time.Duration `json:"interval"`
	Timeout  time.Duration `json:"timeout"`
}

// Health is what is repeated for the life of the workload.
type Health struct {
	Probe
	Interval    time.Duration `json:"interval"`
	Timeout     time.Duration `json:"timeout"`
	StartPeriod time.Duration `json:"startPeriod"`
	Retries     int           `json:"retries"`
	OnFailure   string        `json:"onFailure"` // stop, or restart
}

// Restart is what follows the end of a workload.
type Restart struct {
	On       string        `json:"on"` // failure, or always
	Attempts int           `json:"attempts"`
	Backoff  time.Duration `json:"backoff"`
}

// IDs says how ids inside stand for ids outside.
type IDs struct {
	// Kind is none (the host's own ids), single (one id), range (subordinate
	// ids), keep (the caller keeps its id) or map (as the job says).
	Kind string                 `json:"kind"`
	UIDs []specs.LinuxIDMapping `json:"uids,omitempty"`
	GIDs []specs.LinuxIDMapping `json:"gids,omitempty"`
	// Helpers: the maps are written by newuidmap(1) and newgidmap(1).
	Helpers   bool   `json:"helpers,omitempty"`
	NewUIDMap string `json:"newuidmap,omitempty"`
	NewGIDMap string `json:"newgidmap,omitempty"`
	// SetGroups: supplementary groups can be set, else they stay the caller's and
	// setgroups(2) is denied for good (user_namespaces(7)).
	SetGroups bool `json:"setgroups"`
}

// Root says what the sandbox's root is made of.
type Root struct {
	Kind   string `json:"kind"` // toolchain, rootfs, overlay
	Path   string `json:"path,omitempty"`
	Digest string `json:"digest,omitempty"`
	// Size bounds everything that is written to the sandbox's own memory: /tmp,
	// /var/tmp, /run, HOME, an overlay's upper layer. Bytes.
	Size int64 `json:"size"`
}

// The kinds of a Root.
const (
	RootToolchain = "toolchain"
	RootRootfs    = "rootfs"
	RootOverlay   = "overlay"
)

// Mount is one mount of the sandbox, in the order in which they are made.
type Mount struct {
	specs.Mount
	Kind string `json:"kind"`
	// Origin is the job's path of the block that asked for it, "" for a default.
	Origin string `json:"origin,omitempty"`
	// Optional: a kernel or user namespace that does not give this file system is
	// no reason to fail; the sandbox then simply has none.
	Optional bool `json:"optional,omitempty"`
	// Create: the source directory is made on the host if it is missing.
	Create bool `json:"create,omitempty"`
	// Owner of a new file system's root, with Mode.
	UID  uint32 `json:"uid,omitempty"`
	GID  uint32 `json:"gid,omitempty"`
	Mode uint32 `json:"mode,omitempty"`
	// Inside: the program of a runtime plugin makes it, of its own kernel's.
	Inside bool `json:"inside,omitempty"`
	// Idmap: the source's owner on the host stands for the workload's user where
	// the kernel can (idmapped mount).
	Idmap bool `json:"idmap,omitempty"`
}

// The kinds of a Mount.
const (
	MountToolchain = "toolchain" // a host path, read-only
	MountLink      = "link"      // a symbolic link of the host toolchain, Source is its target
	MountDevice    = "device"    // a device node of the host
	MountFS        = "filesystem"
	MountScratch   = "scratch" // a writable directory on the sandbox's root tmpfs
	MountBind      = "bind"    // a volume or workspace
	MountContext   = "context"
	MountOverlay   = "overlay" // writable layer over a host directory
	MountTmpfs     = "tmpfs"   // asked for by the job
	MountSecrets   = "secrets" // holds the files of the secrets
	MountNotify    = "notify"  // holds the socket for notifications
)

// File is a small file that the sandbox gets of its own.
type File struct {
	Path    string `json:"path"`
	Content string `json:"content,omitempty"`
	Mode    uint32 `json:"mode"`
	// Keep: if the rootfs has the file, that one stays.
	Keep bool `json:"keep,omitempty"`
	// Network: its content is completed when the network is attached.
	Network bool `json:"network,omitempty"`
}

// Context is a directory given to the workload read-only.
type Context struct {
	Source  string   `json:"source"`
	Target  string   `json:"target"`
	Method  string   `json:"method"`
	Verify  bool     `json:"verify"`
	Exclude []string `json:"exclude,omitempty"`
}

// Secret is a value that the sandbox gets at its start, as a file or as a
// variable. The value itself is in no plan.
type Secret struct {
	Name     string `json:"name"`
	Provider string `json:"provider"`
	// Config is for the provider alone, and may itself be confidential.
	Config hcl.Body `json:"-"`
	// Eval holds what Config may refer to.
	Eval   *hcl.EvalContext `json:"-"`
	Target string           `json:"target,omitempty"`
	Mode   uint32           `json:"mode,omitempty"`
	UID    uint32           `json:"uid"`
	GID    uint32           `json:"gid"`
	Env    string           `json:"env,omitempty"`
	Origin string           `json:"origin,omitempty"`
}

// Device is a block device of the host.
type Device struct {
	Name    string `json:"name"`
	Numbers string `json:"numbers"` // "254:0"
}

// Cgroup says whether the sandbox has a control group.
type Cgroup struct {
	Wanted   bool   `json:"wanted"`
	Required bool   `json:"required"`
	Parent   string `json:"parent,omitempty"`
}

// Seccomp says which system calls the workload may make.
type Seccomp struct {
	Source  string   `json:"source"` // default, profile, off
	Profile string   `json:"profile,omitempty"`
	SHA256  string   `json:"sha256,omitempty"`
	Mode    string   `json:"mode"`             // enforce, trace
	Record  string   `json:"record,omitempty"` // where a trace's profile goes
	Allow   []string `json:"allow,omitempty"`
	Caps    []string `json:"caps,omitempty"`
	// NoSetID: a second filter refuses set-user-ID and set-group-ID bits, for the
	// files could outlive the sandbox on the host, where nosuid does not hold.
	NoSetID bool `json:"no_set_id,omitempty"`
	// PlainTCP: a filter refuses the ways to TCP that Landlock's rules do not see.
	PlainTCP bool `json:"plain_tcp,omitempty"`
}

// Network says what the sandbox's network is.
type Network struct {
	Backend string `json:"backend"`
	// All else is for a plugin.
	Plugin    bool      `json:"plugin,omitempty"`
	Publish   []Publish `json:"publish,omitempty"`
	DNS       []string  `json:"dns,omitempty"`
	Egress    Egress    `json:"egress,omitzero"`
	OnFailure string    `json:"on_failure,omitempty"` // "stop" or "closed"
	// Config is the block for the plugin and Eval what it may refer to. They are
	// decoded by the plugin's schema, and not part of the JSON form.
	Config hcl.Body         `json:"-"`
	Eval   *hcl.EvalContext `json:"-"`
}

// Publish makes a port of the sandbox reachable from the host.
type Publish struct {
	HostIP    string `json:"host_ip"`
	HostPort  uint16 `json:"host_port"`
	Container uint16 `json:"container"`
	Protocol  string `json:"protocol"`
}

// The verdicts of Egress.Default.
const (
	EgressDeny   = "deny"
	EgressPublic = "public" // public addresses only: RFC 6890's, and no cloud's metadata
)

// Egress says what may be reached: what a rule allows, and else what Default says.
type Egress struct {
	Default string       `json:"default"`
	Allow   []EgressRule `json:"allow,omitempty"`
}

// EgressRule allows names, blocks of addresses and jobs of the same stack, on every port
// if none is given.
type EgressRule struct {
	Names []string     `json:"names,omitempty"`
	CIDRs []string     `json:"cidrs,omitempty"`
	Jobs  []string     `json:"jobs,omitempty"`
	Ports []EgressPort `json:"ports,omitempty"`
	// WithoutInit are those of the jobs that have none.
	WithoutInit []string `json:"without_init,omitempty"`
}

// EgressPort is one port.
type EgressPort struct {
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
}

// The phases of hooks, in OCI's words (config.md, "POSIX-platform Hooks").
const (
	HookCreateRuntime   = "createRuntime"   // on the host: namespaces and network stand, the root is not entered yet
	HookCreateContainer = "createContainer" // the host's program in the sandbox's namespaces, at the same moment
	HookStartContainer  = "startContainer"  // the sandbox's program, restricted as the workload, before it
	HookPoststart       = "poststart"       // on the host: the workload runs
	HookPoststop        = "poststop"        // on the host: nothing of the sandbox is left
)

// Hook is a command that is run at one phase. Its program is the host's, that of
// startContainer the sandbox's.
type Hook struct {
	Phase   string        `json:"phase"`
	Command []string      `json:"command"`
	Env     []string      `json:"env,omitempty"`
	Timeout time.Duration `json:"timeout"`
	Origin  string        `json:"origin,omitempty"` // the job's path
}

// PluginHook is a hooks plugin.
type PluginHook struct {
	Plugin string `json:"plugin"`
	// Config is for the plugin alone, and may itself be confidential.
	Config hcl.Body `json:"-"`
	// Eval holds what Config may refer to.
	Eval    *hcl.EvalContext `json:"-"`
	Timeout time.Duration    `json:"timeout"` // of each call
	Origin  string           `json:"origin,omitempty"`
}

// HooksOf gives the hooks of one phase in their order.
func (p *Plan) HooksOf(phase string) []Hook {
	var out []Hook
	for _, h := range p.Hooks {
		if h.Phase == phase {
			out = append(out, h)
		}
	}
	return out
}

// Degraded is a default protection that this host cannot give.
type Degraded struct {
	Name   string `json:"name"`
	Why    string `json:"why"`
	Remedy string `json:"remedy,omitempty"`
	// Accepted: the job names it in allow_degraded.
	Accepted bool `json:"accepted"`
}

// lacks reports whether a default protection is one that this host cannot give.
func (p *Plan) lacks(protection string) bool {
	return slices.ContainsFunc(p.Degraded, func(d Degraded) bool { return d.Name == protection })
}

// Inputs is what a plan needs beside the job: facts of the host, and the few
// files that decide about names and addresses.
type Inputs struct {
	Host fact.Host
	// Accounts are those of the rootfs, or of the host for a toolchain root.
	Accounts Accounts
	// HostResolv is the host's resolv.conf, for network "host".
	HostResolv []byte
	// Term is the TERM of the caller's terminal.
	Term string
	// CgroupParent overrides where the sandbox's group is made.
	CgroupParent string
	// Devices gives the numbers ("254:0") of the block devices that the job names
	// by path; what is no block device is not in it.
	Devices map[string]string
	// Secrets: there is somebody who can give values.
	Secrets bool
	// HooksPlugins: there is somebody who can call them.
	HooksPlugins bool
	// Networks: there is somebody who can reach network plugins.
	Networks bool
	// Runtimes: there is somebody who can ask runtime plugins.
	Runtimes bool
	// Watchdog is how often the service manager wants to hear of the workload, 0 for
	// no matter.
	Watchdog time.Duration
	// Missing holds the mount points of NestedMounts that do not exist.
	Missing map[string]bool
	// OwnFile has the parts of the job by which it may write its own file, under another
	// name than the decoder knows.
	OwnFile []string
}

// Namespace reports whether the plan has a namespace of its own of that type.
func (p *Plan) Namespace(t specs.LinuxNamespaceType) bool {
	for _, n := range p.Namespaces {
		if n.Type == t {
			return true
		}
	}
	return false
}

// device gives the job's own name of a block device.
func (p *Plan) device(numbers string) string {
	for _, d := range p.Devices {
		if d.Numbers == numbers {
			return d.Name
		}
	}
	return numbers
}

// Where gives "file:line" of a part of the job, or of the block that it would
// stand in; "" for a default.
func (p *Plan) Where(path string) string {
	if w, ok := p.Origins[path]; ok {
		return w
	}
	i := strings.LastIndexByte(path, '.')
	return p.Origins[path[:max(i, 0)]]
}

// NamespaceNames lists the types of the plan's namespaces.
func (p *Plan) NamespaceNames() []string {
	out := make([]string, len(p.Namespaces))
	for i, n := range p.Namespaces {
		out[i] = string(n.Type)
	}
	return out
}
