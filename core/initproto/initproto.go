// Package initproto owns the messages between a supervisor and the init of its
// sandbox. They are plain data with a fixed binary form: init decides nothing,
// it carries out what was compiled outside. The package never interprets a
// message and makes no system call.
package initproto

import "errors"

// Version is the first byte of every message. Supervisor and init are installed
// together; a difference means a mixed installation and is fatal.
const Version = 1

// Kind tells what a message is.
type Kind uint8

// Messages to init.
const (
	// KindSetup carries a Setup and the descriptors that it names by index.
	KindSetup Kind = iota + 1
	// KindAttached says that init is in its cgroup: it may enter a cgroup
	// namespace of its own, whose root is then that group (W8).
	KindAttached
	// KindGo says that network and hooks are done: stage 2 may be made.
	KindGo
	// KindSignal asks init to send Signal.Number to the workload.
	KindSignal
	// KindHooks carries Hooks to run: those of createContainer in answer to
	// KindBuilt, with the descriptor of their output and one of a program for each;
	// those of startContainer after KindStage2, with that of their output.
	KindHooks
	// KindNarrow carries a Narrow, at most once, before KindGo.
	KindNarrow
	// KindOpen carries an Open. It and KindConnected come while init is at OpConnect.
	KindOpen
	// KindConnected carries a Connected: the network is attached.
	KindConnected
	// KindSpawn carries a Spawn, the reading end of its gate, and what the process gets
	// as 0, 1 and 2 unless it has a terminal of its own, or only dials. It is obeyed
	// once the workload's stage 2 was made.
	KindSpawn
	// KindSecrets carries the descriptors that Setup.Late counts. It is the first message
	// after KindSetup.
	KindSecrets
	// KindSocket carries a Socket. It is obeyed as KindSpawn is.
	KindSocket
	// KindLend carries a Lend, with a descriptor of what it names, in the place of
	// KindSetup: the process answers with KindLent, and ends.
	KindLend
)

// Messages from init.
const (
	// KindFSDone carries an FSDone: the file system stands, the old root is gone. With
	// it come the descriptor of OpSocket, and then the upper and the lower directory of
	// OpOverlay.
	KindFSDone Kind = iota + 64
	// KindStage2 carries the pidfd of stage 2, which is on its way to the start
	// gate, then the memory that it notes its progress in if init itself is
	// stage 2 (Setup.Direct), then the master of its terminal if it has one.
	KindStage2
	// KindExited carries an Exited.
	KindExited
	// KindFailed carries a Failed; init ends after it.
	KindFailed
	// KindBuilt says that the new root is built and that init waits for KindHooks
	// before it enters it (Setup.Hold).
	KindBuilt
	// KindHooksDone says that the startContainer hooks have run.
	KindHooksDone
	// KindOpened answers KindOpen with an Opened and the descriptors that it names.
	KindOpened
	// KindSpawned answers KindSpawn with a Spawned, the pidfd of a stage 2 that waits at
	// its gate, and the master of its terminal if it has one.
	KindSpawned
	// KindEnded carries an Ended.
	KindEnded
	// KindSocketMade answers KindSocket with a SocketMade, and the socket if there is one.
	KindSocketMade
	// KindLent carries the descriptor of a mount that is in no mount namespace.
	KindLent
)

// Setup is all that init needs to know.
type Setup struct {
	Hostname string
	Ops      []Op
	Landlock Landlock
	Process  Process
	// InitFilter is the BPF program that init puts on itself before the
	// workload starts, empty for none.
	InitFilter []byte
	// CgroupNS asks for a cgroup namespace once attached.
	CgroupNS bool
	// SetIDs: the id maps were written from outside after the clone, so init has
	// its capabilities but no mapped id yet; it must set itself to 0:0 first.
	SetIDs bool
	// UserNS: init is in a user namespace of the sandbox's own, whose limits it sets.
	UserNS bool
	// Direct: init itself becomes the workload, as PID 1, instead of making a
	// child for it.
	Direct bool
	// Hold: init says KindBuilt before it enters the new root, and waits.
	Hold bool
	// InitCaps is what init keeps of its capabilities once the file system stands.
	InitCaps uint64
	// Files is RLIMIT_NOFILE as init is to set it: it was started with less.
	Files Rlimit
	// CPUs is where init and all that it makes run from its first process on, as
	// sched_setaffinity(2) takes it, empty for where it runs already.
	CPUs []byte
	// Late is how many descriptors come after those of this message, with
	// KindSecrets: what is fetched while the file system is built. There is no such
	// message for none.
	Late uint32
}

