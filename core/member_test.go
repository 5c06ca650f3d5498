package core_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
	sdk "github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/member"
	pair "github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
)

// memberOf makes a plan one of a job of that name, with a rule for two ports of another.
func memberOf(p *plan.Plan, name, other string) *plan.Plan {
	p.Name = name
	p.Network.Egress.Allow = []plan.EgressRule{{
		Jobs: []string{other}, Ports: []plan.EgressPort{{Protocol: "tcp", Port: 5432}, {Protocol: "udp", Port: 53}},
	}}
	return p
}

// lonely has an address on its loopback interface, and no way out.
func lonely(t *testing.T) *backend {
	return &backend{
		prepare:  sdk.PrepareResponse{Setups: []sdk.Setup{{Name: "address", Protocol: unix.NETLINK_ROUTE, Messages: newAddress(t, "192.0.2.7", unix.NLM_F_ACK)}}},
		response: sdk.AttachResponse{IPs: []sdk.IPConfig{{Address: netip.MustParsePrefix("192.0.2.7/32"), IfName: "lo"}, {Address: netip.MustParsePrefix("198.51.100.1/32"), IfName: "lo"}}},
	}
}

// outcomeOf waits until a socket is connected, or cannot be.
func outcomeOf(fd int) error {
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 10_000); err != nil || n == 0 {
		return errors.Join(errors.New("nothing comes of it"), err)
	}
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && n != 0 {
		err = unix.Errno(n)
	}
	return err
}

// A plugin that dials gets what the rules of its sandbox have of a sandbox that runs as
// the other job, and nothing else.
func TestPluginAsksForAMemberOfTheStack(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Patient(time.Minute))
	defer cancel()
	shop := &supervisor.Stack{Name: "shop"}
	there := withNetwork(t, lonely(t), nil)
	s, err := there.Create(ctx, memberOf(planFor(t, there, secretJob(t, "exec sleep 60", lan)), "db", "web"), core.RunOptions{Name: "shop-db", Stack: shop})
	if err != nil {
		t.Fatal(err)
	}
	type look struct {
		has member.Families
		err error
	}
	var created, running, other look
	var refused, tcp, udp, six, web error
	b := lonely(t)
	b.serve = func(at network.Place) {
		for _, f := range at.Files {
			if f.Name() != sdk.MembersFile {
				continue
			}
			d, err := member.New(f)
			if err != nil {
				t.Error(err)
				return
			}
			defer d.Close()
			created.has, created.err = d.Look(ctx, "db")
			if err := s.Start(ctx); err != nil {
				t.Error(err)
				return
			}
			<-s.Running()
			dial := func(p member.Protocol, f member.Families, port uint16) error {
				file, err := d.Dial(ctx, p, f, "db", port)
				if err != nil {
					return err
				}
				defer file.Close()
				return outcomeOf(int(file.Fd()))
			}
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				if running.has, running.err = d.Look(ctx, "db"); running.err == nil {
					break // until then it is what was known a moment ago
				}
			}
			tcp, udp, six, refused = dial(member.TCP, member.V4, 5432), dial(member.UDP, member.V4, 53), dial(member.TCP, member.V6, 5432), dial(member.TCP, member.V4, 5433)
			other.has, other.err = d.Look(ctx, "web")
			_, web = d.Dial(ctx, member.TCP, member.V4, "web", 5432)
		}
	}
	var events bytes.Buffer
	here := withNetwork(t, b, &events)
	p := memberOf(planFor(t, here, secretJob(t, "exit 0", lan)), "web", "db")
	res, err := here.Run(ctx, p, core.RunOptions{Name: "shop-web", Stack: shop})
	if err != nil || res.ExitCode != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	s.Kill()
	if _, err := s.Wait(); err != nil {
		t.Error(err)
	}
	if !errors.Is(created.err, member.ErrAbsent) {
		t.Errorf("before its workload runs: %+v", created)
	}
	if running.err != nil || running.has != member.V4 {
		t.Errorf("while it runs: %+v", running)
	}
	if !errors.Is(tcp, unix.ECONNREFUSED) || udp != nil || !errors.Is(six, unix.ENETUNREACH) {
		t.Errorf("tcp where nobody listens: %v; udp: %v; a family without an address: %v", tcp, udp, six)
	}
	for what, err := range map[string]error{"another port": refused, "another job": other.err, "a connection to another job": web} {
		if !errors.Is(err, member.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if strings.Contains(events.String(), "network.unreached") {
		t.Errorf("events: %s", events.String())
	}
	noneLeft(t)
}

// A plugin that sends what is no request is cut off, which is told; its sandbox goes on.
func TestPluginThatAsksForNonsense(t *testing.T) {
	b := lonely(t)
	b.serve = func(at network.Place) {
		for _, f := range at.Files {
			if f.Name() != sdk.MembersFile {
				continue
			}
			c, err := pair.Conn(f)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err := c.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
				t.Error(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if n, err := c.Read(make([]byte, 16)); n > 0 || !errors.Is(err, io.EOF) {
				t.Errorf("%d bytes, %v, want the end", n, err)
			}
		}
	}
	var events bytes.Buffer
	rt := withNetwork(t, b, &events)
	p := memberOf(planFor(t, rt, secretJob(t, "exit 0", lan)), "web", "db")
	res, err := rt.Run(t.Context(), p, core.RunOptions{Name: "shop-web", Stack: &supervisor.Stack{Name: "shop"}})
	if err != nil || res.ExitCode != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	if !strings.Contains(events.String(), `"type":"network.unreached"`) || !strings.Contains(events.String(), "the plugin is not heard any more") {
		t.Errorf("events: %s", events.String())
	}
	noneLeft(t)
}
