package lab

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func laboratory(t *testing.T) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make network namespaces") //nolint:forbidigo // testutil is of another module
	}
	l, err := New(true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// What the rules rely on: servers answer, and all that leaves the host is seen.
func TestWhatLeavesTheHostIsSeen(t *testing.T) {
	l := laboratory(t)
	for _, a := range []netip.Addr{SomewhereV4, SomewhereV6, ElsewhereV4, ElsewhereV6} {
		for _, port := range []uint16{Port, OtherPort} {
			if got, err := l.Host.Ask(netip.AddrPortFrom(a, port), 5*time.Second); err != nil || got != Greeting {
				t.Errorf("%s, port %d: %q, %v", a, port, got, err)
			}
		}
	}
	if err := l.Host.Try(1, 0); err != nil {
		t.Fatal(err)
	}
	packets, err := l.Left()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range packets {
		seen[p.String()] = true
	}
	for _, a := range Attempts() {
		want := Packet{Protocol: a.Protocol, Dst: a.To}.String()
		if !seen[want] {
			t.Errorf("%s was not seen, of %d packets", want, len(packets))
		}
	}
	allowed := len(Denied(packets, true)) - len(Denied(packets, false))
	if allowed == 0 || len(Denied(packets, false)) == 0 {
		t.Errorf("of %d packets %d are told from the denied ones", len(packets), allowed)
	}
}

// A census sees whatever is made, and nothing where nothing is.
func TestCensusSeesChanges(t *testing.T) {
	l := laboratory(t)
	before, err := l.Host.Census()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	if again, err := l.Host.Census(); err != nil || len(before.Changes(again)) > 0 {
		t.Fatalf("it changes by itself: %q, %v", before.Changes(again), err)
	}
	for what, do := range map[string]func() error{
		"+ link test0":                                     func() error { return AddBridge("test0") },
		"+ address 10.1.1.1/32 on uplink0":                 func() error { return Here.AddAddr(Uplink, netip.MustParsePrefix("10.1.1.1/32")) },
		"+ route 10.2.0.0/16 by 151.101.7.1 over uplink0":  func() error { return Here.AddRoute(netip.MustParsePrefix("10.2.0.0/16"), gatewayV4.Addr(), Uplink, 0) },
		"+ route 10.3.0.0/16 by - over uplink0, table 100": func() error { return Here.AddRoute(netip.MustParsePrefix("10.3.0.0/16"), netip.Addr{}, Uplink, 100) },
		`from link "test9"`:                                func() error { return RoutingRule{Priority: 7, Link: "test9", Family: 2}.Add() },
		"+ nftables: table 1 test":                         func() error { return AddTable("test") },
		"+ sysctl ipv4/conf/all/rp_filter = 1":             func() error { return SetSysctl("ipv4/conf/all/rp_filter", "1") },
	} {
		if err := l.Host.Do(do); err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		after, err := l.Host.Census()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(before.Changes(after), "\n"); !strings.Contains(got, what) {
			t.Errorf("no %q in\n%s", what, got)
		}
	}
}