// MaxLate bounds Setup.Late by what fits a message.
const MaxLate = 252

// Code says what an Op does.
type Code uint8

// The operations of the file system phase. Targets are paths below the new
// root and are resolved there without following any symbolic link.
const (
	OpRoot     Code = iota + 1 // mount FSType with Data as the new root
	OpMkdir                    // directory Target with Mode and owner
	OpFile                     // regular file Target with Mode, owner and content Data
	OpSymlink                  // symbolic link Target -> Source
	OpBind                     // clone Source (see Flags) and attach it at Target
	OpMount                    // new file system FSType with Data at Target
	OpAttr                     // change mount attributes of the mount at Target
	OpMask                     // make Target unreadable: a file by /dev/null, a directory by an empty read-only tmpfs
	OpReadOnly                 // Target becomes a read-only mount of itself, recursively
	OpUnpack                   // read a packed tree from descriptor FD into directory Target
	OpDetach                   // detach the staging mount at Target
	OpOwner                    // change owner of Target
	OpOverlay                  // overlay at Target ("/" replaces the root): Data is lower, upper, work below the root, joined by NUL
	OpRemove                   // unlink a file, or remove an empty directory (FlagDir) that the builder made
	OpSecret                   // regular file Target with Mode and owner; its content is all of descriptor FD, which is then closed
	OpSocket                   // datagram socket of AF_UNIX at Target with Mode and owner, at most one; KindFSDone has its descriptor
	OpConnect                  // have the network's backend connect the network namespace: KindOpen, KindConnected
	OpEnclose                  // mount FSType with Data as the new root; the one so far lies at Target
)

// Flags of an Op.
const (
	FlagOptional  uint32 = 1 << iota // a Source or Target that does not exist is no error
	FlagFile                         // Source is a file: the mount point is one as well
	FlagInRoot                       // Source is a path below the new root
	FlagDetached                     // FD is a detached mount: attach it as it is
	FlagVerify                       // Source must be the inode that FD refers to
	FlagRecursive                    // clone or change mounts below as well
	FlagExists                       // the mount point exists, make nothing
	FlagFollow                       // follow a symbolic link at the end of Source
	FlagReplace                      // a file that exists makes way
	FlagDir                          // Target is a directory
	FlagUserXattr                    // overlay keeps its marks in user.* attributes (user namespaces)
	FlagNetwork                      // a file whose content is replaced at OpConnect; Source is its path in the sandbox
)

// Op is one operation. Which fields it uses depends on its Code.
type Op struct {
	Code   Code
	Flags  uint32
	FD     int32 // index into the descriptors of the message, -1 for none
	Mode   uint32
	UID    uint32
	GID    uint32
	Set    uint64 // MOUNT_ATTR_* to set
	Clear  uint64 // MOUNT_ATTR_* to clear
	Target string
	Source string
	FSType string
	Data   string // mount options as "k=v" joined by NUL, or content
}

// Open asks for what the network's backend wants of the network namespace: tap
// devices first, then the setups, then the rest.
type Open struct {
	Openings []Opening
	Setups   []NetSetup
}

// The kinds of an Opening, with the numbers of sdk/network.
const (
	OpenTap uint8 = iota + 1
	OpenRoute
	OpenNetfilter
	OpenListenTCP
	OpenListenUDP
	OpenTCP
	OpenUDP
	OpenNetNS
	OpenRaw
)

// Opening is a descriptor, or Count of them.
type Opening struct {
	Name        string
	Kind        uint8
	IP          []byte // of a socket: 4 or 16 bytes
	Port        uint32
	IfName      string
	Index       uint32
	Count       uint32
	Transparent bool
	Optional    bool
}

// NetSetup is a batch of netlink messages.
type NetSetup struct {
	Name     string
	Protocol uint32
	Messages []byte
	Optional bool
	After    string // the setup without which it is missing, too; "" for none
}

