package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/dump"
)

// ask puts a question. What is refused has a code and no answer, and counts as failed.
func ask(ctx context.Context, p Probe) Result {
	server := p.To
	if server == "" {
		conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
		if err != nil {
			return failure(err)
		}
		if len(conf.Servers) == 0 {
			return failure(errors.New("there is no resolver"))
		}
		server = net.JoinHostPort(conf.Servers[0], conf.Port)
	}
	qtype, ok := dns.StringToType[p.Type]
	if !ok {
		return failure(fmt.Errorf("no type %q", p.Type))
	}
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(p.Name), qtype)
	c := &dns.Client{Net: p.Over, Timeout: p.Wait}
	answer, _, err := c.ExchangeContext(ctx, m, server)
	if err != nil {
		return failure(err)
	}
	r := Result{RCode: answer.Rcode, OK: answer.Rcode == dns.RcodeSuccess && len(answer.Answer) > 0}
	for _, rr := range answer.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			r.Addresses = append(r.Addresses, rr.A.String())
		case *dns.AAAA:
			// As it came: net.IP writes an IPv4 address in IPv6 clothes as IPv4.
			if a, ok := netip.AddrFromSlice(rr.AAAA); ok {
				r.Addresses = append(r.Addresses, a.String())
			}
		}
	}
	return r
}

// serve echoes at an address, for as long as the probe waits. A line of the same form as
// that of netlab's servers comes first.
func serve(p Probe) Result {
	stream, err := net.Listen("tcp", p.To)
	if err != nil {
		return failure(err)
	}
	defer stream.Close()
	packet, err := net.ListenPacket("udp", p.To)
	if err != nil {
		return failure(err)
	}
	defer packet.Close()
	go func() {
		for {
			conn, err := stream.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = fmt.Fprintf(conn, "tcp %s %s\n", conn.LocalAddr(), conn.RemoteAddr())
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := packet.ReadFrom(buf)
			if err != nil {
				return
			}
			line := fmt.Sprintf("udp %s %s\n", packet.LocalAddr(), from)
			_, _ = packet.WriteTo(append([]byte(line), buf[:n]...), from)
		}
	}()
	time.Sleep(p.Wait)
	return Result{OK: true}
}

// self tells what a program in the sandbox can know of its network.
func self() Result {
	r := Result{OK: true}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return failure(err)
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			r.Addresses = append(r.Addresses, p.Addr().String())
		}
	}
	// A seccomp filter may refuse the socket: then there are no gateways to try.
	routes, err := dump.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		r.Err = err.Error()
	}
	for _, route := range routes {
		if route.Gw != nil {
			r.Gateways = append(r.Gateways, route.Gw.String())
		}
	}
	resolv, err1 := os.ReadFile("/etc/resolv.conf")
	hosts, err2 := os.ReadFile("/etc/hosts")
	if err := errors.Join(err1, err2); err != nil {
		return failure(err)
	}
	r.Resolv, r.Hosts = string(resolv), string(hosts)
	return r
}

// Nameservers takes them out of a resolv.conf.
func Nameservers(resolv string) []string {
	var all []string
	lines := bufio.NewScanner(strings.NewReader(resolv))
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) > 1 && f[0] == "nameserver" {
			all = append(all, f[1])
		}
	}
	return all
}
