package conformance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/conformance/internal/lab"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/member"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
)

// jobName is the job that policies of rules have.
const jobName = "db"

// oneJob is onePort, and a port of a job.
func oneJob() network.Egress {
	e := onePort()
	e.Allow = append(e.Allow, network.Rule{Jobs: []string{jobName}, Ports: []network.Ports{{Protocol: "tcp", First: lab.Port, Last: lab.Port}}})
	return e
}

// broker is the core's end of what a plugin asks for jobs on. Unlike a core it gives
// whatever it is asked for, and remembers that.
type broker struct {
	conn *net.UnixConn

	mu    sync.Mutex
	at    string // what is connected to, "" while there is no job
	asked []member.Request
}

// newBroker gives the plugin's end, too.
func newBroker() (*broker, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), network.MembersFile), os.NewFile(uintptr(fds[1]), network.MembersFile)
	defer ours.Close()
	b := &broker{}
	if b.conn, err = descriptors.Conn(ours); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	go b.serve()
	return b, theirs, nil
}

// serve ends with either end.
func (b *broker) serve() {
	defer b.conn.Close()
	for {
		data, file, err := member.Receive(b.conn, member.MaxRequest)
		if err != nil {
			return
		}
		if file != nil {
			file.Close()
			return
		}
		q, err := member.DecodeRequest(data)
		if err != nil {
			return
		}
		if b.answer(q) != nil {
			return
		}
	}
}

func (b *broker) answer(q member.Request) error {
	b.mu.Lock()
	b.asked = append(b.asked, q)
	at := b.at
	b.mu.Unlock()
	a := member.Answer{ID: q.ID, Outcome: member.Absent}
	var oob []byte
	switch {
	case at == "" || q.Job != jobName:
	case q.Protocol == member.None:
		a.Outcome, a.Families = member.Done, member.V4
	case q.Family == member.V6:
		a.Outcome, a.Errno = member.Failed, uint16(syscall.ENETUNREACH)
	default:
		a.Outcome, a.Families = member.Done, member.V4
		conn, err := net.Dial(q.Protocol.String(), at)
		if err != nil {
			return err
		}
		defer conn.Close()
		c, ok := conn.(syscall.Conn)
		if !ok {
			return errors.New("a connection without a descriptor")
		}
		raw, err := c.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { oob = unix.UnixRights(int(fd)) })
		}
		if err != nil {
			return err
		}
	}
	_, _, err := b.conn.WriteMsgUnix(a.Encode(), oob, nil)
	return err
}

// stands says where the job is, and forgets what was asked.
func (b *broker) stands(at string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at, b.asked = at, nil
}

// beyond is a request for something that the policy does not have.
func (b *broker) beyond() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, q := range b.asked {
		if q.Job != jobName || q.Protocol != member.None && (q.Protocol != member.TCP || q.Port != lab.Port) {
			return broken("it asks for %s of job %q, port %d, which the policy does not have", q.Protocol, q.Job, q.Port)
		}
	}
	return nil
}

// resolve asks the sandbox's resolver for the job's addresses of IPv4.
func (l *link) resolve(ctx context.Context) ([]netip.Addr, error) {
	if l.got.DNS == nil || len(l.got.DNS.Servers) == 0 {
		return nil, broken("it connects to jobs by name, and its answer tells of no resolver")
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	server := netip.AddrPortFrom(l.got.DNS.Servers[0], 53).String()
	r := net.Resolver{PreferGo: true, Dial: func(_ context.Context, proto, _ string) (conn net.Conn, err error) {
		failed := l.box.Do(func() error {
			conn, err = net.Dial(proto, server)
			return err
		})
		return conn, failed
	}}
	return r.LookupNetIP(ctx, "ip4", jobName+".")
}

// dials has a sandbox ask for a job which is there, and is not.
func dials(ctx context.Context, k *Checker) error {
	if !k.feature(network.FeatureDialMember) {
		return skip("it has no feature %s", network.FeatureDialMember)
	}
	if err := k.takes("network/denied"); err != nil {
		return err
	}
	return k.inSite(ctx, func(s *site) error {
		server, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer server.Close()
		const hello = "a member of the stack"
		go func() {
			for {
				c, err := server.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprintln(c, hello)
				c.Close()
			}
		}()
		l, err := s.attachedAs(ctx, &network.Member{Stack: "one", Job: "web"}, oneJob())
		if err != nil {
			return err
		}
		away := func(when string) error {
			all, _ := l.resolve(ctx) // a name that does not exist is as good as one that leads nowhere
			for _, a := range all {
				if got, err := l.box.Ask(netip.AddrPortFrom(a, lab.Port), isolationTime); err == nil {
					return broken("%s there is no such job, and at %s somebody says %q", when, a, got)
				}
			}
			return nil
		}
		if err := away("before it was started"); err != nil {
			return err
		}
		l.broker.stands(server.Addr().String())
		time.Sleep(nameTime)
		all, err := l.resolve(ctx)
		if err != nil || len(all) == 0 {
			return broken("the job is there, and its name has the addresses %s: %v", all, err)
		}
		for _, a := range all {
			if got, err := l.box.Ask(netip.AddrPortFrom(a, lab.Port), askTime); err != nil || got != hello {
				return broken("job %q, which the policy allows, says %q at %s: %v", jobName, got, a, err)
			}
			got, err := l.box.Ask(netip.AddrPortFrom(a, lab.OtherPort), isolationTime)
			if err := l.broker.beyond(); err != nil {
				return err
			}
			if err == nil {
				return broken("another port of job %q says %q at %s", jobName, got, a)
			}
		}
		l.broker.stands("")
		time.Sleep(nameTime)
		return away("after it has ended")
	})
}

// nameTime is for how long a job's name may lead to where it was.
const nameTime = 1100 * time.Millisecond

// brokered gives a link the descriptor that a core gives it.
func (l *link) brokered() error {
	jobs := false
	for _, r := range l.egress.Allow {
		jobs = jobs || len(r.Jobs) > 0
	}
	if !jobs || !l.site.k.feature(network.FeatureDialMember) {
		return nil
	}
	b, theirs, err := newBroker()
	if err != nil {
		return fmt.Errorf("what jobs are asked for on: %w", err)
	}
	l.broker, l.files = b, append(l.files, theirs)
	return nil
}