// Opened names what was opened, a name for each descriptor, and what was optional
// and could not be.
type Opened struct {
	Names   []string
	Missing []string
	Reasons []string // of the missing
}

// Connected is what the sandbox is to know of its network.
type Connected struct{ Files []Content }

// Content is what a file with FlagNetwork holds.
type Content struct{ Path, Data string }

// Landlock is a ruleset in the kernel's own numbers; zero ABI means none.
type Landlock struct {
	ABI       int32
	HandledFS uint64
	HandledNet,
	Scoped uint64
	Rules []PathRule
	Ports []PortRule
}

// PortRule grants Access on one TCP port.
type PortRule struct {
	Port, Access uint64
}

// PathRule grants Access beneath the paths that exist.
type PathRule struct {
	Path     string
	Access   uint64
	Optional bool
}

// Process is what stage 2 becomes.
type Process struct {
	Paths      []string // candidates for execve, in order
	Args       []string
	Env        []string
	Cwd        string
	UID        uint32
	GID        uint32
	Groups     []uint32
	SetGroups  bool // setgroups(2) is permitted in this user namespace
	Umask      uint32
	Caps       Caps
	Rlimits    []Rlimit
	TTY        bool
	NewKeyring bool
	Filter     []byte // BPF program, empty for none
	// FilterFlags are seccomp(2)'s SECCOMP_FILTER_FLAG_* for it.
	FilterFlags uint32
	// Narrow are BPF programs that go on before Filter, at most MaxNarrow.
	Narrow [][]byte
	// Gate is the index of the descriptor that stage 2 reads its start byte from.
	Gate int32
	// SecretEnv are further variables, whose values are in no message.
	SecretEnv []SecretVar
	// Listen are the indices of the descriptors that it gets as 3 and up, and
	// ListenNames what is said of them in LISTEN_FDNAMES (sd_listen_fds(3)).
	Listen      []int32
	ListenNames string
}

// Narrow replaces what a Setup says of the process and of init.
type Narrow struct {
	Env      []string
	Caps     Caps
	Rlimits  []Rlimit
	InitCaps uint64
}

// SecretVar is a variable whose value is all of descriptor FD.
type SecretVar struct {
	Name string
	FD   int32 // index into the descriptors of the message
}

// MaxSecret is the most that a descriptor of a secret holds.
const MaxSecret = 1 << 20

// Caps are the five sets, a bit for each capability.
type Caps struct {
	Bounding, Effective, Permitted, Inheritable, Ambient uint64
}

// Rlimit is one resource limit by its number.
type Rlimit struct {
	Resource   uint32
	Soft, Hard uint64
}

// Exited tells how the workload ended.
type Exited struct {
	// Status is the wait status of stage 2.
	Status uint32
	// Step and Errno are set if stage 2 ended before it became the workload.
	Step  Step
	Errno uint32
	// ExecIndex is the candidate that execve failed for last.
	ExecIndex uint32
}

// FSDone tells what arrived in the sandbox.
type FSDone struct {
	// Digests are those of the unpacked trees, in the order of their operations.
	Digests []string
}

// The descriptors of an init that tells what an overlay has changed, beside 1, where it does
// so, and 2, for why it cannot: its arguments are ChangesWord, where the overlay is,
// ChangesContent or "", a moment in nanoseconds, and paths of ours (those that nothing is told
// of end in a slash).
const (
	ChangesUpper = 3
	ChangesLower = 4

	ChangesWord    = "changes"
	ChangesContent = "content"
)

// Failed tells what init could not do.
type Failed struct {
	// Op is the index of the failed operation, -1 if it was none.
	Op int32
	// Rule is the index of the Landlock path rule that failed, -1 if it was none.
	Rule int32
	// Hook is the index of the hook that failed, -1 if it was none.
	Hook  int32
	Errno uint32
	What  string
}

// Hooks are commands to run one after the other.
type Hooks struct {
	State []byte // what each reads
	Hooks []Hook
	// Filter is theirs instead of the workload's, if there is one, and FilterFlags its flags.
	Filter      []byte
	FilterFlags uint32
}

