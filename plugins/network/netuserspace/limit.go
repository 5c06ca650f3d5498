package netuserspace

import (
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"golang.org/x/sys/unix"
)

// raiseLimit lets the process have as many descriptors as it may: two for a connection.
func raiseLimit() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil && l.Cur < l.Max {
		l.Cur = l.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l) // then there are fewer connections
	}
}

func checkPorts(ports []network.PortMap) error {
	for _, p := range ports {
		if p.Protocol != exitTCP && p.Protocol != exitUDP {
			return errs.ConfigErrorf(nil, "the protocol %q cannot be published: tcp and udp can", p.Protocol)
		}
	}
	return nil
}

const (
	exitTCP = "tcp"
	exitUDP = "udp"
)
