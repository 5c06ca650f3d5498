// Package inside owns what a sandbox's network namespace looks like under
// netuserspace: what init is asked to set up and to open there, and the names under
// which it comes. It is data only, and knows nothing of policy: whatever gets past
// what is here ends at a socket of the plugin's or nowhere, since no link of the
// namespace leads anywhere else.
//
// In the order in which init does it:
//
//	tap       eth0, a tap device at the plugin: TCP's first packets, ICMP and all that
//	          no socket takes
//	link      its address, NOARP, a default route: what programs look at
//	capture   nftables: TCP and UDP for foreign addresses are marked on their way out,
//	          and what then comes over lo goes to the listeners below (tproxy), so that a
//	          listener's connection has the address that was meant
//	steer     what is marked takes a table in which every address is a local one, over
//	          lo, or the tap if it is the first packet of a TCP connection
//	shortcut  TCP takes the table over lo without a mark, so that its packets have their
//	          way from the start, and capture marks only the first one of a connection
//
// and "6" behind the name of a setup is the same for IPv6. The sandbox's own addresses
// and 127.0.0.0/8 are in the kernel's local table, which comes first, and so nothing of
// this concerns programs of the sandbox that talk to each other.
//
// A first packet waits at the tap until the plugin has decided and dialled. Then it is
// sent again through a raw socket, recognised by its TTL, and meets the listener: so a
// program that connects learns what came of it, as if nothing were in between. Where it
// meets the listener is remembered for a moment, and for that long first packets to the
// same address and port go there by themselves: a program that makes connection after
// connection waits for the plugin once, and learns of one that failed by its reset.
//
// From capture on each comes after the one without which it would lead packets to where
// nobody is, and those for IPv6 after those for IPv4. Without capture or steer nothing is
// led anywhere, and all packets come to the tap, where the netstack path takes them; if it
// is for IPv6 alone that they are missing, its flows are refused there. Without shortcut
// capture marks each packet. A network stack that is not the kernel's takes over what link
// has set up, and finds in the namespace nothing but the tap.
//
// What it takes of init: a setup ends at the first message that is refused, and the
// tap device has the index that its opening asks for, so that messages can name it
// whatever links modules of the kernel have put into the namespace before
// (net.core.fb_tunnels_only_for_init_net).
package inside

import (
	"net/netip"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// The names of openings, which their files have, and of setups.
const (
	Tap        = "tap"
	TCP4       = "tcp4"
	TCP6       = "tcp6"
	UDP4       = "udp4"
	UDP6       = "udp6"
	Raw4       = "raw4"
	Raw6       = "raw6"
	DNSUDP     = "dns-udp"
	DNSTCP     = "dns-tcp"
	PublishTCP = "publish-tcp"

	Link      = "link"
	Link6     = "link6"
	Capture   = "capture"
	Capture6  = "capture6"
	Steer     = "steer"
	Steer6    = "steer6"
	Shortcut  = "shortcut"
	Shortcut6 = "shortcut6"
)

// What the sandbox has. RFC 7335 keeps 192.0.0.0/29 for the two ends of a link like
// this one, so that the block hides no network that anybody could want to reach.
var (
	Address4 = netip.MustParseAddr("192.0.0.2")
	Gateway4 = netip.MustParseAddr("192.0.0.1")
	Address6 = netip.MustParseAddr("fd6e:7563:6c75::2")
	Gateway6 = netip.MustParseAddr("fd6e:7563:6c75::1")
	Resolver = netip.MustParseAddr("127.0.0.53")
)

// IfName is the interface, where nothing else is asked for.
const IfName = "eth0"

// MTU is the largest that one datagram of IPv4 fills.
const MTU = 65520

// TapIndex is the interface's index, one that no namespace gives by itself.
const TapIndex = 1000

// SentTTL is that of first packets which are sent again. A program that sets it for its
// own connections has them accepted before they are dialled, and others to the same place
// for a moment, and no more.
const SentTTL = 177

// The listeners' port is one that nobody uses (RFC 1078), since a program that wants
// it on every address cannot have it.
var (
	listen4 = netip.MustParseAddrPort("127.0.0.54:1")
	listen6 = netip.MustParseAddrPort("[::1]:1")
)

// Pool is how many connections to one sandbox's published ports there may be at once.
// Init passes at most 250 descriptors in all.
const Pool = 128

// Path is how flows get from the sandbox to the plugin.
type Path uint8

// The paths.
const (
	Kernel   Path = iota // through sockets, by nftables
	Netstack             // through the tap device, by a network stack of the plugin's own
	Frames               // likewise, for a workload that uses nothing of the namespace but the device
)

// Ask is what init is to set up and open.
func Ask(p Path, ports []network.PortMap) ([]network.Opening, []network.Setup, error) {
	openings := []network.Opening{{Name: Tap, Kind: network.Tap, IfName: IfName, Index: TapIndex, Optional: true}}
	if p != Frames {
		openings = append(openings,
			network.Opening{Name: DNSUDP, Kind: network.ListenUDP, Address: netip.AddrPortFrom(Resolver, 53)},
			network.Opening{Name: DNSTCP, Kind: network.ListenTCP, Address: netip.AddrPortFrom(Resolver, 53)})
	}
	setups := []network.Setup{
		{Name: Link, Protocol: netlinkRoute, Messages: link(v4, p), Optional: true},
		{Name: Link6, Protocol: netlinkRoute, Messages: link(v6, p), Optional: true},
	}
	if p != Kernel {
		return openings, setups, nil
	}
	c4, err := capture(v4)
	if err != nil {
		return nil, nil, err
	}
	c6, err := capture(v6)
	if err != nil {
		return nil, nil, err
	}
	setups = append(setups,
		network.Setup{Name: Capture, Protocol: netlinkNetfilter, Messages: c4, Optional: true},
		network.Setup{Name: Steer, Protocol: netlinkRoute, Messages: steer(v4), Optional: true, After: Capture},
		network.Setup{Name: Shortcut, Protocol: netlinkRoute, Messages: shortcut(v4), Optional: true, After: Steer},
		network.Setup{Name: Capture6, Protocol: netlinkNetfilter, Messages: c6, Optional: true, After: Steer},
		network.Setup{Name: Steer6, Protocol: netlinkRoute, Messages: steer(v6), Optional: true, After: Capture6},
		network.Setup{Name: Shortcut6, Protocol: netlinkRoute, Messages: shortcut(v6), Optional: true, After: Steer6})
	any6 := netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	any4 := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	openings = append(openings,
		network.Opening{Name: TCP4, Kind: network.ListenTCP, Address: listen4, Transparent: true},
		network.Opening{Name: UDP4, Kind: network.ListenUDP, Address: listen4, Transparent: true},
		network.Opening{Name: Raw4, Kind: network.RawSocket, Address: any4},
		network.Opening{Name: TCP6, Kind: network.ListenTCP, Address: listen6, Transparent: true, Optional: true},
		network.Opening{Name: UDP6, Kind: network.ListenUDP, Address: listen6, Transparent: true, Optional: true},
		network.Opening{Name: Raw6, Kind: network.RawSocket, Address: any6, Optional: true})
	for _, m := range ports {
		if m.Protocol == "tcp" {
			// Transparent, so that a program sees who connects.
			openings = append(openings, network.Opening{Name: PublishTCP, Kind: network.TCPSocket, Address: any4, Count: Pool, Transparent: true})
			break
		}
	}
	return openings, setups, nil
}
