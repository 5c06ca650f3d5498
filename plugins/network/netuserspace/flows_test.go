package netuserspace

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func cidrs(all ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// everything but what no rule can give.
func anywhere() network.Egress { return network.Egress{Default: network.Allow} }

// errnos by family: a program that is refused learns it at once, and as what.
func refused(err error) bool {
	return errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EACCES)
}

// quickly is less than any retransmission.
const quickly = 900 * time.Millisecond

func TestLiteralsNeedARuleOrThePublicDefault(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443, 8080)
	for name, c := range map[string]struct {
		egress network.Egress
		open   map[string]bool
	}{
		"nothing": {network.Egress{}, map[string]bool{"93.184.216.34:443": false, "[2606:2800:220::7]:443": false, "10.77.0.9:443": false}},
		"a rule": {network.Egress{Allow: []network.Rule{
			{CIDRs: cidrs("93.184.216.0/25", "2606:2800:220::/64"), Ports: []network.Ports{{Protocol: "tcp", First: 443, Last: 443}, {Protocol: "udp", First: 443, Last: 443}}},
		}}, map[string]bool{
			"93.184.216.34:443": true, "93.184.216.34:8080": false, "93.184.216.200:443": false,
			"[2606:2800:220::7]:443": true, "[2606:2800:220::7]:8080": false, "[2606:2800:220:1::7]:443": false, "10.77.0.9:443": false,
		}},
		"public": {network.Egress{Default: network.Public}, map[string]bool{
			"93.184.216.34:443": true, "[2606:2800:220::7]:8080": true, "9.9.9.9:443": true, "151.101.7.1:443": true,
			"10.77.0.9:443": false, "[fd77::9]:443": false, "169.254.169.254:8080": false, "[fd00:ec2::254]:443": false, "100.64.9.1:443": false,
			"151.101.7.2:443": false, "[2a04:4e42:7::2]:443": false, // public ones, but the host's own
		}},
		"all": {anywhere(), map[string]bool{
			"93.184.216.34:443": true, "[fd77::9]:443": true, "169.254.169.254:8080": true, "151.101.7.2:443": false,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := attach(t, lab, options{egress: c.egress})
			for at, open := range c.open {
				for _, proto := range []string{"tcp", "udp"} {
					start := time.Now()
					got, err := s.ask(proto, at)
					switch {
					case open && (err != nil || !strings.HasPrefix(got, proto+" "+at+" ")):
						t.Errorf("%s %s: %q, %v", proto, at, got, err)
					case !open && !refused(err):
						t.Errorf("%s %s: %q, %v, want a refusal", proto, at, got, err)
					case !open && time.Since(start) > quickly:
						t.Errorf("the refusal of %s %s took %s", proto, at, time.Since(start))
					}
				}
			}
		})
	}
}

func TestNoRuleReachesTheHost(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Host.Echo(t, 7777)
	lab.DNS.Set("host.example", netlab.HostV4.String(), netlab.HostV6.String())
	s := attach(t, lab, options{egress: network.Egress{Default: network.Allow, Allow: []network.Rule{
		{Names: []string{"host.example"}, CIDRs: cidrs("151.101.7.2/32", "2a04:4e42:7::2/128", "127.0.0.0/8", "0.0.0.0/0", "::/0")},
	}}})
	name, err := s.resolve("host.example", false)
	if err != nil {
		t.Fatal(err)
	}
	at := func(a netip.Addr) string { return netip.AddrPortFrom(a, 7777).String() }
	s.wantSilence(t, at(netlab.HostV4), at(netlab.HostV6), at(name), "[::ffff:127.0.0.1]:7777", "0.0.0.9:7777")
	for _, a := range []netip.Addr{netlab.HostV4, netlab.HostV6, name} {
		s.wantDenial(t, at(a), network.ReasonHost)
	}
}

// A translator would lead back to the host what is for an address of IPv6 that has the
// host's in it, in a network's own prefix as in the one that all know.
func TestNoTranslatorIsAWayToTheHost(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: network.Egress{Allow: []network.Rule{{CIDRs: cidrs("64:ff9b::/96", "64:ff9b:1::/48")}}}})
	// 151.101.7.2 behind prefixes of 96, 96, 64, 56 and 48 bits (RFC 6052, 2.2).
	all := []string{"[64:ff9b::9765:702]:7777", "[64:ff9b:1:2:3:4:9765:702]:7777", "[64:ff9b:1:2:97:6507:200:0]:7777", "[64:ff9b:1:297:65:702::]:7777", "[64:ff9b:1:9765:7:200::1]:7777"}
	s.wantSilence(t, all...)
	for _, at := range all {
		s.wantDenial(t, netip.MustParseAddrPort(at).String(), network.ReasonHost)
	}
}

