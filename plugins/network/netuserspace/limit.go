package netuserspace

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/hostport"
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

// portError says which port of the host could not be had, and what to do.
func portError(err error) error {
	var p *hostport.Error
	if !errors.As(err, &p) {
		return err
	}
	at := netip.AddrPortFrom(p.Port.HostIP, p.Port.HostPort)
	facts := map[string]string{"port": at.String(), "protocol": p.Port.Protocol}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		err = errs.Existsf("port %s of the host (%s) is in use by another program", at, p.Port.Protocol)
		return errs.Because(err, "PORT_IN_USE", facts)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		err = errs.Preconditionf("port %s of the host (%s) is for root alone: choose one from net.ipv4.ip_unprivileged_port_start up", at, p.Port.Protocol)
		return errs.Because(err, "PORT_PRIVILEGED", facts)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		err = errs.Preconditionf("the host has no address %s to publish a port at", at.Addr())
		return errs.Because(err, "NO_SUCH_ADDRESS", facts)
	}
	return fmt.Errorf("publishing port %s (%s): %w", at, p.Port.Protocol, err)
}

func checkPorts(ports []network.PortMap) error {
	for _, p := range ports {
		if p.Protocol != exit.TCP && p.Protocol != exit.UDP {
			return errs.ConfigErrorf(nil, "the protocol %q cannot be published: tcp and udp can", p.Protocol)
		}
		if !p.HostIP.IsValid() {
			return errs.ConfigErrorf(nil, "port %d is published at no address of the host", p.HostPort)
		}
	}
	return nil
}
