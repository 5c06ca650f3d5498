package process

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// monitorLater has the thread by which Go's runtime looks at the others wait for its turn.
// It wakes up each 20 microseconds and more, and so takes the processor from whoever works on it some hundred times while a
// sandbox starts, though others may be idle: one that is woken by a timer stays where
// the timer is. As SCHED_BATCH (sched(7)) it does not preempt when it wakes up; it
// still gets its share. Threads and processes that it makes are scheduled as before.
func monitorLater() {
	// The runtime makes it before all other threads. Should the numbers have gone round,
	// another thread waits for its turn: nothing is wrong then, and nothing won.
	if tid := second(os.Getpid()); tid != 0 {
		_ = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_BATCH, Flags: unix.SCHED_FLAG_RESET_ON_FORK}, 0)
	}
}

// second gives the lowest thread id of this process but the first thread's, 0 for none.
func second(first int) int {
	dir, err := unix.Open("/proc/self/task", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(dir)
	var buf [1 << 10]byte // more than a dozen threads, of which there are four
	n, err := unix.ReadDirent(dir, buf[:])
	if err != nil {
		return 0
	}
	_, _, names := unix.ParseDirent(buf[:n], -1, nil)
	found := 0
	for _, name := range names {
		if tid, err := strconv.Atoi(name); err == nil && tid != first && (found == 0 || tid < found) {
			found = tid
		}
	}
	return found
}
