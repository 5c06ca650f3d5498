package resolver

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
)

const (
	tries     = 2 // of each upstream
	tryLimit  = 1500 * time.Millisecond
	ednsSize  = 1232 // what passes everywhere in one piece (DNS flag day 2020)
	strangers = 64   // answers to something else that a try reads past
)

var (
	errNoUpstream = errors.New("no upstream resolver is configured")
	errStrangers  = errors.New("answers are to other questions")
	errFormat     = errors.New("the question was not understood")
)

// exchange asks the upstreams in turn until one knows, beginning with the one that
// answered last. That a name does not exist is an answer.
func (r *Resolver) exchange(ctx context.Context, n dnsname.Name, qtype uint16) (*dns.Msg, error) {
	servers := r.c.Upstream
	err := errNoUpstream
	leader := int(r.leader.Load())
	for i := range tries * len(servers) {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
			break
		}
		at := (leader + i) % len(servers)
		var m *dns.Msg
		m, err = r.try(ctx, servers[at], n, qtype)
		if err == nil {
			r.leader.Store(uint32(at))
			return m, nil
		}
	}
	return nil, fmt.Errorf("resolve %s: %w", n, err)
}

// try asks one upstream once, and again over TCP if the answer was too long.
func (r *Resolver) try(ctx context.Context, server netip.AddrPort, n dnsname.Name, qtype uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	q := new(dns.Msg).SetQuestion(string(n)+".", qtype)
	q.SetEdns0(ednsSize, false)
	m, err := r.ask(ctx, "udp", server, q)
	if errors.Is(err, errFormat) {
		// A server from before EDNS (RFC 6891 section 7).
		q.Extra = nil
		m, err = r.ask(ctx, "udp", server, q)
	}
	if err == nil && m.Truncated {
		m, err = r.ask(ctx, "tcp", server, q)
	}
	if err != nil {
		return nil, err
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("%s answers %s", server, dns.RcodeToString[m.Rcode])
	}
	return m, nil
}

// ask sends a question with a new id, from a new socket whose port the kernel has
// chosen: an answer by somebody else has to guess both.
func (r *Resolver) ask(ctx context.Context, network string, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	var id [2]byte
	_, _ = rand.Read(id[:]) // never fails
	q.Id = binary.BigEndian.Uint16(id[:])
	wire, err := q.Pack()
	if err != nil {
		return nil, err
	}
	conn, err := r.c.Dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if network == "tcp" {
		wire = append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
	}
	if _, err := conn.Write(wire); err != nil {
		return nil, err
	}
	receive := packets(conn)
	if network == "tcp" {
		receive = stream(conn)
	}
	for range strangers {
		wire, err := receive()
		if err != nil {
			return nil, err
		}
		m := new(dns.Msg)
		if m.Unpack(wire) != nil && !m.Truncated { // what is cut off may end in a record
			continue
		}
		switch answers(m, q) {
		case yes:
			return m, nil
		case unlike:
			return nil, errFormat
		}
	}
	return nil, errStrangers
}

func packets(conn net.Conn) func() ([]byte, error) {
	buf := make([]byte, 4096)
	return func() ([]byte, error) {
		n, err := conn.Read(buf)
		return buf[:n], err
	}
}

func stream(conn net.Conn) func() ([]byte, error) {
	return func() ([]byte, error) {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return nil, err
		}
		buf := make([]byte, binary.BigEndian.Uint16(size[:]))
		_, err := io.ReadFull(conn, buf)
		return buf, err
	}
}

type match uint8

const (
	no match = iota
	yes
	unlike // the server did not understand
)

// answers compares with the question that was sent. What does not fit may be forged,
// and the answer may still come.
func answers(m, q *dns.Msg) match {
	if m.Id != q.Id || !m.Response || m.Opcode != dns.OpcodeQuery {
		return no
	}
	if m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented {
		return unlike // often without the question
	}
	if len(m.Question) == 0 && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return yes // a refusal, from those who save the question
	}
	if len(m.Question) != 1 {
		return no
	}
	got, want := m.Question[0], q.Question[0]
	if got.Qtype != want.Qtype || got.Qclass != want.Qclass || !strings.EqualFold(got.Name, want.Name) {
		return no
	}
	return yes
}