// Hook is one of them.
type Hook struct {
	Args    []string
	Env     []string
	Timeout uint32 // milliseconds
}

// Lend asks for a clone of the mount of a directory of the host's: only who is in a mount
// namespace, with rights in it, can make one.
type Lend struct {
	Source string
	Set    uint64 // attributes of the clone
}

// Signal is a request to signal the workload.
type Signal struct {
	Number uint32
	// All asks for every process of the sandbox instead of the workload alone.
	All bool
	// Spawned is the Spawn.ID of the process that it is for, 0 for the workload. A
	// SIGKILL reaches the process group that it leads as well.
	Spawned uint32
}

// Spawn asks for one more process of the sandbox. What it may do is the workload's:
// there is no way to say anything else.
type Spawn struct {
	ID     uint32 // the supervisor's, not 0
	Paths  []string
	Args   []string
	Env    []string
	Cwd    string
	UID    uint32
	GID    uint32
	Groups []uint32
	TTY    bool
	// Pass: one more descriptor comes after those of its streams, which the process
	// gets as 3.
	Pass bool
	// Remove is a file of init's root that goes once the process has ended, "" for none.
	Remove string
	// Dial, if it has addresses, is what the process does instead of executing a
	// program.
	Dial Dial
}

// Dial asks a process for a connection, and for the beginning of what comes back.
type Dial struct {
	// Addrs are tried in their order, until one can be connected.
	Addrs []Addr
	// Request is written to it, Answer bytes are read then; of none of both, to have
	// connected is all.
	Request []byte
	Answer  uint32 // MaxAnswer at most
}

// Addr is an address of TCP.
type Addr struct {
	IP   []byte // 4 or 16 bytes
	Port uint32
}

// Socket asks for a socket of the network namespace, which is not connected and does not
// block.
type Socket struct {
	ID       uint32
	V6       bool
	Datagram bool // UDP, and not TCP
}

// SocketMade tells of one.
type SocketMade struct {
	ID    uint32
	Errno uint32 // why there is none; 0 if there is
}

// MaxNarrow is how many of Process.Narrow there may be.
const MaxNarrow = 2

// MaxAnswer is the most that is read of an answer: it comes from whom nobody trusts,
// and its first bytes tell what it is.
const MaxAnswer = 16

// Spawned tells that stage 2 was made, or why not.
type Spawned struct {
	ID    uint32
	Errno uint32
	What  string // "" if it was made
}

// Ended tells the end of a process that was spawned.
type Ended struct {
	ID uint32
	// Exited has the step that a Dial came to, and the index of its address as
	// ExecIndex.
	Exited Exited
	Answer []byte // to a Dial, MaxAnswer bytes at most
}

// Step names where stage 2 was when it failed.
type Step uint32

// The steps of stage 2, in order.
const (
	StepNone Step = iota
	StepSession
	StepTerminal
	StepRlimit
	StepKeyring
	StepBounding
	StepGroups
	StepKeepCaps
	StepGID
	StepUID
	StepCaps
	StepAmbient
	StepClose
	StepCwd
	StepSeccomp
	StepGate
	StepExec
	// Those of a Dial come instead of StepExec.
	StepSocket
	StepConnect
	StepSend
	StepReceive
	StepAnswered
)

var stepNames = [...]string{
	StepNone: "nothing", StepSession: "new session", StepTerminal: "controlling terminal", StepRlimit: "resource limits",
	StepKeyring: "session keyring", StepBounding: "capability bounding set", StepGroups: "supplementary groups",
	StepKeepCaps: "keeping capabilities over the identity switch", StepGID: "group id", StepUID: "user id", StepCaps: "capability sets",
	StepAmbient: "ambient capabilities", StepCwd: "working directory", StepClose: "closing descriptors",
	StepSeccomp: "seccomp filter", StepGate: "start gate", StepExec: "exec",
	StepSocket: "socket", StepConnect: "connect", StepSend: "request", StepReceive: "answer", StepAnswered: "end of the answer",
}

func (s Step) String() string {
	if int(s) < len(stepNames) {
		return stepNames[s]
	}
	return "unknown step"
}

// ErrMessage is returned for bytes that are not a message of this version.
var ErrMessage = errors.New("malformed message")
