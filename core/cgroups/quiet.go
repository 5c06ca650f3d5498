package cgroups

import (
	"io"
	"sync"

	oc "github.com/opencontainers/cgroups"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

const libraryRoot = "/sys/fs/cgroup"

// quiet keeps the library from warning on stderr. It does so in one place only,
// once, where its first use finds that openat2 cannot open its root (an unusual
// mount point, or a seccomp filter around us). That first use is made here with
// the logger's output set aside; the embedding program's logger is otherwise
// left alone.
var quiet = sync.OnceFunc(func() {
	fd, err := unix.Openat2(unix.AT_FDCWD, libraryRoot, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC})
	if err == nil {
		unix.Close(fd)
		return
	}
	log := logrus.StandardLogger()
	out := log.Out
	log.SetOutput(io.Discard)
	defer log.SetOutput(out)
	_, _ = oc.ReadFile(libraryRoot, "cgroup.controllers")
})
