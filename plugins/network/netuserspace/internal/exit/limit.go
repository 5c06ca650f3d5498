package exit

import "golang.org/x/sys/unix"

const (
	// mostConns is how many TCP connections a sandbox may have.
	mostConns = 16384
	// reserved are descriptors for all else: UDP flows, the resolver, the host.
	reserved = 4096
	// SlotsPerWaiter is for how many connections there may be one more that waits, with one
	// descriptor.
	SlotsPerWaiter = 8
)

// Conns is how many TCP connections the process can carry, with two descriptors each.
// What comes beyond them waits, which is better than to be told that nobody is there.
func Conns() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 256
	}
	files := int(min(l.Cur, 1<<20))
	return max(64, min(mostConns, (files-min(reserved, files/4))*SlotsPerWaiter/(2*SlotsPerWaiter+1)))
}
