// Package probe is what tests have a sandbox try from inside: connections, datagrams
// and questions, each with what came of it. A flow counts as passed only if an echo
// server's line came back, since a network may accept what it does not carry.
package probe

import (
	"context"
	"sync"
	"time"
)

// The kinds of probes.
const (
	TCP    = "tcp"
	UDP    = "udp"
	Mapped = "mapped" // tcp to an IPv4 address in IPv6 clothes, over a socket of IPv6
	// MappedUDP is the same with a datagram.
	MappedUDP = "mapped-udp"
	ICMP      = "icmp"
	DNS       = "dns"   // a question to To, or to the sandbox's resolver if that is empty
	Serve     = "serve" // echo servers at To, for the time of Wait
	Self      = "self"  // addresses, gateways, resolv.conf, hosts
	Sleep     = "sleep"
	// Bulk sends Size bytes to an echo server over tcp while it reads them back, shuts its
	// side down, and reads to the end.
	Bulk = "bulk"
	// Datagram sends one of Size bytes to an echo server, and wants it back whole.
	Datagram = "datagram"
	// Flood opens as many connections as it is let, holds them, and closes them.
	Flood = "flood"
	// Raw sends one packet that is made by hand, From anywhere To anywhere, with the IP
	// protocol Proto. It passes if the kernel takes it: what becomes of it is seen
	// elsewhere. It needs NET_RAW.
	Raw = "raw"
	// Frame is Raw as an Ethernet frame on the sandbox's link, past its own rules and
	// routes.
	Frame = "frame"
	// Tamper undoes what was set up inside: it deletes the tables of nftables, and gives
	// the link the addresses of From and the route to To. It needs NET_ADMIN.
	Tamper = "tamper"
)

// Probe is one thing to try.
type Probe struct {
	ID   string
	Kind string
	// To is ADDRESS:PORT, or NAME:PORT which is resolved as programs do, first.
	To string
	// Family is "4" or "6" for one of them only.
	Family string `json:",omitempty"`
	// Name and Type are those of a question: "A", "AAAA", "TXT".
	Name string `json:",omitempty"`
	Type string `json:",omitempty"`
	// Over is "tcp" for a question that is not asked by a datagram.
	Over  string `json:",omitempty"`
	From  string `json:",omitempty"`
	Proto uint8  `json:",omitempty"`
	Flags uint8  `json:",omitempty"` // of TCP
	MAC   string `json:",omitempty"` // of the sender of a frame; the link's own if empty
	Size  int    `json:",omitempty"`
	// Wait bounds one try.
	Wait time.Duration `json:",omitempty"`
	// Times repeats the probe; the result counts. 0 for once.
	Times int `json:",omitempty"`
	// Alone has no other probe tried meanwhile: those before it are waited for.
	Alone bool `json:",omitempty"`
}

// Result is what came of a probe.
type Result struct {
	ID string
	OK bool
	// Err is of the last try that failed.
	Err    string `json:",omitempty"`
	Errno  int    `json:",omitempty"`
	Passed int    // tries
	Failed int
	// Line is the echo server's: see netlab.ParseEcho.
	Line string `json:",omitempty"`
	// Addresses are what a name was resolved to, an answer had, or Self has.
	Addresses []string `json:",omitempty"`
	Gateways  []string `json:",omitempty"`
	RCode     int      `json:",omitempty"`
	Resolv    string   `json:",omitempty"`
	Hosts     string   `json:",omitempty"`
	Took      time.Duration
	// Count is of connections that a flood held at once.
	Count int `json:",omitempty"`
}

// DefaultWait is what a probe waits that says nothing. It is long for a refusal that
// is a silence, and short for a machine that does too much at once.
const DefaultWait = 2 * time.Second

// Run tries everything, and tells of each result as it comes.
func Run(ctx context.Context, probes []Probe, tell func(Result)) {
	var all sync.WaitGroup
	var mu sync.Mutex
	slots := make(chan struct{}, 24)
	for _, p := range probes {
		if p.Alone {
			all.Wait()
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			r := repeat(ctx, p)
			mu.Lock()
			defer mu.Unlock()
			tell(r)
		})
		if p.Alone {
			all.Wait()
		}
	}
	all.Wait()
}

func repeat(ctx context.Context, p Probe) Result {
	if p.Wait == 0 {
		p.Wait = DefaultWait
	}
	start := time.Now()
	var last Result
	passed, failed := 0, 0
	for range max(p.Times, 1) {
		r := once(ctx, p)
		if r.OK {
			passed++
			if failed == 0 {
				last = r
			}
		} else {
			failed++
			last = r
		}
	}
	last.ID, last.Passed, last.Failed, last.OK = p.ID, passed, failed, failed == 0
	last.Took = time.Since(start)
	return last
}

func once(ctx context.Context, p Probe) Result {
	limit := p.Wait
	if p.Kind == Serve {
		limit += time.Minute // it ends by itself
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	switch p.Kind {
	case TCP, UDP:
		return flow(ctx, p)
	case Mapped, MappedUDP:
		return mapped(p)
	case ICMP:
		return ping(p)
	case DNS:
		return ask(ctx, p)
	case Serve:
		return serve(p)
	case Bulk:
		return bulk(ctx, p)
	case Datagram:
		return datagram(ctx, p)
	case Flood:
		return flood(ctx, p)
	case Raw:
		return raw(p)
	case Frame:
		return frame(p)
	case Tamper:
		return tamper(p)
	case Self:
		return self()
	case Sleep:
		time.Sleep(p.Wait)
		return Result{OK: true}
	default:
		return Result{Err: "no such probe: " + p.Kind}
	}
}
