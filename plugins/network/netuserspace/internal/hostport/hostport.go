// Package hostport owns what the paths have in common of the host's ports that a
// sandbox publishes. What comes in by them is a path's.
package hostport

import (
	"net/netip"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Error says which port of the host could not be had.
type Error struct {
	Port network.PortMap
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Listen opens a port for a port of the sandbox, and tells which.
type Listen func(at netip.AddrPort, container uint16) (uint16, error)

// All opens all ports, each by its protocol, and gives them as they are.
func All(ports []network.PortMap, tcp, udp Listen) ([]network.PortMap, error) {
	out := make([]network.PortMap, 0, len(ports))
	for _, m := range ports {
		listen := tcp
		if m.Protocol == "udp" {
			listen = udp
		}
		port, err := listen(netip.AddrPortFrom(m.HostIP, m.HostPort), m.ContainerPort)
		if err != nil {
			return nil, &Error{Port: m, Err: err}
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
