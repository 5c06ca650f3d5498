// Package hostport owns what backends have in common of the host's ports that a
// sandbox publishes: what may be asked for, and what is said when a port cannot be had.
// What comes in by them is a backend's.
package hostport

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Check refuses what no port can be.
func Check(ports []network.PortMap) error {
	for i, m := range ports {
		switch {
		case m.Protocol != "tcp" && m.Protocol != "udp":
			return network.AtPort(i, &errs.Error{Code: errs.Config, Text: fmt.Sprintf("port %d: the protocol %q has no ports: tcp and udp have", m.ContainerPort, m.Protocol)})
		case m.ContainerPort == 0:
			return network.AtPort(i, &errs.Error{Code: errs.Config, Text: "port 0 of the sandbox cannot be published"})
		}
	}
	return nil
}

// Refused is the error of the i-th port, which cannot be had at the address.
func Refused(i int, m network.PortMap, at netip.AddrPort, err error) error {
	what := fmt.Sprintf("publishing port %d of the sandbox (%s) at %s", m.ContainerPort, m.Protocol, at)
	facts := map[string]string{"address": at.String(), "protocol": m.Protocol}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		err = errs.Because(errs.Existsf("%s: the port is in use on this host: publish another: %w", what, err), "PORT_IN_USE", facts)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		err = errs.Because(errs.Deniedf("%s: ports below net.ipv4.ip_unprivileged_port_start (ip(7)) need CAP_NET_BIND_SERVICE, which this plugin has not: publish a higher one: %w", what, err), "PORT_PRIVILEGED", facts)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		err = errs.Because(errs.Preconditionf("%s: this host has no such address: %w", what, err), "NO_SUCH_ADDRESS", facts)
	default:
		err = fmt.Errorf("%s: %w", what, err)
	}
	return network.AtPort(i, err)
}

// Listen opens a port for a port of the sandbox, and tells which.
type Listen func(at netip.AddrPort, container uint16) (uint16, error)

// All opens all ports, each by its protocol, and gives them as they are.
func All(ports []network.PortMap, tcp, udp Listen) ([]network.PortMap, error) {
	out := make([]network.PortMap, 0, len(ports))
	for i, m := range ports {
		listen := tcp
		if m.Protocol == "udp" {
			listen = udp
		}
		if !m.HostIP.IsValid() {
			m.HostIP = netip.IPv4Unspecified()
		}
		at := netip.AddrPortFrom(m.HostIP, m.HostPort)
		port, err := listen(at, m.ContainerPort)
		if err != nil {
			return nil, Refused(i, m, at, err)
		}
		m.HostPort = port
		out = append(out, m)
	}
	return out, nil
}

// Family gives the network's name for one family alone: a port at 0.0.0.0 is not one
// at ::.
func Family(name string, a netip.Addr) string {
	if a.Is4() {
		return name + "4"
	}
	return name + "6"
}
