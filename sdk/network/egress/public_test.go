package egress

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestPublic(t *testing.T) {
	for a, want := range map[string]bool{
		"8.8.8.8": true, "1.1.1.1": true, "1.0.0.0": true, "223.255.255.255": true,
		"0.0.0.0": false, "0.255.255.255": false,
		"9.255.255.255": true, "10.0.0.0": false, "10.255.255.255": false, "11.0.0.0": true,
		"100.63.255.255": true, "100.64.0.0": false, "100.100.100.200": false, "100.127.255.255": false, "100.128.0.0": true,
		"126.255.255.255": true, "127.0.0.1": false, "127.255.255.255": false, "128.0.0.0": true,
		"168.63.129.15": true, "168.63.129.16": false,
		"169.253.255.255": true, "169.254.0.0": false, "169.254.169.254": false, "169.254.170.2": false, "169.255.0.0": true,
		"172.15.255.255": true, "172.16.0.0": false, "172.31.255.255": false, "172.32.0.0": true,
		"192.0.0.0": false, "192.0.0.9": false, "192.0.0.192": false, "192.0.1.0": true, "192.0.2.1": false, "192.0.3.0": true,
		"192.88.98.255": true, "192.88.99.1": false, "192.88.100.0": true,
		"192.31.196.1": true, "192.52.193.1": true, "192.175.48.1": true,
		"192.167.255.255": true, "192.168.0.0": false, "192.168.255.255": false, "192.169.0.0": true,
		"198.17.255.255": true, "198.18.0.0": false, "198.19.255.255": false, "198.20.0.0": true,
		"198.51.99.255": true, "198.51.100.1": false, "198.51.101.0": true,
		"203.0.112.255": true, "203.0.113.1": false, "203.0.114.0": true,
		"224.0.0.0": false, "239.255.255.250": false, "240.0.0.1": false, "255.255.255.255": false,

		"::": false, "::1": false, "::8.8.8.8": false, "::ffff:8.8.8.8": true, "::ffff:10.0.0.1": false, "::ffff:169.254.169.254": false,
		"::ffff:0:8.8.8.8": false, "100::1": false, "1fff::1": false,
		"64:ff9b::8.8.8.8": true, "64:ff9b::10.0.0.1": false, "64:ff9b::169.254.169.254": false, "64:ff9b::1:808:808": false, "64:ff9b:1::8.8.8.8": false,
		"2606:4700::1111": true, "2a00::1": true, "2000::": true, "3ffe::1": true,
		"2001::1": false, "2001:0:4136:e378:8000:63bf:3fff:fdd2": false, "2001:1::1": false, "2001:2::1": false, "2001:20::1": false, "2001:1ff::1": false, "2001:200::1": true,
		"2001:4860:4860::8888": true, "2001:db7::1": true, "2001:db8::1": false, "2001:db9::1": true,
		"2002:a00:1::1": false, "2002:808:808::1": false, "2003::1": true,
		"2620:4f:8000::1": true, "3fff::1": false, "3fff:fff::1": false, "3fff:1000::1": true, "4000::1": false, "5f00::1": false,
		"2606:4700::5efe:8.8.8.8": true, "2606:4700::5efe:10.0.0.1": false, "2606:4700::200:5efe:10.0.0.1": false, "2606:4700::300:5efe:10.0.0.1": false,
		"fc00::1": false, "fd00:ec2::254": false, "fd20:ce::254": false, "fe80::1": false, "fe80::a9fe:a9fe": false, "fec0::1": false, "ff02::1": false, "ff0e::1": false,
	} {
		if got := Public(netip.MustParseAddr(a)); got != want {
			t.Errorf("Public(%s) = %v", a, got)
		}
	}
	if Public(netip.MustParseAddr("fe80::1%eth0")) || !Public(netip.MustParseAddr("2606:4700::1%eth0")) {
		t.Error("a zone makes a difference")
	}
}

// Whatever the spelling, an IPv4 address that is not public is in no IPv6 address
// which is; and none of what the standard library knows as special is public.
func TestNothingSpecialIsPublic(t *testing.T) {
	private := rapid.SampledFrom(prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"))
	// Where an IPv4 address may be embedded: the bits before it.
	embedding := rapid.SampledFrom(prefixes("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/96", "2002::/16", "2001::/96", "2606:4700::5efe:0:0/96", "2606:4700::200:5efe:0:0/96"))
	rapid.Check(t, func(t *rapid.T) {
		p := private.Draw(t, "block")
		a := inside(t, p)
		if Public(a) {
			t.Fatalf("%s is public", a)
		}
		e := embedding.Draw(t, "embedding")
		six := e.Addr().As16()
		four := a.As4()
		copy(six[e.Bits()/8:], four[:])
		if got := netip.AddrFrom16(six); Public(got) {
			t.Fatalf("%s, which is %s in %s, is public", got, a, e)
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		a := address(t)
		u := a.Unmap()
		if Public(a) && (!u.IsGlobalUnicast() || u.IsPrivate() || u.IsLoopback() || u.IsMulticast() || u.IsLinkLocalUnicast() || u.IsUnspecified()) {
			t.Fatalf("%s is public", a)
		}
		if Public(a) != Public(u) {
			t.Fatalf("%s is public as one of IPv4 or IPv6, not as the other", a)
		}
	})
}

// inside draws an address of a block.
func inside(t *rapid.T, p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i, r := range rapid.SliceOfN(rapid.Byte(), len(b), len(b)).Draw(t, "bits") {
		keep := min(max(p.Bits()-8*i, 0), 8)
		b[i] |= r & byte(0xff>>keep)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// address draws any, near the blocks that mean something often.
func address(t *rapid.T) netip.Addr {
	p := rapid.SampledFrom(prefixes("0.0.0.0/0", "::/0", "::ffff:0:0/96", "10.0.0.0/8", "192.0.0.0/8", "198.0.0.0/8", "2000::/3", "2001::/16", "fc00::/6", "64:ff9b::/32")).Draw(t, "around")
	return inside(t, p)
}
