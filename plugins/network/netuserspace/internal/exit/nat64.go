package exit

import "net/netip"

// Prefixes of translators: the one that all know (RFC 6052), and a block of which networks
// take their own (RFC 8215).
var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")
)

// layouts are the bytes of the IPv4 address in one of IPv6, for prefixes of 96, 64, 56 and
// 48 bits (RFC 6052, 2.2).
var layouts = [][4]int{{12, 13, 14, 15}, {9, 10, 11, 12}, {7, 9, 10, 11}, {6, 7, 9, 10}}

// translated gives the IPv4 addresses that a translator could take an address to be for.
// How long a network's own prefix is nobody here knows, and not every translator looks at
// what is behind the address: so it is what any length makes of it. Bits of a prefix that are
// read as an address come to nothing then, or to one of multicast, which none translates.
func translated(a netip.Addr) (all []netip.Addr) {
	of := layouts[:1]
	switch {
	case localNAT64.Contains(a):
		of = layouts
	case !nat64.Contains(a):
		return nil
	}
	b := a.As16()
	for _, at := range of {
		x := netip.AddrFrom4([4]byte{b[at[0]], b[at[1]], b[at[2]], b[at[3]]})
		if len(of) == 1 || !x.IsUnspecified() && !x.IsMulticast() {
			all = append(all, x)
		}
	}
	return all
}