// wantSilence asks all at once: what nothing refuses, nothing answers either, and is
// waited for.
func (s *sandbox) wantSilence(t *testing.T, all ...string) {
	t.Helper()
	var wg sync.WaitGroup
	for _, at := range all {
		for _, proto := range []string{"tcp", "udp"} {
			wg.Go(func() {
				if got, err := s.ask(proto, at); err == nil {
					t.Errorf("%s %s: %q", proto, at, got)
				}
			})
		}
	}
	wg.Wait()
}

func TestNothingOfADeniedFlowLeavesTheHost(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	s := attach(t, lab, options{egress: network.Egress{Allow: []network.Rule{{Names: []string{"allowed.example"}}}}})
	lab.ForgetPackets(t)
	s.wantSilence(t, "93.184.216.34:443", "[2606:2800:220::7]:443", "198.18.99.99:443", "198.19.0.1:1", "0.0.0.1:443", "224.0.0.5:443", "255.255.255.255:443")
	if _, err := s.resolve("denied.example", false); err == nil {
		t.Error("the denied name was resolved")
	}
	if got := lab.Packets(t); len(got) != 0 {
		t.Errorf("packets left the host: %v", got)
	}
	for _, want := range []struct {
		dst    string
		reason network.Reason
	}{{"93.184.216.34:443", network.ReasonDefault}, {"198.18.99.99:443", network.ReasonUnbound}} {
		s.wantDenial(t, want.dst, want.reason)
	}
	if st := s.askStatus(); st.Denied < 10 || !st.OK {
		t.Errorf("status %+v", st)
	}
}

// wantDenial looks through what was told, also to earlier calls, until it finds one.
func (s *sandbox) wantDenial(t *testing.T, dst string, reason network.Reason) {
	t.Helper()
	timeout := time.After(5 * time.Second)
	wanted := func(d network.Denial) bool { return d.Dst.String() == dst && d.Reason == reason }
	for !slices.ContainsFunc(s.told, wanted) {
		select {
		case d := <-s.denials:
			s.told = append(s.told, d)
		case <-timeout:
			t.Fatalf("no denial of %s for %s: %+v", dst, reason, s.told)
		}
	}
}

func TestConnectTellsTheTruth(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: anywhere()})
	for _, at := range []string{"93.184.216.34:81", "[2606:2800:220::7]:81"} {
		if c, err := s.dial("tcp", at); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: connected %t, %v, want a refusal as from the server", at, c != nil, err)
		}
	}
	// A server that does not answer is neither there nor not.
	l, err := lab.Internet.Listen("tcp4", "93.184.216.35:82")
	if err != nil {
		t.Fatal(err)
	}
	c := s.mustDial("tcp", "93.184.216.35:82")
	l.Close()
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the reset of a connection that was never accepted was not passed on")
	}
	s.refusedSoon(t, "93.184.216.35:82")
}

func TestNamesAreReachedWhereverTheyAre(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	lab.DNS.Set("both.example", "93.184.216.34", "2606:2800:220::7")
	lab.DNS.Set("four.example", "93.184.216.35")
	lab.DNS.Set("six.example", "2606:2800:220::8")
	lab.DNS.Set("private.example", "10.77.0.9")
	lab.DNS.Set("host.example", "151.101.7.2")
	lab.DNS.Set("loopback.example", "127.0.0.1")
	s := attach(t, lab, options{egress: network.Egress{Allow: []network.Rule{
		{Names: []string{"both.example", "four.example", "six.example", "private.example", "host.example", "loopback.example"}, Ports: []network.Ports{{Protocol: "tcp", First: 443, Last: 443}, {Protocol: "udp", First: 443, Last: 443}}},
	}}})
	for name, reached := range map[string]string{"both.example": "", "four.example": "93.184.216.35:443", "six.example": "[2606:2800:220::8]:443"} {
		for _, v6 := range []bool{false, true} {
			a, err := s.resolve(name, v6)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			for _, proto := range []string{"tcp", "udp"} {
				got, err := s.ask(proto, netip.AddrPortFrom(a, 443).String())
				if err != nil || !strings.HasPrefix(got, proto+" "+reached) {
					t.Errorf("%s %s at %s: %q, %v", proto, name, a, got, err)
				}
				if _, err := s.ask(proto, netip.AddrPortFrom(a, 80).String()); !refused(err) {
					t.Errorf("%s %s port 80: %v", proto, name, err)
				}
			}
		}
	}
	for _, name := range []string{"private.example", "host.example", "loopback.example"} {
		a, err := s.resolve(name, false)
		if err != nil {
			continue
		}
		for _, proto := range []string{"tcp", "udp"} {
			if got, err := s.ask(proto, netip.AddrPortFrom(a, 443).String()); !refused(err) {
				t.Errorf("%s %s: %q, %v", proto, name, got, err)
			}
		}
	}
	byName := map[string]bool{}
	for _, f := range s.askStatus().Flows {
		byName[f.Name] = f.Connections > 0 && f.RxBytes > 0
	}
	if !byName["six.example"] || !byName["both.example"] {
		t.Errorf("flows %v", byName)
	}
}

