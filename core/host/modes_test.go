package host

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

func TestModes(t *testing.T) {
	root := fact.Host{Kernel: "6.12.0", Privileged: true}
	user := fact.Host{Kernel: "6.12.0", EUID: 1000}
	const yes, no, unsure = fact.Available, fact.Unavailable, fact.Unknown
	for _, tc := range []struct {
		name     string
		host     fact.Host
		change   map[string]fact.State
		want     [3]fact.State // agent, strict-agent, production
		missing  []string      // of production
		degraded []string      // of agent
	}{
		{"everything, as root", root, nil, [3]fact.State{yes, yes, yes}, nil, nil},
		{"everything, as a user", user, nil, [3]fact.State{yes, yes, yes}, nil, nil},
		{
			"no Landlock", user,
			map[string]fact.State{featLandlock: no, featLandlockScope: no, featLandlockTCP: no},
			[3]fact.State{yes, no, no},
			[]string{featLandlock, featLandlockScope},
			[]string{featLandlock, featLandlockScope},
		},
		{"no memory controller", user, map[string]fact.State{featCgroupMemory: no}, [3]fact.State{yes, yes, no}, []string{featCgroupMemory}, nil},
		{"no account of swap", user, map[string]fact.State{featCgroupSwap: no}, [3]fact.State{yes, yes, no}, []string{featCgroupSwap}, []string{featCgroupSwap}},
		{"an account of swap that could not be looked for", user, map[string]fact.State{featCgroupSwap: unsure}, [3]fact.State{yes, yes, yes}, nil, nil},
		{
			"no swap at all",
			fact.Host{Kernel: "6.12.0", EUID: 1000, Cgroup: fact.Cgroup{SwapAbsent: true}},
			map[string]fact.State{featCgroupSwap: no},
			[3]fact.State{yes, yes, yes},
			nil, nil,
		},
		{"neither memory nor swap", user, map[string]fact.State{featCgroupMemory: no, featCgroupSwap: no}, [3]fact.State{yes, yes, no}, []string{featCgroupMemory}, nil},
		{
			"no groups at all", user,
			map[string]fact.State{featCgroup: no, featCgroupPids: no, featCgroupMemory: no, featCgroupSwap: no, featCgroupCPU: no},
			[3]fact.State{yes, no, no},
			[]string{featCgroup, featCgroupPids, featCgroupMemory, featCgroupCPU},
			nil,
		},
		{
			"no groups, and a kernel that counts processes per user",
			fact.Host{Kernel: "5.13.0"},
			map[string]fact.State{featCgroupPids: no},
			[3]fact.State{yes, no, no},
			[]string{featCgroupPids},
			[]string{featCgroupPids},
		},
		{"no user namespaces, as a user", user, map[string]fact.State{featUserNS: no}, [3]fact.State{no, no, no}, []string{featUserNS}, nil},
		{
			"no user namespaces, as root", root,
			map[string]fact.State{featUserNS: no, featSubID: no},
			[3]fact.State{yes, no, no},
			[]string{featUserNS, featSubID},
			[]string{featUserNS},
		},
		{"no subordinate ids, as a user", user, map[string]fact.State{featSubID: no}, [3]fact.State{yes, yes, yes}, nil, nil},
		{"no seccomp", root, map[string]fact.State{featSeccomp: no}, [3]fact.State{no, no, no}, []string{featSeccomp}, nil},
		{"what could not be told is not there", user, map[string]fact.State{featLandlock: unsure}, [3]fact.State{yes, unsure, unsure}, nil, []string{featLandlock}},
		{"missing weighs more than unknown", user, map[string]fact.State{featLandlock: unsure, featCgroupCPU: no}, [3]fact.State{yes, unsure, no}, []string{featCgroupCPU}, []string{featLandlock}},
		{"what no mode needs", user, map[string]fact.State{featTun: no, featNft: no, featTimeNS: no, featNoSwap: no, featIDMapped: no, featKeyring: no}, [3]fact.State{yes, yes, yes}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var features []fact.Feature
			for _, st := range (&session{o: ProbeOptions{Host: tc.host}}).steps() {
				f := fact.Feature{Name: st.name, State: yes}
				if s, ok := tc.change[st.name]; ok {
					f.State = s
				}
				features = append(features, f)
			}
			got := Modes(tc.host, features)
			for i, v := range got {
				if v.State != tc.want[i] {
					t.Errorf("%s: %q, want %q (%+v)", v.Mode, v.State, tc.want[i], v)
				}
			}
			// The order of userns among the needs is of no interest.
			if !sameSet(got[2].Missing, tc.missing) {
				t.Errorf("missing %v, want %v", got[2].Missing, tc.missing)
			}
			if !reflect.DeepEqual(got[0].Degraded, tc.degraded) {
				t.Errorf("degraded %v, want %v", got[0].Degraded, tc.degraded)
			}
		})
	}
}

func sameSet(a, b []string) bool {
	m := map[string]int{}
	for _, s := range a {
		m[s]++
	}
	for _, s := range b {
		m[s]--
	}
	for _, n := range m {
		if n != 0 {
			return false
		}
	}
	return true
}

func TestModesOfAHostThatNobodyProbed(t *testing.T) {
	for _, v := range Modes(fact.Host{}, nil) {
		if v.State != fact.Unknown || len(v.Unsure) == 0 {
			t.Errorf("got %+v", v)
		}
	}
}

func TestNetworks(t *testing.T) {
	features := func(without ...string) []fact.Feature {
		var out []fact.Feature
		for _, n := range []string{featNetNS, featVeth, featBridge, featNft, featForwarding, featNumgen, featConntrack, featTProxy, featTun} {
			f := fact.Feature{Name: n, State: fact.Available}
			if slices.Contains(without, n) {
				f.State = fact.Unavailable
			}
			out = append(out, f)
		}
		return out
	}
	for name, tc := range map[string]struct {
		host     fact.Host
		features []fact.Feature
		want     string
	}{
		"root":              {fact.Host{Privileged: true}, features(), "yes [] yes [] yes [] yes []"},
		"a user":            {fact.Host{}, features(), "no [root] no [root] yes [] yes []"},
		"no nftables":       {fact.Host{Privileged: true}, features(featNft, featTProxy), "no [nftables.userns] no [nftables.userns] no [nftables.userns tproxy.userns] yes []"},
		"no tproxy":         {fact.Host{}, features(featTProxy), "no [root] no [root] no [tproxy.userns] yes []"},
		"no tap":            {fact.Host{Privileged: true}, features(featTun), "yes [] yes [] yes [] no [tun]"},
		"no numgen":         {fact.Host{Privileged: true}, features(featNumgen), "yes [] no [nftables.numgen] yes [] yes []"},
		"no ctnetlink":      {fact.Host{Privileged: true}, features(featConntrack), "yes [] no [conntrack-netlink] yes [] yes []"},
		"no forwarding":     {fact.Host{Privileged: true}, features(featForwarding), "no [nftables.forwarding] no [nftables.forwarding] yes [] yes []"},
		"nobody has looked": {fact.Host{Privileged: true}, nil, "? [] ? [] ? [] ? []"},
	} {
		var got []string
		for _, v := range Networks(tc.host, tc.features) {
			state := map[fact.State]string{fact.Available: "yes", fact.Unavailable: "no", fact.Unknown: "?"}[v.State]
			got = append(got, state, fmt.Sprint(v.Missing))
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %s, want %s", name, strings.Join(got, " "), tc.want)
		}
	}
}
