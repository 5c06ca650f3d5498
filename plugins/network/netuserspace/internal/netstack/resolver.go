package netstack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// Resolver opens sockets of the stack at an address of IPv4, for a sandbox that meets
// nothing in its namespace. What is asked there is no flow, and not the policy's. It is
// called before Start; they end with Close at the latest.
func (p *Path) Resolver(at netip.AddrPort) (net.PacketConn, net.Listener, error) {
	local := full(at)
	udp, err := gonet.DialUDP(p.stack, &local, nil, ipv4.ProtocolNumber)
	if err != nil {
		return nil, nil, fmt.Errorf("the socket for the resolver: %w", err)
	}
	tcp, err := gonet.ListenTCP(p.stack, local, ipv4.ProtocolNumber)
	if err != nil {
		return nil, nil, fmt.Errorf("the socket for the resolver: %w", errors.Join(err, udp.Close()))
	}
	p.resolver = at
	return udp, tcp, nil
}
