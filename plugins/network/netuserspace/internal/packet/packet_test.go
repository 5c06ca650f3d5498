package packet

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

var pairs = [][2]netip.AddrPort{
	{netip.MustParseAddrPort("192.0.0.2:4000"), netip.MustParseAddrPort("93.184.216.34:443")},
	{netip.MustParseAddrPort("[fd6e:7563:6c75::2]:4000"), netip.MustParseAddrPort("[2606:2800:220::7]:443")},
}

// valid fails if a checksum does not come out as a receiver wants it.
func valid(t *testing.T, b []byte) Packet {
	t.Helper()
	p, ok := Parse(b)
	if !ok {
		t.Fatalf("not a packet: %x", b)
	}
	if p.Dst.Addr().Is4() {
		if c := sum(b[:size4], 0); c != 0xffff {
			t.Errorf("checksum of the header: %#x", c)
		}
	}
	var initial uint32
	if p.Protocol != unix.IPPROTO_ICMP {
		initial = pseudo(p.Protocol, p.Src.Addr(), p.Dst.Addr(), len(p.Payload))
	}
	if c := sum(p.Payload, initial); c != 0xffff {
		t.Errorf("checksum: %#x", c)
	}
	return p
}

func TestWhatIsMadeIsWhatAReceiverWants(t *testing.T) {
	for _, pair := range pairs {
		src, dst := pair[0], pair[1]
		for _, data := range []string{"", "x", "xy", "xyz", "a longer one, and odd."} {
			p := valid(t, UDP(nil, src, dst, []byte(data)))
			if p.Protocol != unix.IPPROTO_UDP || p.Src != src || p.Dst != dst || string(p.Payload[8:]) != data {
				t.Errorf("%+v", p)
			}
			u := valid(t, Unreachable(nil, p.Whole, dst.Addr(), src.Addr(), NoPort))
			if u.Src.Addr() != dst.Addr() || u.Dst.Addr() != src.Addr() {
				t.Errorf("%+v", u)
			}
			e := valid(t, EchoReply(nil, src.Addr(), dst.Addr(), []byte("\x00\x01\x00\x02"+data)))
			if _, ok := e.Echo(); ok {
				t.Error("an answer is taken for a question")
			}
		}
		first := UDP(nil, src, dst, []byte("\x00\x00\x00\x07\x00\x00\x00\x00\x50\x02\x00\x00\x00\x00\x00\x00")) // long enough
		p, _ := Parse(first)
		r := valid(t, Reset(nil, &p))
		if r.Src != dst || r.Dst != src || r.First() {
			t.Errorf("%+v", r)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, pair := range pairs {
		f.Add(UDP(nil, pair[0], pair[1], []byte("data")))
		f.Add(EchoReply(nil, pair[0].Addr(), pair[1].Addr(), []byte("0123")))
	}
	f.Add([]byte{0x4f})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := Parse(b)
		if !ok {
			return
		}
		if len(p.Whole) > len(b) || len(p.Payload) > len(p.Whole) {
			t.Errorf("%+v", p)
		}
		p.First()
		p.Echo()
		p.SetTTL(1)
	})
}