func TestANameThatRotatesIsNeverDenied(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	lab.DNS.Rotate("rotate.example", "93.184.216.1", "93.184.216.2", "93.184.216.3", "2606:2800:220::1", "2606:2800:220::2")
	s := attach(t, lab, options{egress: network.Egress{Allow: []network.Rule{{Names: []string{"rotate.example"}}}}})
	n := 10000
	if testing.Short() {
		n = 500
	}
	a, err := s.resolve("rotate.example", false)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	failed := make(chan error, n)
	for range 20 {
		wg.Go(func() {
			for i := range n / 20 {
				if i%100 == 50 {
					if _, err := s.resolve("rotate.example", i%200 == 50); err != nil {
						failed <- err
					}
				}
				c, err := s.dial("tcp", netip.AddrPortFrom(a, 443).String())
				if err != nil {
					failed <- err
					continue
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	close(failed)
	count := 0
	for err := range failed {
		if count++; count < 5 {
			t.Error(err)
		}
	}
	if st := s.askStatus(); count > 0 || st.Denied > 0 {
		t.Errorf("%d of %d failed, %d denied", count, n, st.Denied)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func TestBytesArriveAndHalvesClose(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: anywhere()})
	l, err := lab.Internet.Listen("tcp", "[::]:9000")
	if err != nil {
		t.Fatal(err)
	}
	// What comes is answered with its digest and itself, once it has ended.
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, err := io.ReadAll(c)
				if err != nil {
					return
				}
				d := sha256.Sum256(b)
				_, _ = c.Write(append(d[:], b...))
			}()
		}
	}()
	var wg sync.WaitGroup
	for i, at := range []string{"93.184.216.34:9000", "[2606:2800:220::7]:9000"} {
		for _, size := range []int{0, 1, 65536, 65537, 64<<20 + i} {
			wg.Go(func() {
				data := random(size)
				c, err := s.dial("tcp", at)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				if _, err := c.Write(data); err != nil {
					t.Error(err)
				}
				if err := c.(*net.TCPConn).CloseWrite(); err != nil {
					t.Error(err)
				}
				got, err := io.ReadAll(c)
				want := sha256.Sum256(data)
				if err != nil || !bytes.Equal(got, append(want[:], data...)) {
					t.Errorf("%s: %d of %d bytes came back, %v", at, len(got)-32, size, err)
				}
			})
		}
	}
	wg.Wait()
}

// A connection begins among others that are quiet, and leaves them when it is busy:
// by how much it moves, by pieces that are large, and by an end that reads too slowly.
func TestBytesStayInOrderHoweverTheyCome(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: anywhere()})
	l, err := lab.Internet.Listen("tcp", "[::]:9000")
	if err != nil {
		t.Fatal(err)
	}
	go serve(l)
	var wg sync.WaitGroup
	for i, way := range []struct {
		pieces []int
		total  int
		pause  time.Duration // of the reader, at first
	}{
		{[]int{1, 100, 4000}, 1 << 20, 0},
		{[]int{1, 70000}, 1 << 20, 0},
		{[]int{10, 64 << 10, 3}, 4 << 20, 0},
		{[]int{1000}, 24 << 20, 300 * time.Millisecond},
		{[]int{300 << 10}, 24 << 20, 300 * time.Millisecond},
		{[]int{1}, 2000, 0},
	} {
		wg.Go(func() {
			data := random(way.total)
			at := []string{"93.184.216.34:9000", "[2606:2800:220::7]:9000"}[i%2]
			c, err := s.dial("tcp", at)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			wg.Go(func() {
				for left, k := data, 0; len(left) > 0; k++ {
					n := min(len(left), way.pieces[k%len(way.pieces)])
					if _, err := c.Write(left[:n]); err != nil {
						t.Errorf("%+v: %v", way, err)
						return
					}
					left = left[n:]
				}
				_ = c.(*net.TCPConn).CloseWrite()
			})
			time.Sleep(way.pause)
			got, err := io.ReadAll(c)
			if _, got, _ = bytes.Cut(got, []byte("\n")); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%+v: %d bytes came back, and not those, %v", way, len(got), err)
			}
		})
	}
	wg.Wait()
}

