package packet

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"
)

var (
	gateway4 = netip.MustParseAddr("192.0.0.1")
	gateway6 = netip.MustParseAddr("fd6e:7563:6c75::1")
	at       = MAC{2, 0, 0, 0, 0, 1}
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestARPIsAnsweredForOneAddress(t *testing.T) {
	const request = "0001080006040001" + "0a0b0c0d0e0f" + "c0000002" + "000000000000" + "c0000001"
	ask := unhex(t, request)
	const want = "0001080006040002" + "020000000001" + "c0000001" + "0a0b0c0d0e0f" + "c0000002"
	if got := ARPReply(ask, gateway4, at); hex.EncodeToString(got) != want {
		t.Errorf("%x, want %s", got, want)
	}
	if got := ARPReply(append(slices.Clone(ask), make([]byte, 18)...), gateway4, at); hex.EncodeToString(got) != want {
		t.Errorf("padded: %x, want %s", got, want)
	}
	for what, change := range map[string]func([]byte) []byte{
		"another address":  func(b []byte) []byte { b[27] = 3; return b },
		"an answer":        func(b []byte) []byte { b[7] = 2; return b },
		"another protocol": func(b []byte) []byte { b[3] = 1; return b },
		"other sizes":      func(b []byte) []byte { b[5] = 16; return b },
		"cut off":          func(b []byte) []byte { return b[:27] },
		"nothing":          func([]byte) []byte { return nil },
	} {
		if got := ARPReply(change(slices.Clone(ask)), gateway4, at); got != nil {
			t.Errorf("%s: %x", what, got)
		}
	}
}

func TestSolicitationsAreAnsweredForOneAddress(t *testing.T) {
	// From fd6e:7563:6c75::2 to the solicited-node address, with the asker's hardware address.
	const solicit = "6000000000203aff" + "fd6e75636c7500000000000000000002" + "ff0200000000000000000001ff000001" +
		"8700" + "0000" + "00000000" + "fd6e75636c7500000000000000000001" + "01010a0b0c0d0e0f"
	answer := func(b []byte) []byte {
		p, ok := Parse(b)
		if !ok {
			return nil
		}
		return Advertisement(&p, gateway6, at)
	}
	ask := unhex(t, solicit)
	got := answer(slices.Clone(ask))
	if got == nil {
		t.Fatal("no answer")
	}
	p := valid(t, got)
	const body = "e0000000" + "fd6e75636c7500000000000000000001" + "0201020000000001"
	if p.Src.Addr() != gateway6 || p.Dst.Addr().String() != "fd6e:7563:6c75::2" || got[7] != 255 || p.Payload[0] != 136 || hex.EncodeToString(p.Payload[4:]) != body {
		t.Errorf("%x", got)
	}
	for what, change := range map[string]func([]byte) []byte{
		"another address":   func(b []byte) []byte { b[63] = 3; return b },
		"forwarded":         func(b []byte) []byte { b[7] = 254; return b },
		"an advertisement":  func(b []byte) []byte { b[40] = 136; return b },
		"another code":      func(b []byte) []byte { b[41] = 1; return b },
		"another protocol":  func(b []byte) []byte { b[6] = 17; return b },
		"whether it's free": func(b []byte) []byte { clear(b[8:24]); return b },
		"cut off":           func(b []byte) []byte { b[5] = 23; return b[:63] },
	} {
		if got := answer(change(slices.Clone(ask))); got != nil {
			t.Errorf("%s: %x", what, got)
		}
	}
}
