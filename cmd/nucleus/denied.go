package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/exec"
)

// maxDenials are named at the end of a run; the events have all.
const maxDenials = 3

// denied tells of a workload that has failed what its network refused it: programs say
// "Connection refused", or that there is no such name, whoever it was.
func (a *app) denied(res core.Result) {
	if res.ExitCode == 0 || res.Network == nil || res.Network.Denied == 0 {
		return
	}
	var what []string
	hint := ""
	for _, d := range res.Network.Denials[:min(len(res.Network.Denials), maxDenials)] {
		what = append(what, refusal(d))
		if hint == "" {
			hint = grant(d)
		}
	}
	text := fmt.Sprintf("the network's policy refused %d flows or names", res.Network.Denied)
	if len(what) > 0 {
		text += ", among them " + strings.Join(what, ", ")
	}
	a.problem("warning", text, hint)
}

func refusal(d exec.Denial) string {
	text := d.Protocol + " " + d.Destination
	switch {
	case d.Destination == "":
		text = d.Protocol + " " + d.Name
	case d.Name != "":
		text += " (" + d.Name + ")"
	}
	why := d.Reason
	if d.Where != "" {
		why += ", " + d.Where
	}
	return fmt.Sprintf("%s [%s]", text, why)
}

// grant is the rule that would let a flow through, "" where none would, or who reads it
// has to decide more than whether it may.
func grant(d exec.Denial) string {
	if d.Reason != "default" {
		return ""
	}
	if d.Name != "" {
		return fmt.Sprintf("to allow it, in egress { }: allow { names = [%q] }", d.Name)
	}
	to, err := netip.ParseAddrPort(d.Destination)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(`to allow it, in egress { }: allow { cidrs = ["%s"] }, with ports = ["%d/%s"] on a line of its own`, netip.PrefixFrom(to.Addr(), to.Addr().BitLen()), to.Port(), d.Protocol)
}
