package egress

import "net/netip"

// Public reports whether the address is a globally reachable unicast one: none that
// the IANA special-purpose registries reserve for private, local, documentation or
// benchmarking networks or protocols, no multicast, no metadata service of a cloud.
// An address that embeds an IPv4 address is no more public than that.
func Public(a netip.Addr) bool {
	if !a.IsValid() {
		return false
	}
	a = plain(a)
	if a.Is4() {
		return public4(a.As4())
	}
	return public6(a.As16())
}

// public4 is after https://www.iana.org/assignments/iana-ipv4-special-registry.
// The blocks of AS112 and AMT there are globally reachable.
func public4(a [4]byte) bool {
	switch a[0] {
	case 0, 10, 127: // this network (RFC 791), private (RFC 1918), loopback (RFC 1122)
		return false
	case 100: // 100.64.0.0/10, behind carriers' NAT (RFC 6598), with Alibaba's metadata
		return a[1]&0xc0 != 64
	case 168: // Azure's metadata is 168.63.129.16, out of a block that looks public
		return a != [4]byte{168, 63, 129, 16}
	case 169: // link-local (RFC 3927), with most clouds' metadata
		return a[1] != 254
	case 172: // 172.16.0.0/12, private
		return a[1]&0xf0 != 16
	case 192:
		return public192(a)
	case 198: // 198.18.0.0/15, benchmarking (RFC 2544); 198.51.100.0/24, documentation
		return a[1]&0xfe != 18 && (a[1] != 51 || a[2] != 100)
	case 203: // 203.0.113.0/24, documentation (RFC 5737)
		return a[1] != 0 || a[2] != 113
	default: // from 224 multicast, reserved, broadcast
		return a[0] < 224
	}
}

func public192(a [4]byte) bool {
	switch a[1] {
	case 0: // 192.0.0.0/24, protocols (RFC 6890), with Oracle's metadata; 192.0.2.0/24, documentation
		return a[2] != 0 && a[2] != 2
	case 88: // 192.88.99.0/24, relays of 6to4: whoever is nearest (RFC 7526)
		return a[2] != 99
	default: // 192.168.0.0/16, private
		return a[1] != 168
	}
}

// public6 is after https://www.iana.org/assignments/iana-ipv6-special-registry. What
// is not of 2000::/3, the only space that is given out, is public only as NAT64.
func public6(a [16]byte) bool {
	last := [4]byte(a[12:])
	if a[0]>>5 != 1 {
		// 64:ff9b::/96 (RFC 6052); 64:ff9b:1::/48 is for local use (RFC 8215).
		return [12]byte(a[:12]) == [12]byte{0, 0x64, 0xff, 0x9b} && public4(last)
	}
	switch {
	case a[0] == 0x20 && a[1] == 0x01 && a[2]&0xfe == 0:
		// 2001::/23, protocols (RFC 2928). Some in it are globally reachable by the
		// registry, but as services of the network that one is in: its port mapper, its
		// relay. Teredo's, 2001::/32, embed IPv4 addresses.
		return false
	case a[0] == 0x20 && a[1] == 0x01 && a[2] == 0x0d && a[3] == 0xb8: // documentation (RFC 3849)
		return false
	case a[0] == 0x20 && a[1] == 0x02: // 6to4 (RFC 3056) embeds IPv4 addresses, and has no relays left
		return false
	case a[0] == 0x3f && a[1] == 0xff && a[2]&0xf0 == 0: // 3fff::/20, documentation (RFC 9637)
		return false
	}
	// An ISATAP router (RFC 5214) unwraps what is for 0:5efe:a.b.c.d, in any prefix.
	if a[8]&^3 == 0 && a[9] == 0 && a[10] == 0x5e && a[11] == 0xfe {
		return public4(last)
	}
	return true
}
