package main

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/internal/plainfile"
)

// limitPending holds for init what is the workload's of pending signals: they are counted
// where they are sent to, and a process that is to be a further command is sent them before
// it has a limit of its own. A limit that cannot be set is stage 2's to tell of.
func limitPending(rs []initproto.Rlimit) {
	for _, r := range rs {
		if r.Resource == unix.RLIMIT_SIGPENDING {
			_ = unix.Prlimit(0, unix.RLIMIT_SIGPENDING, &unix.Rlimit{Cur: r.Soft, Max: r.Hard}, nil)
		}
	}
}

// watchShare is the part of the host's limits of inotify that a sandbox has.
const watchShare = 4

// limitWatches bounds the inotify instances and watches of the sandbox's user namespace. The
// kernel counts them for who made it as well, in all sandboxes and outside together
// (inc_ucount() in its kernel/ucount.c), and without a limit of its own a workload could
// take all. Where /proc/sys cannot be written, as in containers of others, there is none.
func limitWatches() {
	for _, what := range []string{"instances", "watches"} {
		b, err := plainfile.Read("/proc/sys/fs/inotify/max_user_" + what)
		if err != nil {
			continue
		}
		most, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 32)
		if err != nil {
			continue
		}
		fd, err := unix.Open("/proc/sys/user/max_inotify_"+what, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		_, _ = unix.Write(fd, strconv.AppendUint(nil, most/watchShare, 10)) // see above
		_ = unix.Close(fd)
	}
}
