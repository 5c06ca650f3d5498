package host

import (
	"slices"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// ModeVerdict says whether a job of a mode could start here.
type ModeVerdict struct {
	Mode string
	// State is Available if nothing that the mode needs is missing or unknown.
	State   fact.State
	Missing []string // needed and unavailable
	Unsure  []string // needed, and whether it works could not be told
	// Degraded are default protections that are not to be had here. The mode
	// starts without them, warns, and takes their names in allow_degraded.
	Degraded []string
}

// startNeeds is what the start sequence itself uses, whatever the job says.
var startNeeds = [...]string{
	featMountNS, featPIDNS, featNetNS, featIPCNS, featUTSNS, featCgroupNS,
	featNoNewPrivs, featSeccomp,
	featPidfd, featOpenat2, featCloseRange, featMemfd,
	featMountAPI, featMountSetattr, featDevpts, featProcMount,
}

// Modes judges the three modes by their rules: agent starts without default
// protections and names them, strict-agent needs them all and a control group,
// production needs the controllers of its mandatory limits too.
func Modes(h fact.Host, features []fact.Feature) []ModeVerdict {
	state := make(map[string]fact.State, len(features))
	for _, f := range features {
		state[f.Name] = f.State
	}
	agent := slices.Clone(startNeeds[:])
	var protections []string
	if h.Privileged {
		// Root may do without a user namespace, by user = "host".
		protections = append(protections, featUserNS)
	} else {
		agent = append(agent, featUserNS)
	}
	protections = append(protections, featLandlock, featLandlockScope)

	strict := append(slices.Clone(agent), protections...)
	strict = append(strict, featCgroup, featCgroupPids)
	production := append(slices.Clone(strict), featCgroupMemory, featCgroupCPU)
	// A limit of memory is to keep the sandbox from swap as well. Where only a group
	// that is made could tell, the start does: it reads that limit back.
	swapUnlimited := h.Cgroup.SwapUnlimited(state[featCgroupMemory], state[featCgroupSwap])
	if swapUnlimited {
		production = append(production, featCgroupSwap)
	}
	if h.Privileged {
		// Started as root, the strict modes map the sandbox to subordinate ids.
		strict = append(strict, featSubID)
		production = append(production, featSubID)
	}

	// Without a pids group the kernel counts processes per user namespace,
	// from 5.14 on, which is as good.
	if state[featUserNS] != fact.Available || !h.KernelAtLeast(5, 14) {
		protections = append(protections, featCgroupPids)
	}
	if swapUnlimited {
		protections = append(protections, featCgroupSwap)
	}
	verdicts := []ModeVerdict{
		judgeMode("agent", agent, state),
		judgeMode("strict-agent", strict, state),
		judgeMode("production", production, state),
	}
	for _, p := range protections {
		if state[p] != fact.Available {
			verdicts[0].Degraded = append(verdicts[0].Degraded, p)
		}
	}
	return verdicts
}

func judgeMode(mode string, needs []string, state map[string]fact.State) ModeVerdict {
	v := ModeVerdict{Mode: mode, State: fact.Available}
	for _, n := range needs {
		switch state[n] {
		case fact.Available:
		case fact.Unavailable:
			v.Missing = append(v.Missing, n)
		default:
			v.Unsure = append(v.Unsure, n)
		}
	}
	switch {
	case len(v.Missing) > 0:
		v.State = fact.Unavailable
	case len(v.Unsure) > 0:
		v.State = fact.Unknown
	}
	return v
}

// NetworkVerdict says whether a network plugin of this project could work here, by
// one of its ways.
type NetworkVerdict struct {
	Plugin  string
	Path    string // "" for one with a single way, or for what it does whatever a job asks for
	State   fact.State
	Missing []string
	Unsure  []string
}

// Networks judges the network plugins by what their ways need of the kernel. That
// netbridge wants root is no feature: it is "root" among what is missing.
func Networks(h fact.Host, features []fact.Feature) []NetworkVerdict {
	state := make(map[string]fact.State, len(features)+1)
	for _, f := range features {
		state[f.Name] = f.State
	}
	state["root"] = fact.Unavailable
	if h.Privileged {
		state["root"] = fact.Available
	}
	bridge := []string{"root", featNetNS, featVeth, featBridge, featNft, featForwarding}
	var out []NetworkVerdict
	for _, x := range []struct {
		plugin, path string
		needs        []string
	}{
		{"netbridge", "", bridge},
		{"netbridge", "names", append(slices.Clone(bridge), featNumgen, featConntrack)},
		{"netuserspace", "kernel", []string{featNetNS, featNft, featTProxy}},
		{"netuserspace", "netstack", []string{featNetNS, featTun}},
	} {
		v := judgeMode("", x.needs, state)
		out = append(out, NetworkVerdict{x.plugin, x.path, v.State, v.Missing, v.Unsure})
	}
	return out
}
