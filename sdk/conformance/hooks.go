package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

func hooksSuite() suite {
	return suite{name: "hooks", service: manifest.Hooks, verbs: hooksVerbs, learn: learnMasks, rules: []Rule{
		{"hooks/describe", "Describe gives a mask of known boundaries only, at least one, and the same again", "set bit n for boundary n, and answer from the configuration alone", configured, describesHooks},
		{"hooks/answers", "OnPhase answers at each boundary that was subscribed to", "answer with nothing where there is nothing to do", configured, answersAll},
		{"hooks/repeat", "the same request_id gets the same bytes, also when both come at once", "keep answers by request_id for as long as a host may ask again", configured, repeatedPhase},
		{"hooks/post", "an answer to what has happened already (POST, STOPPING, STOPPED, CLEANUP) has no veto and no mutation", "refuse and change at PRE boundaries only", configured, postChangesNothing},
		{"hooks/cleanup", "CLEANUP succeeds where nothing came before it, and twice", "take what is gone for cleaned up", configured, cleansUp},
		{"hooks/unknown-boundary", "a boundary of a newer contract is answered, or refused with an error that says so", "treat an unknown number as one that nobody has subscribed to", configured, unknownBoundary},
	}}
}

func boundary(b pluginv1.Boundary) string {
	return strings.TrimPrefix(b.String(), "BOUNDARY_")
}

// boundaries are all that this suite knows, in the order in which they come.
func boundaries() []pluginv1.Boundary {
	return []pluginv1.Boundary{
		pluginv1.Boundary_BOUNDARY_PRE_NAMESPACES, pluginv1.Boundary_BOUNDARY_PRE_CGROUPS, pluginv1.Boundary_BOUNDARY_POST_NAMESPACES,
		pluginv1.Boundary_BOUNDARY_PRE_FS, pluginv1.Boundary_BOUNDARY_POST_CGROUPS, pluginv1.Boundary_BOUNDARY_POST_FS,
		pluginv1.Boundary_BOUNDARY_PRE_SECURITY, pluginv1.Boundary_BOUNDARY_POST_SECURITY, pluginv1.Boundary_BOUNDARY_PRE_EXEC,
		pluginv1.Boundary_BOUNDARY_POST_EXEC, pluginv1.Boundary_BOUNDARY_STOPPING, pluginv1.Boundary_BOUNDARY_STOPPED,
		pluginv1.Boundary_BOUNDARY_CLEANUP,
	}
}

// cleanUpTime bounds what comes after all rules.
const cleanUpTime = 10 * time.Second

// cleanUp tells the plugin of the end of the sandbox that all rules are about: what it
// took for that, it took for real.
func (k *Checker) cleanUp() {
	if k.known == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanUpTime)
	defer cancel()
	for _, i := range k.instances(manifest.Hooks) {
		if k.known.masks[i.instance()]&(1<<pluginv1.Boundary_BOUNDARY_CLEANUP) == 0 {
			continue
		}
		if p, err := k.ready(ctx, launch{}); err == nil {
			_, _ = p.onPhase(ctx, event(k.id(), i.instance(), pluginv1.Boundary_BOUNDARY_CLEANUP)) // a rule is about that
			p.close()
		}
	}
}

func event(id, instance string, b pluginv1.Boundary) *pluginv1.OnPhaseRequest {
	r := &pluginv1.OnPhaseRequest{Call: call(id), Boundary: b, SandboxName: "conformance"}
	r.Call.InstanceId = instance
	if b >= pluginv1.Boundary_BOUNDARY_PRE_FS || b == pluginv1.Boundary_BOUNDARY_POST_CGROUPS {
		r.PlanJson = []byte(`{"version":1}`)
	}
	if b >= pluginv1.Boundary_BOUNDARY_STOPPED {
		r.Cause = "exit"
	}
	return r
}

// learnMasks asks what instances subscribe to, and leaves out what they can't answer:
// rules say so, and the others are about something else.
func learnMasks(ctx context.Context, k *Checker, p *process) {
	k.known.masks = map[string]uint64{}
	for _, i := range k.instances(manifest.Hooks) {
		r, err := p.describeHooks(ctx, i.instance())
		if err != nil {
			continue
		}
		for _, b := range boundaries() {
			if r.GetMask()&(1<<b) == 0 {
				continue
			}
			if _, err := p.onPhase(ctx, event(k.id(), i.instance(), b)); err == nil {
				k.known.masks[i.instance()] |= 1 << b
			}
		}
	}
}

func hooksVerbs(k *Checker) []verb {
	var out []verb
	for _, i := range k.instances(manifest.Hooks) {
		out = append(out, verb{"Describe", false, func(ctx context.Context, p *process, _ string) error {
			_, err := p.hooks.Describe(ctx, &pluginv1.DescribeRequest{InstanceId: i.instance()})
			return err
		}})
		for _, b := range typical(k.known.masks[i.instance()]) {
			cleanup := b == pluginv1.Boundary_BOUNDARY_CLEANUP
			out = append(out, verb{"OnPhase " + boundary(b), cleanup, func(ctx context.Context, p *process, id string) error {
				_, err := p.hooks.OnPhase(ctx, event(id, i.instance(), b))
				return err
			}})
		}
	}
	return out
}

// typical boundaries of a mask: the first, and CLEANUP. A rule goes through all.
func typical(mask uint64) []pluginv1.Boundary {
	var out []pluginv1.Boundary
	for _, b := range boundaries() {
		if mask&(1<<b) != 0 && (len(out) == 0 || b == pluginv1.Boundary_BOUNDARY_CLEANUP) {
			out = append(out, b)
		}
	}
	return out
}

