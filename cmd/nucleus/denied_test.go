package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/job"
)

// Of what a network refused a workload that has failed is told, with a rule that the job file takes.
func TestDenied(t *testing.T) {
	name := exec.Denial{Protocol: "dns", Name: "api.example.com", Reason: "default", Where: "job.hcl:7", Count: 4}
	tcp := exec.Denial{Protocol: "tcp", Destination: "[2001:db8::1]:443", Reason: "default", Where: "job.hcl:7"}
	port := exec.Denial{Protocol: "tcp", Destination: "198.18.0.1:80", Name: "api.example.com", Reason: "port", Where: "job.hcl:9"}
	for what, c := range map[string]struct {
		code    int
		denials []exec.Denial
		want    string
	}{
		"it has not failed": {0, []exec.Denial{name}, ""},
		"none":              {1, nil, ""},
		"a name": {1, []exec.Denial{name}, `nucleus: warning: the network's policy refused 7 flows or names, among them dns api.example.com [default, job.hcl:7]
nucleus: hint: to allow it, in egress { }: allow { names = ["api.example.com"] }
`},
		"an address behind a port": {1, []exec.Denial{port, tcp}, `nucleus: warning: the network's policy refused 7 flows or names, among them tcp 198.18.0.1:80 (api.example.com) [port, job.hcl:9], tcp [2001:db8::1]:443 [default, job.hcl:7]
nucleus: hint: to allow it, in egress { }: allow { cidrs = ["2001:db8::1/128"] }, with ports = ["443/tcp"] on a line of its own
`},
		"many": {1, []exec.Denial{port, port, port, name}, `nucleus: warning: the network's policy refused 7 flows or names, among them tcp 198.18.0.1:80 (api.example.com) [port, job.hcl:9], tcp 198.18.0.1:80 (api.example.com) [port, job.hcl:9], tcp 198.18.0.1:80 (api.example.com) [port, job.hcl:9]
`},
	} {
		path := filepath.Join(t.TempDir(), "stderr")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		a := &app{stderr: f}
		res := core.Result{ExitCode: c.code}
		if c.denials != nil {
			res.Network = &exec.Network{Denied: 7, Denials: c.denials}
		}
		a.denied(res)
		_ = f.Close()
		got, err := os.ReadFile(path)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %v, %s\nwant %s", what, err, got, c.want)
		}
	}
	for _, d := range []exec.Denial{name, tcp} {
		_, rule, _ := strings.Cut(grant(d), "egress { }: ")
		rule, _, _ = strings.Cut(rule, ", with")
		src := "job \"a\" {\n command = [\"x\"]\n network \"netuserspace\" {\n  egress {\n   " + rule + "\n  }\n }\n}\n"
		if _, diags := job.Parse("job.hcl", []byte(src), job.Options{Dir: "/"}); diags.HasErrors() {
			t.Errorf("%s: %v", rule, diags)
		}
	}
}