// An end that was done, and is then broken, breaks the other as well.
func TestResetsArePassedOnByHalfAConnection(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: anywhere()})
	for _, far := range []bool{false, true} {
		breaks, reads := connected(t, lab, s)
		defer breaks.Close()
		defer reads.Close()
		if far {
			breaks, reads = reads, breaks
		}
		_ = breaks.CloseWrite()
		_ = reads.SetDeadline(time.Now().Add(5 * time.Second))
		if n, err := reads.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("far end breaks %t: half of it is closed, and the other end reads %d bytes, %v", far, n, err)
		}
		_ = breaks.SetLinger(0)
		breaks.Close()
		var err error
		for err == nil {
			_, err = reads.Write([]byte("x"))
			time.Sleep(time.Millisecond)
		}
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("far end breaks %t: %v", far, err)
		}
	}
}

func TestResetsArePassedOn(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: anywhere()})
	for _, far := range []bool{false, true} {
		breaks, reads := connected(t, lab, s)
		defer reads.Close()
		if far {
			breaks, reads = reads, breaks
		}
		_ = breaks.SetLinger(0)
		breaks.Close()
		_ = reads.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := reads.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("far end breaks %t: %v", far, err)
		}
	}
}

func TestBackpressureIsPassedOn(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	c, out := connected(t, lab, attach(t, lab, options{egress: anywhere()})) // which never reads
	defer out.Close()
	_ = c.SetWriteDeadline(time.Now().Add(2 * time.Second))
	n, err := c.Write(make([]byte, 256<<20))
	if err == nil {
		t.Errorf("%d bytes went nowhere", n)
	}
}

func TestManyFlowsAtOnce(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	s := attach(t, lab, options{egress: anywhere()})
	const n = 2000
	conns := make([]net.Conn, n)
	var wg sync.WaitGroup
	for w := range 50 {
		wg.Go(func() {
			for i := w; i < n; i += 50 {
				at := fmt.Sprintf("93.184.216.%d:443", 1+i%200)
				if i%2 == 0 {
					at = fmt.Sprintf("[2606:2800:220::%x]:443", 1+i%200)
				}
				c, err := s.dial("tcp", at)
				if err != nil {
					t.Error(err)
					return
				}
				conns[i] = c
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for i, c := range conns {
		wg.Go(func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			want := fmt.Sprintf("flow %d", i)
			if _, err := io.WriteString(c, want); err != nil {
				t.Error(err)
				return
			}
			_ = c.(*net.TCPConn).CloseWrite()
			b, err := io.ReadAll(c)
			if err != nil || !strings.HasSuffix(string(b), want) {
				t.Errorf("%s: %q, %v", want, b, err)
			}
		})
	}
	wg.Wait()
}

func TestDatagramsOfAllSizes(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	s := attach(t, lab, options{egress: anywhere()})
	for _, at := range []string{"93.184.216.34:443", "[2606:2800:220::7]:443"} {
		c := s.mustDial("udp", at)
		for _, size := range []int{0, 1, 2, 3, 1472, 1500, 9000, 65000} {
			data := random(size)
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Write(data); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 66000)
			n, err := c.Read(b)
			if err != nil || !bytes.HasSuffix(b[:n], data) || !bytes.HasPrefix(b[:n], []byte("udp "+at)) {
				t.Errorf("%s: %d of %d bytes, %v", at, n, size, err)
			}
		}
	}
	// As from the server where nobody listens.
	c := s.mustDial("udp", "93.184.216.34:81")
	for range 2 {
		_, _ = c.Write([]byte("x"))
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Read(make([]byte, 9)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Error(err)
		}
	}
}
