package plan

import (
	"encoding/json"
	"strings"
	"testing"
)

// What is written down of a plan has no word of a job that could be a secret, and all that
// holds for its sandbox.
func TestBareHasNoSecretsAndAllThatHolds(t *testing.T) {
	p := mustPlan(t, parse(t, "job.hcl", `job "x" {
  command = ["/bin/server", "--token=s3cret-argument"]
  env     = { PASSWORD = "s3cret-variable" }
  init    = true
  resources { memory = "64MiB" }
  volume "data" {
    source = "/srv"
    target = "/data"
  }
  hook "createRuntime" {
    command = ["/usr/libexec/x", "s3cret-hook"]
    env     = { KEY = "s3cret-hook-variable" }
  }
  readiness {
    exec = ["/bin/check", "s3cret-probe"]
  }
  health {
    http = "http://127.0.0.1:8080/ok?key=s3cret-query"
  }
  secret "db" {
    provider = "file"
    target   = "/run/secrets/db"
    config {
      path = "/etc/s3cret-config"
    }
  }
}
`), rootV2())
	p.Annotations = map[string]string{"note": "s3cret-annotation"}
	p.Files = append(p.Files, File{Path: "/etc/x", Content: "s3cret-file", Mode: 0o600})
	all, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(all), "s3cret-"); n < 7 {
		t.Fatalf("the plan itself has only %d of them: the test has no teeth", n)
	}
	b, err := json.Marshal(p.Bare())
	if err != nil {
		t.Fatal(err)
	}
	bare := string(b)
	if i := strings.Index(bare, "s3cret"); i >= 0 {
		t.Errorf("%s", bare[max(0, i-80):min(len(bare), i+80)])
	}
	for _, command := range []string{"/bin/server", "/bin/check", "/usr/libexec/x"} {
		if strings.Contains(bare, command) {
			t.Errorf("%s is in it", command)
		}
	}
	for _, want := range []string{
		`"PASSWORD"`, `"destination":"/data"`, `"limit":67108864`, `"createRuntime"`, `"/run/secrets/db"`, `"/etc/x"`, `"landlock":{"abi"`, `"job.hcl:5"`,
	} {
		if !strings.Contains(bare, want) {
			t.Errorf("%s is not in it", want)
		}
	}
	if p.Process.Env[0] == p.Bare().Process.Env[0] || len(p.Process.Args) == 0 || p.Readiness.Exec == nil {
		t.Error("the plan itself was changed")
	}
}
