package conformance

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/nucleus-runtime/nucleus/sdk/conformance/internal/lab"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

func networkSuite() suite {
	return suite{name: "network", service: manifest.Network, verbs: networkVerbs, learn: learnAttach, rules: []Rule{
		{"network/prepare", "with feature network.prepare: the same request_id gets the same answer from Prepare, and has no second effect; what a setup is to come after is before it", "keep answers by request_id for as long as a host may ask again, and name what is made by the sandbox", configured, preparesOnce},
		{"network/prepare-undone", "Detach after Prepare alone leaves nothing in the host's network", "undo in Detach what Prepare has made for the sandbox, and what all share with the last one", configured, undoesPrepare},
		{"network/attach", "Attach of a sandbox with a simple policy succeeds; the same request_id gets the same answer, and has no second effect", "keep answers by request_id for as long as a host may ask again; forwarding may be asked of the host with FAILED_PRECONDITION", configured, attachesOnce},
		{"network/allowed", "after the answer of Attach a rule's addresses can be reached at its port, by each family of which the answer has an address", "answer when all is in place", configured, carries},
		{"network/denied", "after the answer of Attach no packet leaves the host that the policy denies: another port, another protocol, another host, or all", "refuse by default, in both families and for every protocol", configured, denies},
		{"network/policy-first", "no packet leaves that the policy denies while Prepare and Attach are at work either", "make the policy first, and then the way out", configured, policyFirst},
		{"network/refuses", "what can't be enforced (names without a resolver, protocols, what this kernel has not) is refused with FAILED_PRECONDITION or INVALID_ARGUMENT, and nothing passes instead", "refuse in Attach what the policy says and you can't do", configured, refusesDemands},
		{"network/isolation", "two sandboxes do not reach each other; with feature network.stack neither do two of different stacks or state roots, or one of a stack and one of none, whatever jobs the policy has", "refuse what comes from one sandbox and goes to another, and look for members by state root, stack and job", configured, separates},
		{"network/members", "with feature network.dial-member: the name of a job that is there leads to what the core connects to, at the ports of its rule, and nothing else is asked for; one that is not there is not reached", "ask for the job with each connection, after the policy", configured, dials},
		{"network/death", "nothing that the policy denies leaves after the end of the plugin's process", "let the policy outlast the way out, in whatever order things end", configured, holds},
		{"network/detach", "Detach leaves nothing of links, addresses, routes, nftables or sysctls in the host's network", "undo all that Prepare and Attach have made, and set back what they have set", configured, detaches},
		{"network/detach-again", "Detach succeeds without Attach, twice, in a new process with and without a handle, and where the sandbox is gone, and leaves nothing", "name what is made by the sandbox, and take what is gone for undone", configured, detachesAgain},
		{"network/handle-version", "a handle of an unknown version is refused with FAILED_PRECONDITION", "compare the version before you look into it", configured, unknownHandle},
		{"network/crash", "Detach in a new process leaves nothing after a SIGKILL in, or after, Prepare and Attach", "make nothing that a process which knows only the sandbox's id does not find", configured, networkCrash},
		{"network/status", "with feature network.status: Status is ok after Attach, and not without drift when the link has been removed", "look at what is, not at what was made", configured, sees},
		{"network/gc", "with feature network.gc: GC removes what belongs to no valid attachment, leaves the others and those of another state root working, and changes nothing if it is only to say what it would do", "compare all that bears your name and the state root's with what is valid", configured, collects},
		{"network/undumpable", "the process is not dumpable: no look into it for other processes of its user, which serve other sandboxes", "prctl(PR_SET_DUMPABLE, 0) as the first act", running, undumpable},
		{"network/watch", "with feature network.watch: Watch tells of a connection that is refused within 2 s, and ends with its caller", "send what was refused as it comes, and no later than in a second", configured, watches},
	}}
}

// begun are sandboxes for which Prepare was called and Detach was not.
type begun struct {
	mu  sync.Mutex
	ids []string
}

func (b *begun) add(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ids = append(b.ids, id)
}

