package netuserspace

import "golang.org/x/sys/unix"

// raiseLimit lets the process have as many descriptors as it may: two for a connection.
func raiseLimit() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil && l.Cur < l.Max {
		l.Cur = l.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l) // then there are fewer connections
	}
}
