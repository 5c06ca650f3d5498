package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// listen gives sockets for both protocols on one port of loopback.
func listen(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 10 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if udp, err := net.ListenPacket("udp", tcp.Addr().String()); err == nil {
			return udp, tcp
		}
		tcp.Close()
	}
	t.Fatal("no port is free for both protocols")
	return nil, nil
}

// serve starts a resolver on loopback; stop ends it and waits.
func (b *bench) serve(t testing.TB) (server string, stop func() error) {
	t.Helper()
	udp, tcp := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, udp, tcp) }()
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(idleLimit / 2):
			return context.DeadlineExceeded
		}
	})
	t.Cleanup(func() { _ = stop() })
	return udp.LocalAddr().String(), stop
}

// A whole way over real sockets: a client, the resolver, an upstream.
func TestServe(t *testing.T) {
	udp, tcp := listen(t)
	answer := zone(t, "a.example. 300 A 8.8.8.8", "long.example. 300 A 8.8.4.4")
	var mu sync.Mutex
	ports := make(map[string]bool)
	ids := make(map[uint16]bool)
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		ports[w.RemoteAddr().String()] = true
		ids[q.Id] = true
		mu.Unlock()
		out := answer(q, "", "")[0]
		if w.RemoteAddr().Network() == "udp" && strings.HasPrefix(q.Question[0].Name, "long") {
			out[2] |= 2 // TC
		}
		_, _ = w.Write(out)
	})
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: handler}, {Listener: tcp, Handler: handler}} {
		go func() { _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	b := newBench(t, names2rules("*.example"), nil, func(c *Config, _ *bench) {
		c.Dial = nil
		c.Upstream = []netip.AddrPort{netip.MustParseAddrPort(udp.LocalAddr().String())}
	})
	server, stop := b.serve(t)
	want := map[string]string{"a.example.": "NOERROR 198.18.1.0", "long.example.": "NOERROR 198.18.1.1", "none.example.": "NXDOMAIN", "a.other.": "REFUSED"}
	for _, name := range []string{"a.example.", "long.example.", "none.example.", "a.other."} {
		for _, network := range []string{"udp", "tcp"} {
			m, _, err := (&dns.Client{Net: network}).Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), server)
			if err != nil || brief(m) != want[name] {
				t.Errorf("%s over %s: %v, %v; want %s", name, network, m, err, want[name])
			}
		}
	}
	// Each question had a socket and an id of its own: three names, two types, one of
	// them twice.
	mu.Lock()
	if len(ports) < 7 || len(ids) < 7 {
		t.Errorf("%d ports, %d ids", len(ports), len(ids))
	}
	mu.Unlock()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", server); err == nil {
		t.Error("it still listens")
	}
}

func TestSeveralQuestionsOnOneConnection(t *testing.T) {
	b := newBench(t, names2rules("*.example"), []string{"a.example. 300 A 8.8.8.8", "b.example. 300 A 8.8.8.8"}, nil)
	server, _ := b.serve(t)
	conn, err := dns.Dial("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i, name := range []string{"a.example.", "b.example.", "a.example."} {
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		m, err := conn.ReadMsg()
		if want := fmt.Sprintf("NOERROR 198.18.1.%d", i%2); err != nil || brief(m) != want {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	b := newBench(t, names2rules("a.example"), []string{"a.example. 300 A 8.8.8.8"}, nil)
	server, stop := b.serve(t)
	var open []net.Conn
	for range conns {
		conn, err := net.Dial("tcp", server)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
	}
	closed := func(conn net.Conn) bool {
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, err := conn.Read(make([]byte, 1))
		return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
	}
	more, err := net.Dial("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer more.Close()
	if !closed(more) {
		t.Error("one more is served")
	}
	// A message that is longer than any question ends its connection, which makes room.
	if _, err := open[0].Write([]byte{0xff, 0xff}); err != nil || !closed(open[0]) {
		t.Errorf("a long message is read: %v", err)
	}
	m, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion("a.example.", dns.TypeA), server)
	if err != nil || brief(m) != "NOERROR 198.18.1.0" {
		t.Errorf("UDP meanwhile: %v, %v", m, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	for _, conn := range open[1:] {
		if !closed(conn) {
			t.Error("a connection is left open")
		}
	}
}

// Names that hang do not keep others from being answered, until there are very many.
func TestSlowNamesAreNotInTheWay(t *testing.T) {
	b := newBench(t, names2rules("*.example"), nil, nil)
	answer := zone(t, "a.example. 300 A 8.8.8.8")
	b.up.set(func(q *dns.Msg, network, server string) [][]byte {
		if strings.HasPrefix(q.Question[0].Name, "slow") {
			return nil
		}
		return answer(q, network, server)
	})
	server, stop := b.serve(t)
	conn, err := dns.Dial("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range lookups - 1 {
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion(fmt.Sprintf("slow%d.example.", i), dns.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	m, _, err := new(dns.Client).Exchange(new(dns.Msg).SetQuestion("a.example.", dns.TypeA), server)
	if err != nil || m.Rcode != dns.RcodeSuccess || time.Since(began) > tryLimit {
		t.Errorf("%v, %v after %s", m, err, time.Since(began))
	}
	if err := stop(); err != nil {
		t.Errorf("it does not end: %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	const clients, each = 16, 100
	b := newBench(t, names2rules("*.example"), nil, nil)
	b.up.set(func(q *dns.Msg, _, _ string) [][]byte { return [][]byte{reply(t, q, "8.8.8.8", nil)} })
	server, stop := b.serve(t)
	var mu sync.Mutex
	owners := make(map[string]string)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			network := []string{"udp", "tcp"}[i%2]
			for j := range each {
				name := fmt.Sprintf("n%d.example.", j)
				m, _, err := (&dns.Client{Net: network}).Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), server)
				if err != nil || len(m.Answer) != 1 {
					t.Errorf("%s: %v, %v", name, m, err)
					return
				}
				own := m.Answer[0].(*dns.A).A.String()
				n, ok := b.NameOf(netip.MustParseAddr(own))
				if !ok || string(n)+"." != name {
					t.Errorf("%s is %s's", own, n)
				}
				mu.Lock()
				if before, ok := owners[name]; ok && before != own {
					t.Errorf("%s has %s and %s", name, before, own)
				}
				owners[name] = own
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if got := b.up.questions(); len(got) != 2*each || len(slices.Compact(got)) != 2*each {
		t.Errorf("%d questions, want %d", len(got), 2*each)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestASocketThatIsTakenAwayIsAnError(t *testing.T) {
	b := newBench(t, names2rules("a.example"), nil, nil)
	udp, tcp := listen(t)
	done := make(chan error, 1)
	go func() { done <- b.Serve(t.Context(), udp, tcp) }()
	udp.Close()
	if err := <-done; err == nil {
		t.Error("no error")
	}
	if _, err := tcp.Accept(); err == nil {
		t.Error("the other is left open")
	}
}

func TestCloseEndsServe(t *testing.T) {
	b := newBench(t, names2rules("a.example"), nil, nil)
	udp, tcp := listen(t)
	done := make(chan error, 1)
	go func() { done <- b.Serve(t.Context(), udp, tcp) }()
	b.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, _, err := udp.ReadFrom(nil); !errors.Is(err, net.ErrClosed) {
		t.Error("the socket is left open")
	}
}
