package network

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/contract"
)

// PortMap makes a port of the sandbox reachable from the host.
type PortMap struct {
	HostIP        netip.Addr
	HostPort      uint16 // 0 for any
	ContainerPort uint16
	Protocol      string // "tcp", "udp"
}

// DNS is what a resolver is told.
type DNS struct {
	Servers []netip.Addr
	Search  []string
	Options []string
}

// UserNS is the user namespace that owns a network namespace.
type UserNS struct {
	Namespace Namespace
	UIDs      []contract.IDMap
	GIDs      []contract.IDMap
}

// Verdict is what happens to a flow.
type Verdict uint8

// The verdicts. The zero value is the safe one.
const (
	Deny   Verdict = iota
	Public         // only to public addresses: none private, link-local, multicast, or of a cloud's metadata
	Allow
)

// Egress says what a sandbox may reach: what a rule allows, and else what Default
// says. The zero Egress denies all.
type Egress struct {
	Default Verdict
	Allow   []Rule
}

// Rule allows names, blocks of addresses and jobs, on every port and protocol if none
// is given. "*.example.com" stands for all names below example.com, not for itself.
type Rule struct {
	Names     []string // canonical: lower case, no trailing dot
	CIDRs     []netip.Prefix
	Ports     []Ports
	Protocols []string // beside the ports: "icmp"
	// Jobs are those of the sandbox's stack, by the names that they have there and that
	// the sandbox asks for. Only a Joiner gets any.
	Jobs []string
}

// Member is the place of a sandbox in a stack: sandboxes of one host that are started
// from one job file.
type Member struct {
	Stack string
	Job   string
}

// Ports is a range of them.
type Ports struct {
	Protocol    string // "tcp", "udp"
	First, Last uint16
}

// OpeningKind is what an Opening is.
type OpeningKind uint8

// The kinds. The zero value is one of a newer contract.
const (
	_           OpeningKind = iota
	Tap                     // a tap device: IFF_TAP | IFF_NO_PI
	RouteSocket             // a NETLINK_ROUTE socket
	NetfilterSocket
	ListenTCP // a socket that listens at an address
	ListenUDP // a socket that is bound to an address
	TCPSocket // a socket to connect
	UDPSocket
	NetNS     // the network namespace itself, for a plugin that may move links there
	RawSocket // a socket of IPPROTO_RAW, whose packets come with their headers
)

// Opening is something that is to be opened inside the sandbox's network namespace,
// which a plugin without privileges cannot enter. It comes in AttachRequest.Files, and
// does not block (O_NONBLOCK).
type Opening struct {
	Name    string // of the file that comes
	Kind    OpeningKind
	Address netip.AddrPort // of listeners; of other sockets it is the family that counts
	IfName  string         // of a tap device
	Index   uint32         // of a tap device, for setups that name it; 0 for any
	Count   uint32         // 0 for one
	// Transparent lets a socket have addresses that are not the sandbox's
	// (IP_TRANSPARENT).
	Transparent bool
	// Optional lets the start go on where the kernel has no such thing, or where it is a
	// socket and the sandbox's network stack is not the kernel's (of a runtime plugin: the
	// interface's frames are all that there is). Then its file does not come, and its name
	// is among AttachRequest.Missing.
	Optional bool
}

// Setup is a batch of netlink messages that init sends inside the sandbox's network
// namespace, each with NLM_F_ACK or between the messages of a netfilter batch. So a
// plugin needs no privilege to set up what is the sandbox's own.
type Setup struct {
	Name     string
	Protocol uint16 // NETLINK_ROUTE or NETLINK_NETFILTER
	Messages []byte // whole, one after the other
	Optional bool   // as an Opening's
	// After is the name of a setup before it in the list, "" for none. Where that one is
	// missing, this one is not tried and is missing as well, optional or not.
	After string
}

// PrepareRequest is what is known of a sandbox before it is there.
type PrepareRequest struct {
	Call   Call
	Ports  []PortMap
	DNS    *DNS
	Egress Egress
	// OwnStack: the workload's network stack is not that of the namespace but one of a
	// runtime plugin's program (runtime.Prepared.OwnNetwork). It takes over the addresses,
	// routes and hardware address that the interface has when the workload starts, and
	// then all that there is are the interface's frames.
	OwnStack bool
}

// PrepareResponse is what Prepare has made. Init makes the tap devices first, then
// sends the setups, then opens the rest, each in their order, while loopback is up.
type PrepareResponse struct {
	Handle   Handle // comes again as Prepared
	Openings []Opening
	Setups   []Setup
}

// Check tells what is wrong with an answer, as the core does before anything is made of it.
func (p *PrepareResponse) Check() error {
	before := map[string]bool{}
	for _, s := range p.Setups {
		if s.After != "" && !before[s.After] {
			return fmt.Errorf("setup %q comes after %q, and no setup before it has that name", s.Name, s.After)
		}
		before[s.Name] = true
	}
	return nil
}

