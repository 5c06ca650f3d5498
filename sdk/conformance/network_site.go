package conformance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/conformance/internal/lab"
	"github.com/nucleus-runtime/nucleus/sdk/contract"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// site is a host on which a rule has sandboxes connected.
type site struct {
	*lab.Lab
	k      *Checker
	work   string     // what all processes of the plugin are told
	root   string     // whose sandboxes those that come next are
	before lab.Census // of the host
	links  []*link
}

// link is one sandbox, and the process of the plugin that is the sandbox's, as a core
// has it.
type link struct {
	site   *site
	id     string // the sandbox's
	root   string // the state root's
	egress network.Egress
	member *network.Member // nil for a sandbox of no stack
	p      *process
	n      client.Network

	box      *lab.Sandbox
	netns    network.Namespace
	files    []*os.File
	missing  []string
	broker   *broker // nil for a plugin that asks for no jobs
	prep     network.PrepareResponse
	got      *network.AttachResponse
	detached bool
}

const ifName = "eth0"

func somewhere() []netip.Addr { return []netip.Addr{lab.SomewhereV4, lab.SomewhereV6} }

// link starts a process for a new sandbox.
func (s *site) link(ctx context.Context, e network.Egress) (*link, error) {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	l := &link{site: s, id: "check-" + hex.EncodeToString(id[:]), root: s.root, egress: e}
	s.links = append(s.links, l)
	return l, l.start(ctx)
}

// pluginUser is nobody else's: of the range from which a core gives plugins theirs.
const pluginUser = 2_099_999_999

// start starts a process that knows nothing of earlier ones, with what a core gives it
// of what the plugin needs.
func (l *link) start(ctx context.Context) error {
	s, k := l.site, l.site.k
	how := launch{at: s.Lab, work: s.work}
	if needs := k.known.info.GetNeeds(); !needs.GetRoot() {
		how.uid = pluginUser
		for _, name := range needs.GetCapabilities() {
			n := capability(name)
			if n < 0 {
				return broken("it needs %s, which is no capability", name)
			}
			how.caps = append(how.caps, uintptr(n))
		}
		if err := os.Chmod(k.dir, 0o711); err != nil {
			return err
		}
	}
	var err error
	if l.p, err = k.start(ctx, how); err != nil {
		return err
	}
	l.n = client.New(l.p.conn).WithDescriptors(l.p.sender).Network(k.known.info.GetFeatures())
	return within(ctx, func(ctx context.Context) error {
		self, err := k.request(l.p, "", "", k.conf.Plugin)
		if err != nil {
			return err
		}
		body := k.instances(manifest.Network)[0].Config
		mine, err := k.request(l.p, manifest.Network, l.instance(), body)
		if err != nil {
			return err
		}
		for _, r := range []*pluginv1.ConfigureRequest{self, mine} {
			r.StateRoot = l.root
			if _, err := l.p.base.Configure(ctx, r); err != nil {
				return broken("Configure, as %s: %s", l.as(), tell(err))
			}
		}
		return nil
	})
}

func (l *link) as() string { return fmt.Sprintf("user %d", l.p.uid) }

func (l *link) instance() string { return l.id + "/" + l.site.k.instances(manifest.Network)[0].ID }

func (l *link) call(request string) network.Call {
	return network.Call{RequestID: request, SandboxID: l.id, InstanceID: l.instance(), Attempt: 1, BootID: "b"}
}

// restart replaces the process by one that knows nothing.
func (l *link) restart(ctx context.Context) error {
	l.p.close()
	return l.start(ctx)
}

// prepare asks for what is to be opened; a plugin without the feature wants nothing.
func (l *link) prepare(ctx context.Context, id string) error {
	if l.n.Preparer == nil {
		return nil
	}
	return within(ctx, func(ctx context.Context) error {
		got, err := l.n.Preparer.Prepare(ctx, &network.PrepareRequest{Call: l.call(id), Egress: l.egress})
		if err == nil {
			l.prep = *got
		}
		return err
	})
}

// open starts the sandbox, and does init's part in it.
func (l *link) open(without ...string) (err error) {
	if l.box, err = lab.NewSandbox(); err != nil {
		return err
	}
	l.netns, err = namespace(fmt.Sprintf("/proc/%d/ns/net", l.box.Pid))
	if err == nil {
		l.files, l.missing, err = l.box.Open(&l.prep, without...)
	}
	if err == nil {
		err = l.brokered()
	}
	return err
}

