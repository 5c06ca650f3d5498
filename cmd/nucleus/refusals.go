package main

import (
	"fmt"
	"io"
	"net/netip"
	"strconv"

	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	sdk "github.com/nucleus-runtime/nucleus/sdk/network"
)

// toldRefusals is how many different ones a user is told of: a workload can make up any number.
const toldRefusals = 5

// writeRefusals tells what the network's policy has refused, for a program says "connection refused", if anything.
func writeRefusals(w io.Writer, p *plan.Plan, n *exec.Network) {
	if n == nil {
		return
	}
	seen := map[string]bool{}
	var listed uint64
	for _, d := range n.Denials {
		listed += d.Count
		text, hint := refusal(d, p.Network.Egress.Default == plan.EgressPublic)
		if seen[text] {
			continue // a name has an address of each family
		}
		seen[text] = true
		if len(seen) <= toldRefusals {
			writeProblem(w, "warning", text, hint)
		}
	}
	if more := len(seen) - toldRefusals; more > 0 {
		count := strconv.Itoa(more)
		if n.Denied > listed {
			count = "at least " + count // the result has the first ones alone
		}
		writeProblem(w, "warning", fmt.Sprintf("the network has refused %s more destinations", count), "nucleus run -events FILE has them written down")
	}
}

// refusal says what was refused and by which line, and what lets it pass if the job can say so. What it
// names is the workload's choice: only what is a name or an address and nothing else becomes a part of what is to be written.
func refusal(d exec.Denial, public bool) (text, hint string) {
	dst, _ := netip.ParseAddrPort(d.Destination)
	ported := d.Protocol == "tcp" || d.Protocol == "udp"
	to := destination(d.Name, dst)
	port := ""
	if ported {
		port = fmt.Sprintf(`"%d/%s"`, dst.Port(), d.Protocol)
	}
	why := d.Reason
	switch sdk.Reason(d.Reason) {
	case sdk.ReasonDefault:
		why = "no rule allows it"
		switch {
		case to == "":
			why = "no rule can have it"
		case public:
			why = "it is not public"
		}
		if to != "" {
			hint = "to allow it, in egress { allow { … } }: " + to
			if ported {
				hint += ", ports = [" + port + "]"
			}
			if public {
				hint += "; such a block has to allow all else, too, that is to be reached"
			}
		}
	case sdk.ReasonPort:
		why = "this rule has other ports"
		if ported {
			hint = fmt.Sprintf("to allow it, in the allow block there: ports = [%s, …]", port)
		} else if to != "" {
			hint = "to allow it, in an allow block of its own, without ports: " + to
		}
	case sdk.ReasonPrivate:
		why = "no address of the name is public"
		hint = "to allow it, in egress { allow { … } } beside names: cidrs = [ … ], with the addresses that it has"
	case sdk.ReasonUnbound:
		why = "the address stands for names, and the sandbox has asked for none that has it"
	case sdk.ReasonHost:
		why = "it is the host, or another sandbox"
		hint = "what it needs there can run in the same sandbox, or as a job of the same stack: nucleus up"
	case sdk.ReasonLimit:
		why = "more than a sandbox may have"
	case sdk.ReasonProtocol:
		why = "the network does not carry this protocol"
		if ported && d.Name == "" && dst.Addr().Is6() {
			why = "the network carries no IPv6 here"
			hint = "what the kernel lacks for it: event network.missing (nucleus run -events FILE)"
		}
	case sdk.ReasonUnresolved:
		why = "it has no address at the moment"
	}
	text = fmt.Sprintf("the network has refused %s: %s", subject(d, dst, ported), why)
	if d.Where != "" {
		text = d.Where + ": " + text
	}
	return text, hint
}

// subject says what it was that was refused.
func subject(d exec.Denial, dst netip.AddrPort, ported bool) string {
	switch {
	case d.Protocol == "dns":
		return fmt.Sprintf("the name %q", d.Name)
	case ported && d.Name != "":
		return fmt.Sprintf("%s to port %d of %q", d.Protocol, dst.Port(), d.Name)
	case ported:
		return fmt.Sprintf("%s to %s", d.Protocol, dst)
	case d.Name != "":
		return fmt.Sprintf("%s to %q", d.Protocol, d.Name)
	}
	return fmt.Sprintf("%s to %s", d.Protocol, dst.Addr())
}

// destination is a line of an allow block, "" for what none can have.
func destination(name string, dst netip.AddrPort) string {
	if name != "" {
		n, err := dnsname.Parse(name)
		if err != nil {
			return ""
		}
		return fmt.Sprintf("names = [%q]", n)
	}
	if a := dst.Addr().Unmap().WithZone(""); a.IsValid() {
		return fmt.Sprintf("cidrs = [%q]", netip.PrefixFrom(a, a.BitLen()))
	}
	return ""
}
