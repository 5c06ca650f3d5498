// Package netbridge is the network of sandboxes that root starts: a bridge, a veth
// pair for each sandbox, addresses of both families, and nftables on the host's side
// of the pair, where no sandbox reaches. It must never keep anything in memory that a
// later process needs: what the kernel has is the state.
//
// The host's end of a pair is named after the sandbox's IPv4 address, so that making
// it is what reserves the address, and its alias names the sandbox. Everything of
// nftables that is one sandbox's own has that name, too: what has no link any more
// belongs to nobody, whoever finds it.
//
// A frame passes three gates. In the bridge family it must carry the addresses that
// its port was given. In the forward hook the sandbox's own chain, found by source
// address, decides on new flows; nothing of a bridge reaches the host itself or
// another sandbox. And a name stands for a synthetic address that is translated only
// for protocols and ports that a rule allows the name, to an address that the policy
// allows it to stand for.
package netbridge
