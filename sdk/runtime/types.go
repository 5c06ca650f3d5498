package runtime

import "github.com/nucleus-runtime/nucleus/sdk/contract"

// Call identifies a request.
type Call = contract.Call

// Where the program finds things. It runs as the owner of all of them, in a root of
// its own that holds nothing else but /proc, /dev with the harmless devices, a /tmp, and
// /sys/fs/cgroup, which is an empty directory: there are runtimes that look at it even
// if they are to make no control group. The workload sees only what is below RootPath.
const (
	ProgramPath = "/program" // the program itself
	BundlePath  = "/bundle"  // the directory with config.json, read-only
	StatePath   = "/state"   // writable, and empty at the start
	RootPath    = "/rootfs"  // the root of the workload: the spec's root.path
)

// Words that are replaced in the arguments of a Command.
const (
	// WordID is a name for the sandbox: 32 hexadecimal digits.
	WordID = "{id}"
	// WordPIDFile, of Run and Exec: a path in StatePath where the program writes down,
	// as decimal digits, the number of the process that it has made: for Exec that
	// which the process has inside. For Run it only matters that the file is there once
	// the sandbox is.
	WordPIDFile = "{pid-file}"
	// WordPID and WordSignal, of Signal and SignalGroup: what the file of Exec said, or 1
	// for the workload, and the signal's number.
	WordPID    = "{pid}"
	WordSignal = "{signal}"
	// WordFailureFile, of Run and Restore: a path in StatePath where the program writes
	// down why it has failed itself, as text. If there is anything in it when it has ended,
	// but lines as glog writes them ("W0102 15:04:05.678901 1 file.go:2] text"), which are
	// a log, that was not the workload's end, whatever its exit status is.
	WordFailureFile = "{failure-file}"
	// WordImage, of Save and Restore: the directory of the image.
	WordImage = "{image}"
)

// ProcessPath is what Exec's program reads the process of an OCI runtime
// specification from, as JSON: its descriptor 3.
const ProcessPath = "/dev/fd/3"

// ImagePath is where Restore finds the image of a checkpoint: a directory that is
// read-only.
const ImagePath = "/image"

// Network is what the sandbox's network namespace leads to.
type Network uint8

// The networks. The zero value is one of a newer contract.
const (
	_           Network = iota
	NetworkNone         // nowhere: it has a loopback interface at most
	NetworkHost         // it is the host's
	NetworkOwn          // where a network plugin leads it
)

// PrepareRequest is a sandbox that is to be run.
type PrepareRequest struct {
	Call Call
	// Spec is config.json of the OCI runtime specification: what the workload is to
	// have. Its root, and the sources of its bind mounts, are below RootPath. It names
	// no namespace and no control group: the program is in those that are meant. It
	// holds no secret; those that are variables are added to what Prepare gives.
	Spec    []byte
	Network Network
	// Rootless: the program is root in a user namespace whose owner is no root.
	Rootless bool
	// Checkpoint: the sandbox is one whose state is to be saved and restored. What
	// cannot be is refused; without Checkpoint in the answer, the core does.
	Checkpoint bool
}

// Prepared is how it is run.
type Prepared struct {
	Program Program
	// Spec is the config.json that the program gets.
	Spec []byte
	// Run runs the bundle in the foreground: with the standard streams that it is
	// given, or on the terminal that they are if the spec's process wants one. It ends
	// with the workload's exit status, or with 128 and the number of the signal that
	// ended it. Its end is the end of everything that it has started.
	Run Command
	// Exec runs a further process in the same way, which it reads from ProcessPath.
	// Without arguments there are no further processes: exec and probes that need one
	// are refused.
	Exec Command
	// Signal sends a signal to the workload, or to a process that Exec has made.
	// Without arguments signals are sent to the program itself, which passes them on,
	// and to end it by SIGKILL is enough to end what it runs.
	Signal Command
	// SignalGroup sends a signal to the process group that a process of Exec leads, with
	// all that it has started and that has not left it. Without arguments the end of one
	// by force is that of the process alone.
	SignalGroup Command
	// OwnNetwork: the workload's sockets are the program's own, not those of the
	// network namespace. What the core would dial there (tcp and http probes) is then
	// refused, and so is a network that waits for the workload there (network.Opening).
	OwnNetwork bool
	// Checkpoint is how the sandbox's state is saved and restored. Without commands it
	// cannot be. It is only looked at if the request asks for it.
	Checkpoint Checkpoint
	// Facts are shown to the user: "version", "platform".
	Facts map[string]string
}

// Checkpoint has all of its commands, or none. Each but Restore is a call beside Run,
// as Exec's, that ends with 0 if it has done what it is for, and says on standard error
// why not. The core calls Pause, Save, and then Resume or ends the program by SIGKILL.
type Checkpoint struct {
	// Pause stops the workload, and all processes of Exec, where they are.
	Pause Command
	// Save writes the state of a sandbox that is paused to WordImage, an empty directory
	// that the program's descriptor 3 is, as files and nothing else; and leaves it paused.
	// It may be ended by SIGKILL at any time, after which Resume has the sandbox go on.
	Save Command
	// Resume lets it go on.
	Resume Command
	// Restore does what Run does, from WordImage, and goes on where Pause has stopped it.
	Restore Command
}

// Given tells whether there are commands.
func (c *Checkpoint) Given() bool { return len(c.Save.Args) > 0 }

// Program is an executable of the host.
type Program struct {
	// Path is absolute. The file and all directories above it must belong to root or
	// to the user who runs Nucleus, and nobody else may write to them.
	Path string
	// SHA256 is what the file must be, in hexadecimal digits; "" for no matter.
	SHA256 string
	// Libraries: it is dynamically linked, and its root holds the host's toolchain,
	// read-only.
	Libraries bool
	// Devices are further devices of the host that it needs: "/dev/kvm".
	Devices []string
}

// Command is a call of the program. The first argument is its name.
type Command struct {
	Args []string
	Env  []string // all that there is
}
