package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

func TestARefusalNamesItsLineAndWhatToWrite(t *testing.T) {
	for _, x := range []struct {
		d      exec.Denial
		public bool
		want   string
	}{
		{
			exec.Denial{Protocol: "dns", Name: "denied.example", Reason: "default", Where: "job.hcl:4"},
			false,
			`nucleus: warning: job.hcl:4: the network has refused the name "denied.example": no rule allows it
nucleus: hint: to allow it, in egress { allow { … } }: names = ["denied.example"]
`,
		},
		{
			exec.Denial{Protocol: "tcp", Destination: "93.184.216.99:443", Reason: "default", Where: "job.hcl:4"},
			false,
			`nucleus: warning: job.hcl:4: the network has refused tcp to 93.184.216.99:443: no rule allows it
nucleus: hint: to allow it, in egress { allow { … } }: cidrs = ["93.184.216.99/32"], ports = ["443/tcp"]
`,
		},
		{
			exec.Denial{Protocol: "udp", Destination: "[fd00::1]:53", Reason: "default", Where: "job.hcl:4"},
			true,
			`nucleus: warning: job.hcl:4: the network has refused udp to [fd00::1]:53: it is not public
nucleus: hint: to allow it, in egress { allow { … } }: cidrs = ["fd00::1/128"], ports = ["53/udp"]; such a block has to allow all else, too, that is to be reached
`,
		},
		{
			exec.Denial{Protocol: "icmp", Destination: "10.0.0.1:0", Reason: "default"},
			false,
			`nucleus: warning: the network has refused icmp to 10.0.0.1: no rule allows it
nucleus: hint: to allow it, in egress { allow { … } }: cidrs = ["10.0.0.1/32"]
`,
		},
		{
			exec.Denial{Protocol: "tcp", Destination: "198.18.0.7:444", Name: "allowed.example", Reason: "port", Where: "job.hcl:6"},
			false,
			`nucleus: warning: job.hcl:6: the network has refused tcp to port 444 of "allowed.example": this rule has other ports
nucleus: hint: to allow it, in the allow block there: ports = ["444/tcp", …]
`,
		},
		{
			exec.Denial{Protocol: "icmp", Destination: "198.18.0.7:0", Name: "allowed.example", Reason: "port", Where: "job.hcl:6"},
			false,
			`nucleus: warning: job.hcl:6: the network has refused icmp to "allowed.example": this rule has other ports
nucleus: hint: to allow it, in an allow block of its own, without ports: names = ["allowed.example"]
`,
		},
		{
			exec.Denial{Protocol: "47", Destination: "10.0.0.1:0", Reason: "protocol", Where: "job.hcl:4"},
			false,
			"nucleus: warning: job.hcl:4: the network has refused 47 to 10.0.0.1: the network does not carry this protocol\n",
		},
		{
			exec.Denial{Protocol: "tcp", Destination: "[2001:db8::1]:443", Reason: "protocol", Where: "job.hcl:4"},
			false,
			`nucleus: warning: job.hcl:4: the network has refused tcp to [2001:db8::1]:443: the network carries no IPv6 here
nucleus: hint: what the kernel lacks for it: event network.missing (nucleus run -events FILE)
`,
		},
		{ // what a workload asks for is no line of a policy because it reads as one
			exec.Denial{Protocol: "dns", Name: "a\"], cidrs = [\"0.0.0.0/0\u202e\x1b[2J", Reason: "default", Where: "job.hcl:4"},
			false,
			`nucleus: warning: job.hcl:4: the network has refused the name "a\"], cidrs = [\"0.0.0.0/0\u202e\x1b[2J": no rule can have it
`,
		},
		{ // nor what only reads as a word of the network's
			exec.Denial{Protocol: "tcp\x1b[2J", Destination: "nowhere", Reason: "so\u202e", Where: "job.hcl:4"},
			false,
			"nucleus: warning: job.hcl:4: the network has refused tcp [2J to invalid IP: so \n",
		},
	} {
		var out bytes.Buffer
		p := &plan.Plan{Network: plan.Network{Egress: plan.Egress{Default: plan.EgressDeny}}}
		if x.public {
			p.Network.Egress.Default = plan.EgressPublic
		}
		if writeRefusals(&out, p, &exec.Network{Denials: []exec.Denial{x.d}}); out.String() != x.want {
			t.Errorf("%+v:\n%swant\n%s", x.d, &out, x.want)
		}
	}
}

func TestManyRefusalsAreToldInFewLines(t *testing.T) {
	p := &plan.Plan{Network: plan.Network{Egress: plan.Egress{Default: plan.EgressDeny}}}
	n := &exec.Network{}
	for i := range 32 {
		n.Denials = append(n.Denials,
			exec.Denial{Protocol: "tcp", Destination: fmt.Sprintf("198.18.0.%d:80", i), Name: fmt.Sprintf("n%d.example", i), Reason: "default"},
			exec.Denial{Protocol: "tcp", Destination: fmt.Sprintf("[fd00::%d]:80", i), Name: fmt.Sprintf("n%d.example", i), Reason: "default"})
	}
	var out bytes.Buffer
	writeRefusals(&out, p, n)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 12 || lines[10] != "nucleus: warning: the network has refused 27 more destinations" {
		t.Errorf("%d lines:\n%s", len(lines), &out)
	}
	out.Reset()
	n.Denied = 1 // whose kind came after all that are listed
	if writeRefusals(&out, p, n); !strings.Contains(out.String(), "has refused at least 27 more destinations\n") {
		t.Errorf("some are not listed: %s", &out)
	}
	out.Reset()
	writeRefusals(&out, p, nil)
	writeRefusals(&out, p, &exec.Network{Flows: []exec.Flow{{Name: "a.example"}}})
	if out.Len() > 0 {
		t.Errorf("nothing was refused: %s", &out)
	}
}
