package stack

// Found is what there is of a job: a sandbox that lives, or the record of one.
type Found struct {
	Alive bool
	Same  bool // it was made from the job as it stands in the file
	Done  bool // it has ended by itself, with exit code 0
}

// Action is what is to become of a job.
type Action string

// The actions.
const (
	Start   Action = "start"   // there is nothing of it
	Replace Action = "replace" // what there is goes, then it is started
	Keep    Action = "keep"    // it runs as it should
	Leave   Action = "leave"   // it has done what it was there for
)

// Decide tells what is to become of a job, of which there may be nothing. A job that has
// done its work is run again if rerun says so, or if others wait for it to be ready,
// which what has ended is not.
func Decide(found *Found, awaitedReady, rerun bool) Action {
	switch {
	case found == nil:
		return Start
	case !found.Same:
		return Replace
	case found.Alive:
		return Keep
	case found.Done && !rerun && !awaitedReady:
		return Leave
	default:
		return Replace
	}
}

// Sandbox is the name of the sandbox of a job.
func Sandbox(stack, job string) string { return stack + "-" + job }
