package e2e

import "testing"

const gvisor = "runtime \"gvisor\" {}\n"

// underGVisor runs a test where the workload's kernel is gVisor's, which opens sockets
// of the sandbox's network namespace for it.
func underGVisor(t *testing.T, test func(*testing.T, *site)) {
	t.Helper()
	for name, with := range map[string]setup{
		"netbridge/root":    {backend: "netbridge", who: root},
		"netuserspace/user": {backend: "netuserspace", who: ordinary},
		"netstack/user":     {backend: "netuserspace", who: ordinary, config: `path = "netstack"`},
	} {
		with.runtime = gvisor
		t.Run(name, func(t *testing.T) { test(t, newSite(t, with)) })
	}
}

func TestVerdictsUnderGVisor(t *testing.T)     { underGVisor(t, verdicts) }
func TestFirstPacketUnderGVisor(t *testing.T)  { underGVisor(t, firstPackets) }
func TestPublishedUnderGVisor(t *testing.T)    { underGVisor(t, publishedPorts) }
func TestPublishedNoWayOutGVisor(t *testing.T) { underGVisor(t, noWayOut) }