func (b *begun) remove(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ids = slices.DeleteFunc(b.ids, func(x string) bool { return x == id })
}

func (b *begun) all() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.ids)
}

// networkVerbs are those that need no sandbox.
func networkVerbs(k *Checker) []verb {
	if k.home == nil {
		return nil // they would be at work in the machine's network
	}
	detach := func(ctx context.Context, p *process, request, sandbox string) error {
		r := &pluginv1.DetachRequest{Call: call(request), Ifname: ifName}
		r.Call.SandboxId, r.Call.InstanceId = sandbox, k.networkInstance()
		_, err := pluginv1.NewNetworkClient(p.conn).Detach(ctx, r)
		return err
	}
	var out []verb
	if k.feature(network.FeaturePrepare) {
		out = append(out, verb{"Prepare", false, func(ctx context.Context, p *process, id string) error {
			box := "prepared-" + id
			r := &pluginv1.NetworkPrepareRequest{Call: call(id)}
			r.Call.SandboxId, r.Call.InstanceId = box, k.networkInstance()
			k.begun.add(box)
			if _, err := pluginv1.NewNetworkClient(p.conn).Prepare(ctx, r); err != nil {
				return err
			}
			err := detach(ctx, p, k.id(), box)
			if err == nil {
				k.begun.remove(box)
			}
			return err
		}})
	}
	return append(out, verb{"Detach", true, func(ctx context.Context, p *process, id string) error {
		for _, box := range k.begun.all() {
			if err := detach(ctx, p, k.id(), box); err != nil {
				return err
			}
			k.begun.remove(box)
		}
		return detach(ctx, p, id, sandbox)
	}})
}

// networkInstance is what the process of the rules of every plugin has configured.
func (k *Checker) networkInstance() string {
	if is := k.instances(manifest.Network); len(is) > 0 {
		return is[0].instance()
	}
	return ""
}

// moveOut starts the plugin in the network of a host of its own from now on. Without
// the right to make one it stays in the machine's, and is not asked to connect.
func (k *Checker) moveOut(ctx context.Context) (*process, error) {
	k.network = true
	if os.Geteuid() == 0 {
		var err error
		if k.home, err = lab.New(true); err != nil {
			return nil, err
		}
	}
	return k.start(ctx, launch{})
}

// learnAttach tries whether a sandbox can be connected at all, and what the host must
// have for that.
func learnAttach(ctx context.Context, k *Checker, _ *process) {
	if k.home == nil {
		return
	}
	if len(k.instances(manifest.Network)) == 0 {
		return
	}
	f := k.known
	for _, f.forwarding = range []bool{false, true} {
		if err := k.atSite(ctx, func(s *site) error {
			l, err := s.attached(ctx, onePort())
			if f.attach = err; err != nil {
				return nil
			}
			f.carries = l.reaches()
			if err := l.tries(); err != nil {
				return err
			}
			f.denies = s.nothingDenied(l.egress, "with a policy that allows one port")
			if f.detach = l.detach(ctx); f.detach != nil {
				f.detach = broken("Detach: %s", refusal(f.detach))
			} else {
				f.detach = s.clean("Attach and Detach")
			}
			return nil
		}); err != nil {
			f.attach = err
			return
		}
		if errs.CodeOf(f.attach) != errs.Precondition {
			return
		}
	}
}

// inSite runs a rule about a plugin that can connect sandboxes.
func (k *Checker) inSite(ctx context.Context, rule func(*site) error) error {
	if k.home == nil {
		return skip("only root can make a host's network for it")
	}
	if len(k.instances(manifest.Network)) == 0 {
		return skip(`no instance was given: write instance "network" "NAME" { … }`)
	}
	if k.known.attach != nil {
		return skip("Attach fails: see network/attach")
	}
	return k.atSite(ctx, rule)
}

// takes tells that another rule is broken, so that one that rests on it can't be
// judged.
func (k *Checker) takes(rules ...string) error {
	for _, r := range rules {
		if err := map[string]error{"network/allowed": k.known.carries, "network/denied": k.known.denies, "network/detach": k.known.detach}[r]; err != nil {
			return skip("it takes %s for granted, which is broken", r)
		}
	}
	return nil
}

