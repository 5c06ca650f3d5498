package lifecycle

import (
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/listen"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

func TestSocketsGoWithThePlan(t *testing.T) {
	web := func(mode job.Mode, n plan.Network) *plan.Plan {
		return &plan.Plan{Mode: mode, Network: n, SocketActivation: true}
	}
	none, host, bridge := plan.Network{Backend: "none"}, plan.Network{Backend: "host"}, plan.Network{Backend: "bridge", Plugin: true}
	local, ip := []listen.Socket{{FD: 3}}, []listen.Socket{{FD: 3}, {FD: 4, IP: true}}
	for what, test := range map[string]struct {
		plan    *plan.Plan
		sockets []listen.Socket
		want    string
	}{
		"none wanted, none passed":      {&plan.Plan{}, nil, ""},
		"none wanted":                   {&plan.Plan{}, local, "does not want any"},
		"none passed":                   {web(job.ModeAgent, none), nil, "none were passed"},
		"local, no network":             {web(job.ModeProduction, none), local, ""},
		"local, a plugin's network":     {web(job.ModeProduction, bridge), local, ""},
		"IP, no network":                {web(job.ModeAgent, none), ip, ""},
		"IP, no network, strict":        {web(job.ModeStrictAgent, none), ip, "mode strict-agent refuses"},
		"IP, no network, in production": {web(job.ModeProduction, none), ip, "mode production refuses"},
		"IP, the host's network":        {web(job.ModeAgent, host), ip, ""},
		"IP, a plugin's network":        {web(job.ModeAgent, bridge), ip, "goes around the policy"},
	} {
		s := &Sandbox{plan: test.plan, cfg: Config{Listen: test.sockets}}
		err := s.checkSockets()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", what, err, test.want)
		}
	}
}
