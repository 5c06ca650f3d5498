package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/conformance/internal/lab"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/member"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// Jobs of the stack are at an address of the sandbox's loopback, where this process
// listens and asks the core for each connection. There is one, whatever the policy says.
var (
	jobAt    = netip.AddrFrom4([4]byte{127, 0, 0, 9})
	resolver = netip.AddrFrom4([4]byte{127, 0, 0, 53})
)

const jobTime = time.Second

func hasJobs(e *pluginv1.Egress) bool {
	for _, r := range e.GetAllow() {
		if len(r.GetJobs()) > 0 {
			return true
		}
	}
	return false
}

func jobOpenings() []network.Opening {
	out := []network.Opening{
		{Name: "job", Kind: network.ListenTCP, Address: netip.AddrPortFrom(jobAt, lab.Port)},
		{Name: "dns", Kind: network.ListenUDP, Address: netip.AddrPortFrom(resolver, 53)},
	}
	if broken("asks for every port") {
		out = append(out, network.Opening{Name: "job", Kind: network.ListenTCP, Address: netip.AddrPortFrom(jobAt, lab.OtherPort)})
	}
	return out
}

// serveJobs serves them for as long as this process lives.
func serveJobs(files []*os.File) (*network.DNS, error) {
	var d *member.Dialer
	for _, f := range files {
		if f.Name() == network.MembersFile {
			var err error
			if d, err = member.New(f); err != nil {
				return nil, err
			}
		}
	}
	if d == nil {
		return nil, nil
	}
	for _, f := range files {
		switch f.Name() {
		case "job":
			l, err := net.FileListener(f)
			if err != nil {
				return nil, err
			}
			go carryJobs(d, l)
		case "dns":
			c, err := net.FilePacketConn(f)
			if err != nil {
				return nil, err
			}
			go answerJobs(d, c)
		}
	}
	return &network.DNS{Servers: []netip.Addr{resolver}}, nil
}

func carryJobs(d *member.Dialer, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			at, ok := c.LocalAddr().(*net.TCPAddr)
			if !ok {
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), jobTime)
			defer cancel()
			f, err := d.Dial(ctx, member.TCP, member.V4, "db", uint16(at.Port))
			if err != nil {
				if broken("keeps connections for later") {
					_, _ = io.WriteString(c, "wait\n")
				}
				return
			}
			defer f.Close()
			_, _ = io.Copy(c, f)
		}()
	}
}

// answerJobs answers every question with the job's address, if it is there, in form of
// RFC 1035: the question as it came, and one record of type A.
func answerJobs(d *member.Dialer, c net.PacketConn) {
	b := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		const header = 12
		end := header
		for end < n && b[end] != 0 {
			end += int(b[end]) + 1
		}
		end += 5 // the end of the name, its type and class
		if end > n {
			continue
		}
		out := append([]byte(nil), b[:end]...)
		out[2], out[3] = 0x85, 0x80 // an answer, with authority
		for i := 6; i < header; i++ {
			out[i] = 0 // what stood there was EDNS
		}
		ctx, cancel := context.WithTimeout(context.Background(), jobTime)
		_, err = d.Look(ctx, "db")
		cancel()
		switch {
		case broken("finds no job"), errors.Is(err, member.ErrAbsent) && !broken("keeps connections for later"):
			out[3] |= 3 // NXDOMAIN
		default:
			out[7] = 1
			out = append(out, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 1)
			out = binary.BigEndian.AppendUint16(out, 4)
			out = append(out, jobAt.AsSlice()...)
		}
		_, _ = c.WriteTo(out, from)
	}
}