func (k *Checker) atSite(ctx context.Context, rule func(*site) error) (err error) {
	s := &site{k: k}
	if s.Lab, err = lab.New(k.known.forwarding); err != nil {
		return err
	}
	defer s.end(ctx)
	if s.work, err = k.newWork(); err != nil {
		return err
	}
	if s.before, err = s.Host.Census(); err != nil {
		return err
	}
	return rule(s)
}

// policies of the rules.
func onePort() network.Egress {
	var r network.Rule
	for _, a := range somewhere() {
		p, err := a.Prefix(a.BitLen())
		if err == nil {
			r.CIDRs = append(r.CIDRs, p)
		}
	}
	r.Ports = []network.Ports{{Protocol: "tcp", First: lab.Port, Last: lab.Port}}
	return network.Egress{Allow: []network.Rule{r}}
}

// same compares two answers as they travel.
func same(a, b proto.Message) (bool, error) {
	one, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
	if err != nil {
		return false, err
	}
	other, err := proto.MarshalOptions{Deterministic: true}.Marshal(b)
	return string(one) == string(other), err
}

// refusal is an error of a call as it travelled.
func refusal(err error) string {
	if err == nil {
		return "OK"
	}
	return fmt.Sprintf("%s: %v", errs.CodeOf(err), err)
}

// once makes a call twice with one request_id, and looks at what each has changed.
func (s *site) once(what string, call func() (proto.Message, error)) error {
	first, err := call()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	after, err := s.Host.Census()
	if err != nil {
		return err
	}
	second, err := call()
	if err != nil {
		return broken("%s, the second time: %s", what, refusal(err))
	}
	if ok, err := same(first, second); err != nil || !ok {
		return broken("%s: the second answer differs from the first (%v)", what, err)
	}
	again, err := s.Host.Census()
	if err != nil {
		return err
	}
	if c := after.Changes(again); len(c) > 0 {
		return broken("%s, the second time, changed the host's network:\n%s", what, lines(c))
	}
	return nil
}

func preparesOnce(ctx context.Context, k *Checker) error {
	if !k.feature(network.FeaturePrepare) {
		return skip("it has no feature %s", network.FeaturePrepare)
	}
	return k.inSite(ctx, func(s *site) error {
		l, err := s.link(ctx, onePort())
		if err != nil {
			return err
		}
		id := k.id()
		return s.once("Prepare", func() (proto.Message, error) {
			if err := l.prepare(ctx, id); err != nil {
				return nil, err
			}
			if err := l.prep.Check(); err != nil {
				return nil, err
			}
			return wire.NetworkPrepared(&l.prep), nil
		})
	})
}

func undoesPrepare(ctx context.Context, k *Checker) error {
	if !k.feature(network.FeaturePrepare) {
		return skip("it has no feature %s", network.FeaturePrepare)
	}
	return k.inSite(ctx, func(s *site) error {
		l, err := s.link(ctx, onePort())
		if err != nil {
			return err
		}
		if err := l.prepare(ctx, k.id()); err != nil {
			return err
		}
		if err := l.detach(ctx); err != nil {
			return broken("Detach after Prepare: %s", refusal(err))
		}
		return s.clean("Prepare and Detach")
	})
}

func attachesOnce(ctx context.Context, k *Checker) error {
	if k.home != nil && k.known.attach != nil {
		return broken("%s", refusal(k.known.attach))
	}
	return k.inSite(ctx, func(s *site) error {
		l, err := s.opened(ctx, onePort())
		if err != nil {
			return err
		}
		id := k.id()
		if err := s.once("Attach", func() (proto.Message, error) {
			if err := l.attach(ctx, id); err != nil {
				return nil, err
			}
			return wire.Attached(l.got), nil
		}); err != nil {
			return err
		}
		for _, c := range l.got.IPs {
			if has, err := l.box.HasAddress(c.Address.Addr()); err != nil || !has {
				return broken("the answer tells of the address %s, which the sandbox has not (%v)", c.Address, err)
			}
		}
		return nil
	})
}
