// Package signals owns the signals that a process takes for its sandbox instead
// of dying of them. It knows nothing of what they mean.
package signals

import "golang.org/x/sys/unix"

// backlog is how many signals may wait for the reader; more are lost, as equal
// pending signals are.
const backlog = 16

// Catch takes these signals over, until release, and gives them in the order of
// their arrival. A SIGHUP or SIGINT that the process was started with ignored, as
// nohup(1) does with the first, stays so; what the others were before Go's runtime
// took them, nobody knows any more. It may be called once.
func Catch(nums ...unix.Signal) (caught <-chan unix.Signal, release func(), err error) {
	return catch(nums)
}
