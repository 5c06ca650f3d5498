package exit

import "golang.org/x/sys/unix"

const (
	// mostConns is how many TCP connections a sandbox may have.
	mostConns = 16384
	// reserved are descriptors for all else: UDP flows, the resolver, the host.
	reserved = 4096
)

// Conns is how many TCP connections the process can carry, with two descriptors each.
// What comes beyond them waits, which is better than to be told that nobody is there.
func Conns() int {
	files, rest := descriptors()
	return max(64, min(mostConns, (files-rest)/2))
}

// Waiting is how many may wait beyond them with a descriptor of their own, which is of those
// for all else.
func Waiting() int {
	_, rest := descriptors()
	return max(8, rest/8)
}

func descriptors() (files, rest int) {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		l.Cur = 1 << 10
	}
	files = int(min(l.Cur, 1<<20))
	return files, min(reserved, files/4)
}