func namespace(path string) (network.Namespace, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return network.Namespace{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return network.Namespace{Path: path, Dev: st.Dev, Ino: st.Ino}, nil
}

// request is what a core asks of Attach.
func (l *link) request(id string) (*network.AttachRequest, error) {
	user, err := namespace(fmt.Sprintf("/proc/%d/ns/user", l.box.Pid))
	if err != nil {
		return nil, err
	}
	ids := []contract.IDMap{{Inside: 0, Outside: lab.Outside, Count: lab.Count}}
	return &network.AttachRequest{
		Call: l.call(id), NetNS: l.netns, UserNS: &network.UserNS{Namespace: user, UIDs: ids, GIDs: ids}, IfName: ifName,
		Hostname: "check", Prepared: l.prep.Handle, Egress: l.egress, Files: l.files, Missing: l.missing, Member: l.member,
	}, nil
}

func (l *link) attach(ctx context.Context, id string) error {
	r, err := l.request(id)
	if err != nil {
		return err
	}
	return within(ctx, func(ctx context.Context) error {
		got, err := l.n.Attach(ctx, r)
		if err == nil {
			l.got = got
		}
		return err
	})
}

// detachRequest has all that a core may know.
func (l *link) detachRequest() *network.DetachRequest {
	r := &network.DetachRequest{Call: l.call(l.site.k.id()), Prepared: l.prep.Handle, IfName: ifName, Force: true}
	if l.got != nil {
		r.Handle = l.got.Handle
	}
	return r
}

func (l *link) detach(ctx context.Context) error { return l.detachBy(ctx, l.detachRequest()) }

func (l *link) detachBy(ctx context.Context, r *network.DetachRequest) error {
	return within(ctx, func(ctx context.Context) error {
		_, err := l.n.Detach(ctx, r)
		if err == nil || errs.CodeOf(err) == errs.NotFound {
			l.detached, err = true, nil
		}
		return err
	})
}

// opened is a sandbox that is ready to be attached.
func (s *site) opened(ctx context.Context, e network.Egress) (*link, error) {
	return s.openedAs(ctx, nil, e)
}

func (s *site) openedAs(ctx context.Context, m *network.Member, e network.Egress) (*link, error) {
	l, err := s.link(ctx, e)
	if err == nil {
		l.member = m
		err = l.prepare(ctx, s.k.id())
	}
	if err == nil {
		err = l.open()
	}
	return l, err
}

// attached is a sandbox that is connected.
func (s *site) attached(ctx context.Context, e network.Egress) (*link, error) {
	return s.attachedAs(ctx, nil, e)
}

// attachedAs is one that is a member of a stack.
func (s *site) attachedAs(ctx context.Context, m *network.Member, e network.Egress) (*link, error) {
	l, err := s.openedAs(ctx, m, e)
	if err == nil {
		err = l.attach(ctx, s.k.id())
	}
	return l, err
}

// elsewhere is one of another state root on the same host.
func (s *site) elsewhere(ctx context.Context, m *network.Member, e network.Egress) (*link, error) {
	defer func(mine string) { s.root = mine }(s.root)
	s.root = "another state root"
	return s.attachedAs(ctx, m, e)
}

// end undoes what a rule has left. Whether that succeeds is for a rule of its own.
// Namespaces end with the Checker: the kernel takes its time for that, in which no
// link of any other namespace changes.
func (s *site) end(ctx context.Context) {
	for _, l := range s.links {
		if l.p == nil {
			continue
		}
		if !l.detached && s.k.known.detach == nil {
			if l.p.ended(0) {
				_ = l.restart(ctx)
			}
			_ = l.detach(ctx)
		}
		l.p.close()
		for _, f := range l.files {
			f.Close()
		}
		if l.broker != nil {
			l.broker.conn.Close()
		}
		if l.box != nil {
			l.box.End()
			s.k.spent = append(s.k.spent, l.box)
		}
	}
	s.End()
	s.k.spent = append(s.k.spent, s.Lab)
}

// settleTime is for what the kernel does in its own time: links end some time after
// their namespace.
const settleTime = 2 * time.Second

// clean tells what is left in the host's network.
func (s *site) clean(after string) error {
	return s.changed(s.before, after)
}

func (s *site) changed(before lab.Census, after string) error {
	for end := time.Now().Add(settleTime); ; time.Sleep(pause) {
		now, err := s.Host.Census()
		if err != nil {
			return err
		}
		changes := before.Changes(now)
		if len(changes) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return broken("after %s the host's network is not as it was:\n%s", after, lines(changes))
		}
	}
}

// settled is what the host has when the kernel has done with it.
func (s *site) settled() (lab.Census, error) {
	before, err := s.Host.Census()
	for end := time.Now().Add(settleTime); err == nil && time.Now().Before(end); {
		time.Sleep(4 * pause)
		var now lab.Census
		if now, err = s.Host.Census(); err == nil && len(before.Changes(now)) == 0 {
			break
		}
		before = now
	}
	return before, err
}

// lines of changes, of which the first few say enough.
func lines(changes []string) string {
	const enough = 12
	if n := len(changes); n > enough {
		changes = append(changes[:enough:enough], fmt.Sprintf("and %d more", n-enough))
	}
	return strings.Join(changes, "\n")
}

// travelTime is for what a plugin passes on by itself.
const travelTime = 60 * time.Millisecond

// nothingDenied tells of packets that have left although the policy denies them.
func (s *site) nothingDenied(e network.Egress, when string) error {
	time.Sleep(travelTime)
	packets, err := s.Left()
	if err != nil {
		return err
	}
	out := lab.Denied(packets, len(e.Allow) == 0)
	if len(out) == 0 {
		return nil
	}
	return broken("%s %d packets left the host that the policy denies, the first of them %s", when, len(out), out[0])
}

// askTime bounds one connection.
const askTime = 2 * time.Second

// reaches tells what of the one port is not reached.
func (l *link) reaches() error {
	var bad []error
	for _, a := range l.families() {
		to := netip.AddrPortFrom(a, lab.Port)
		if got, err := l.box.Ask(to, askTime); err != nil || got != lab.Greeting {
			bad = append(bad, broken("%s, which the policy allows, says %q: %v", to, got, err))
		}
	}
	return errors.Join(bad...)
}

// families are the addresses of somewhere that the sandbox can be expected to reach:
// that of IPv4, and of IPv6 if it was given such an address.
func (l *link) families() []netip.Addr {
	out := []netip.Addr{}
	for _, a := range somewhere() {
		for _, c := range l.got.IPs {
			if c.Address.Addr().Is4() == a.Is4() {
				out = append(out, a)
				break
			}
		}
	}
	if len(out) == 0 {
		out = []netip.Addr{lab.SomewhereV4} // the answer tells of none
	}
	return out
}

// capability gives the number of a name; -1 for none.
func capability(name string) int {
	for i, n := range strings.Fields(capabilities) {
		if "CAP_"+n == name {
			return i
		}
	}
	return -1
}

// capabilities in the order of their numbers (linux/capability.h).
const capabilities = `CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`
