// Package netuserspace is the network that needs no privilege on the host. Every flow
// of a sandbox ends at this process, which asks the policy, connects on the host's side
// as any program would, and joins the two. No link leads out of the sandbox's network
// namespace, so that without the process there are no flows: they cannot be open
// because it has died.
//
// The sandbox's own kernel brings TCP and UDP to sockets that init has opened there,
// and no byte of TCP goes through a network stack in user space; what is set up for that
// is in package inside. A program's connect is answered when the far side has
// accepted, refused or not answered, as without anything in between.
//
// Where the sandbox's kernel has not what that takes, packets come through a tap device
// to a network stack in user space (package netstack): slower, and servers see
// all clients of published ports come from the gateway. An operator may want that
// always: path = "netstack". A workload that has a network stack of its own, and takes
// the device over, is served so, too: its resolver is at the gateway then.
//
// What is different from a network of one's own:
//
//   - Ping needs net.ipv4.ping_group_range on the host to have the plugin's group, and
//     on the sandbox's side a socket, so CAP_NET_RAW or that range there. Of ICMP nothing
//     else is carried, and no other protocol: both are denials.
//   - Where there is no tap device (/dev/net/tun), connect succeeds before the far side
//     has answered, and what came of it is a reset at once.
//   - A connection bound to the interface (SO_BINDTODEVICE) is not carried.
//   - Published ports reach servers at the sandbox's address, not those at 127.0.0.1
//     alone, over IPv4; on the kernel path inside.Pool of them at once, others wait.
//   - The host's own addresses are refused, whatever the policy says.
//
// Other jobs of the stack are reached by sockets of their sandboxes, which the core gives
// for each connection (network.MemberDialer); no link leads there either.
//
// A process serves one sandbox, for as long as that lives (manifest: resident).
package netuserspace