// AttachRequest is a sandbox that is to be connected.
type AttachRequest struct {
	Call     Call
	NetNS    Namespace
	IfName   string
	Ports    []PortMap
	DNS      *DNS // asked for; nil for the network's own
	Hostname string
	MACHint  string
	IPHints  []netip.Addr
	Prepared Handle
	UserNS   *UserNS // nil for the host's
	MTU      uint32  // 0 for the network's own
	Egress   Egress
	// Missing are the names of optional openings and setups that this sandbox has not.
	Missing  []string
	OwnStack bool    // as in PrepareRequest
	Member   *Member // nil for a sandbox of no stack

	// Files are the descriptors of the openings, each with its opening's name. They
	// are the plugin's if Attach succeeds; else the SDK closes them. In a host they
	// are sent, and stay the host's.
	Files []*os.File
}

// Interface is a network interface.
type Interface struct {
	Name     string // inside
	MAC      string
	MTU      uint32
	HostName string // of its other end, if it has one
}

// IPConfig is an address of an interface.
type IPConfig struct {
	Address netip.Prefix // with the length of its network
	Gateway netip.Addr
	IfName  string
}

// Route is one inside.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr
	IfName string
	Metric uint32
}

// AttachResponse is what Attach has made.
type AttachResponse struct {
	Handle     Handle
	Interfaces []Interface
	IPs        []IPConfig
	Routes     []Route
	DNS        *DNS
	Ports      []PortMap // as they are: host ports that were 0 are known now
}

// DetachRequest is a sandbox that is to be disconnected.
type DetachRequest struct {
	Call     Call
	Handle   Handle     // zero if Attach gave none, or its answer was lost
	Prepared Handle     // likewise
	NetNS    *Namespace // nil if it is gone
	IfName   string
	Force    bool // go on after an error, and leave nothing that can be removed
}

// StatusRequest is an attachment to look at.
type StatusRequest struct {
	SandboxID  string
	InstanceID string
	Handle     Handle
	NetNS      *Namespace
	IfName     string
}

// Status is how an attachment fares.
type Status struct {
	OK    bool
	Drift []string // what is not as Attach has left it
	Stats []IfStats
	Flows []FlowStats
	// Denied counts what the policy has refused.
	Denied uint64
}

// FlowStats counts what went to one destination, as the sandbox sees it.
type FlowStats struct {
	// Name is what the sandbox asked for; "" for all that it reached by address.
	Name        string
	Connections uint64
	RxBytes     uint64
	TxBytes     uint64
}

// WatchRequest names an attachment.
type WatchRequest struct {
	SandboxID  string
	InstanceID string
	Handle     Handle
}

// Denial is a flow, or a question for a name, that the policy has refused.
type Denial struct {
	At       time.Time
	Protocol string         // "tcp", "udp", "icmp", "dns" for a name that may not be asked for, else the number of an IP protocol
	Dst      netip.AddrPort // where to; zero for a name
	Name     string         // if one is known
	// Rule is the place in Egress.Allow of the rule that the flow came closest to,
	// or -1: it was the default that refused.
	Rule   int
	Reason Reason
	// Count is of denials alike since the last that was told of, this one included.
	Count uint64
}

// Reason says why a flow was refused, in a word that stays.
type Reason string

// The reasons.
const (
	ReasonDefault    Reason = "default"    // no rule names the destination
	ReasonPort       Reason = "port"       // a rule names it, with other ports or protocols
	ReasonPrivate    Reason = "private"    // the name has only addresses that are not public, and no rule has their block
	ReasonUnbound    Reason = "unbound"    // an address of the network's own for a name that was never asked for
	ReasonHost       Reason = "host"       // the host itself, or another sandbox: no rule reaches those
	ReasonLimit      Reason = "limit"      // more connections than a sandbox may have, or begin in a second
	ReasonProtocol   Reason = "protocol"   // a protocol that this network does not carry
	ReasonUnresolved Reason = "unresolved" // the name cannot be resolved now
)

// IfStats counts as the sandbox sees it: received is what came in.
type IfStats struct {
	IfName    string
	RxBytes   uint64
	TxBytes   uint64
	RxPackets uint64
	TxPackets uint64
	Dropped   uint64
}

// Attachment is one that the core knows of.
type Attachment struct {
	SandboxID  string
	InstanceID string
	IfName     string
	Handle     Handle
}

// GCRequest says what is to stay.
type GCRequest struct {
	Call   Call
	Valid  []Attachment
	DryRun bool // only say what would be removed
}

// GCResponse is what GC has done.
type GCResponse struct {
	Removed []string
	Failed  []string // what could not be removed, and why
}