// eachInstance starts a process and asks what its instances want to hear of.
func (k *Checker) eachInstance(ctx context.Context, f func(p *process, id string, mask uint64) error) error {
	is := k.instances(manifest.Hooks)
	if len(is) == 0 {
		return skip(`no instance was given: write instance "hooks" "NAME" { … }`)
	}
	p, err := k.ready(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	for _, i := range is {
		r, err := p.describeHooks(ctx, i.instance())
		if err == nil {
			err = f(p, i.instance(), r.GetMask())
		} else {
			err = broken("Describe: %s", tell(err))
		}
		if err != nil {
			return fmt.Errorf("instance %q: %w", i.ID, err)
		}
	}
	return nil
}

func (p *process) describeHooks(ctx context.Context, id string) (r *pluginv1.DescribeResponse, err error) {
	err = within(ctx, func(ctx context.Context) error {
		r, err = p.hooks.Describe(ctx, &pluginv1.DescribeRequest{InstanceId: id})
		return err
	})
	return r, err
}

func (p *process) onPhase(ctx context.Context, r *pluginv1.OnPhaseRequest) (a *pluginv1.OnPhaseResponse, err error) {
	err = within(ctx, func(ctx context.Context) error {
		a, err = p.hooks.OnPhase(ctx, r)
		return err
	})
	return a, err
}

func describesHooks(ctx context.Context, k *Checker) error {
	return k.eachInstance(ctx, func(p *process, id string, mask uint64) error {
		var all uint64
		for _, b := range boundaries() {
			all |= 1 << b
		}
		switch r, err := p.describeHooks(ctx, id); {
		case err != nil:
			return broken("the second time: %s", tell(err))
		case mask&^all != 0:
			return broken("mask %#x has bits %#x, which are no boundaries", mask, mask&^all)
		case mask == 0:
			return broken("it subscribes to nothing, and so is never called")
		case r.GetMask() != mask:
			return broken("mask %#x, and then %#x", mask, r.GetMask())
		}
		return nil
	})
}

func answersAll(ctx context.Context, k *Checker) error {
	return k.eachInstance(ctx, func(p *process, id string, mask uint64) error {
		var bad []error
		for _, b := range boundaries() {
			if mask&(1<<b) == 0 {
				continue
			}
			if _, err := p.onPhase(ctx, event(k.id(), id, b)); err != nil {
				bad = append(bad, broken("%s: %s", boundary(b), tell(err)))
			}
		}
		return errors.Join(bad...)
	})
}

func repeatedPhase(ctx context.Context, k *Checker) error {
	return k.eachInstance(ctx, func(p *process, id string, mask uint64) error {
		for _, b := range boundaries() {
			// CLEANUP may succeed in another way the second time, and has a rule of its own.
			if k.known.masks[id]&mask&(1<<b) == 0 || b == pluginv1.Boundary_BOUNDARY_CLEANUP {
				continue
			}
			if err := repeated(k, func(request string) (proto.Message, error) { return p.onPhase(ctx, event(request, id, b)) }); err != nil {
				return fmt.Errorf("%s: %w", boundary(b), err)
			}
		}
		return nil
	})
}

// happened tells that a boundary is behind what it is about.
func happened(b pluginv1.Boundary) bool {
	return strings.HasPrefix(boundary(b), "POST_") || b >= pluginv1.Boundary_BOUNDARY_STOPPING
}

func postChangesNothing(ctx context.Context, k *Checker) error {
	asked := false
	err := k.eachInstance(ctx, func(p *process, id string, mask uint64) error {
		for _, b := range boundaries() {
			if mask&(1<<b) == 0 || !happened(b) {
				continue
			}
			asked = true
			r, err := p.onPhase(ctx, event(k.id(), id, b))
			if err != nil {
				continue // another rule's business
			}
			m := r.GetMutation()
			if r.GetVeto() != "" || len(m.GetAddEnv())+len(m.GetDropCapabilities())+len(m.GetLowerRlimits())+len(m.GetAnnotations()) > 0 {
				return broken("%s: veto %q, mutation {%v}", boundary(b), r.GetVeto(), m)
			}
		}
		return nil
	})
	if err == nil && !asked {
		return skip("it subscribes to PRE boundaries only")
	}
	return err
}

func cleansUp(ctx context.Context, k *Checker) error {
	asked := false
	err := k.eachInstance(ctx, func(p *process, id string, mask uint64) error {
		if mask&(1<<pluginv1.Boundary_BOUNDARY_CLEANUP) == 0 {
			return nil
		}
		asked = true
		for _, again := range []string{"first", "second"} {
			if _, err := p.onPhase(ctx, event(k.id(), id, pluginv1.Boundary_BOUNDARY_CLEANUP)); err != nil {
				return broken("the %s CLEANUP: %s", again, tell(err))
			}
		}
		return nil
	})
	if err == nil && !asked {
		return skip("it does not subscribe to CLEANUP")
	}
	return err
}

func unknownBoundary(ctx context.Context, k *Checker) error {
	return k.eachInstance(ctx, func(p *process, id string, _ uint64) error {
		if _, err := p.onPhase(ctx, event(k.id(), id, 63)); err != nil && !typed(err) {
			return broken("boundary 63: %s%s", tell(err), p.said())
		}
		return p.healthy(ctx)
	})
}
