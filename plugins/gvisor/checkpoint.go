package gvisor

import "github.com/nucleus-runtime/nucleus/sdk/runtime"

// savesSince is the day of the oldest release whose checkpoints this was tried with.
const savesSince = "20260905"

// checkpoint saves what is paused and leaves it so: runsc's own way, which ends the
// sandbox at the same time, could not be taken back if the image cannot be kept.
func (g globals) checkpoint() runtime.Checkpoint {
	restore := append(g.flags(), "--log="+runtime.WordFailureFile, "--panic-log="+runtime.WordFailureFile)
	return runtime.Checkpoint{
		Pause:   g.command("pause", runtime.WordID),
		Save:    g.command("checkpoint", "--leave-running", "--image-path="+runtime.WordImage, runtime.WordID),
		Resume:  g.command("resume", runtime.WordID),
		Restore: runtime.Command{Args: append(restore, "restore", "--bundle="+runtime.BundlePath, "--image-path="+runtime.WordImage, "--pid-file="+runtime.WordPIDFile, runtime.WordID)},
	}
}
