package supervisor

import (
	"time"

	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/state"
)

// RecordVersion is the version of Record.
const RecordVersion = 1

// RecordName is the file of a sandbox's directory that holds its Record.
const RecordName = "state.json"

// PlanName is the file of a sandbox's directory that holds what may be written down of its
// plan (plan.Plan.Bare).
const PlanName = "plan.json"

// Record is what is known of a sandbox. It has no value of an environment, and no
// secret; nor has the file of it a command, whose arguments could be one, nor what the
// sandbox says of itself.
type Record struct {
	Version    int              `json:"version"`
	ID         string           `json:"id"`
	Name       string           `json:"name"`
	Status     lifecycle.Status `json:"status"`
	Ready      bool             `json:"ready"`                 // it runs, and its readiness probe has passed if it has one
	Health     string           `json:"health,omitempty"`      // starting, healthy or unhealthy, with a health probe
	StatusText string           `json:"status_text,omitempty"` // what it says of itself (STATUS= of sd_notify(3)); of a live one
	Pid        int              `json:"pid,omitempty"`         // the workload's, as the host sees it
	InitPid    int              `json:"init_pid,omitempty"`    // PID 1 of the sandbox, as the host sees it
	Supervisor int              `json:"supervisor,omitempty"`  // its pid
	// SupervisorCgroup has the groups, by v1 controller, "" on v2, in which it is apart from
	// whoever started the sandbox; SupervisorShares is why there are none. Of a detached one.
	SupervisorCgroup map[string]string `json:"supervisor_cgroup,omitempty"`
	SupervisorShares string            `json:"supervisor_shares,omitempty"`

	Detached bool              `json:"detached"`
	Job      string            `json:"job"`             // its name
	File     string            `json:"file,omitempty"`  // where the job was read
	Stack    string            `json:"stack,omitempty"` // which it is of, if nucleus up has made it
	Mode     string            `json:"mode"`
	Command  []string          `json:"command,omitempty"` // of a live one; the file has none
	Terminal bool              `json:"terminal"`
	Root     string            `json:"root"` // toolchain, overlay or rootfs
	Rootfs   string            `json:"rootfs,omitempty"`
	Network  string            `json:"network"`
	Cgroup   map[string]string `json:"cgroup,omitempty"` // directory by v1 controller, "" on v2
	Created  time.Time         `json:"created"`
	Started  time.Time         `json:"started,omitzero"`
	Ended    time.Time         `json:"ended,omitzero"`     // when its workload had ended
	Execs    uint64            `json:"execs,omitempty"`    // commands run beside the workload so far
	Restarts int               `json:"restarts,omitempty"` // how often the workload was started again
	// Result is how it ended, for a sandbox that has.
	Result *exec.Result `json:"result,omitempty"`
	// Error is what Nucleus itself could not do, for a sandbox that has ended.
	Error string `json:"error,omitempty"`
}

// Groups gives the control group that the record of a sandbox has, nil for none.
func Groups(x state.Ref) map[string]string {
	var r Record
	if x.ReadJSON(RecordName, &r) != nil {
		return nil // it is spoilt, too
	}
	return r.Cgroup
}

// StatusRestarting is that of a sandbox whose workload has ended, and is started again.
const StatusRestarting lifecycle.Status = "restarting"

// StackName is the file of a sandbox's directory that holds its Stack.
const StackName = "stack.json"

// Stack tells which stack a sandbox is of, and which version of its job it was made
// from. It is in a file of its own, which no verb prints: with Key and Digest a short
// secret of the job could be guessed.
type Stack struct {
	Name  string   `json:"name"`
	File  string   `json:"file,omitempty"` // absolute, "" for standard input
	Needs []string `json:"needs,omitempty"`
	// Digest is job.Job.Digest under Key, which is this sandbox's own.
	Key    []byte `json:"key"`
	Digest string `json:"digest"`
}

// Ended is how a sandbox ended, as its supervisor tells those who wait.
type Ended struct {
	Result exec.Result `json:"result"`
	Error  string      `json:"error,omitempty"`
}

// ended is the record of a sandbox that has.
func (r Record) ended(res exec.Result, err error) Record {
	r.Status, r.Pid, r.InitPid, r.Supervisor, r.Cgroup, r.Ready = lifecycle.StatusStopped, 0, 0, 0, nil, false
	r.SupervisorCgroup, r.SupervisorShares = nil, ""
	r.Ended, r.Result = res.Started.Add(res.Duration), &res
	if err != nil {
		r.Error = err.Error()
	}
	return r
}
