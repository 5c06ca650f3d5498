package plan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/job"
)

func TestSecretsNeedSomebodyWhoGivesThem(t *testing.T) {
	in := inputs(rootV2())
	in.Secrets = false
	p, err := Make(jobOf(t, `secret "db" {`, `provider = "file"`, `}`), in)
	if want := `job.hcl:3: secret "db": secrets providers are not available in this version of Nucleus`; err == nil || err.Error() != want {
		t.Errorf("%+v, %v; want %s", p, err, want)
	}
}

func TestSecretsAreRefused(t *testing.T) {
	file := func(name, target string) job.Secret {
		return job.Secret{Name: name, Provider: "p", Target: target, Mode: 0o400}
	}
	var many []job.Secret
	for i := range MaxSecrets + 1 {
		many = append(many, file(fmt.Sprintf("s%d", i), fmt.Sprintf("/run/secrets/%d", i)))
	}
	for name, c := range map[string]struct {
		secrets []job.Secret
		want    string
	}{
		"too many":           {many, `secret "s64": a job has at most 64 secrets`},
		"PATH":               {[]job.Secret{{Name: "a", Provider: "p", Env: "PATH"}}, `secret "a": "PATH" is set by Nucleus`},
		"HOME":               {[]job.Secret{{Name: "a", Provider: "p", Env: "HOME"}}, `secret "a": "HOME" is set by Nucleus`},
		"a variable twice":   {[]job.Secret{{Name: "a", Provider: "p", Env: "A"}, {Name: "b", Provider: "p", Env: "A"}}, `secret "b": "A" is set twice`},
		"one of the job":     {[]job.Secret{{Name: "a", Provider: "p", Env: "TAKEN"}}, `secret "a": "TAKEN" is set twice`},
		"no name":            {[]job.Secret{{Name: "a", Provider: "p", Env: "A=B"}}, `secret "a": "A=B" is no name of a variable`},
		"set-user-ID":        {[]job.Secret{{Name: "a", Provider: "p", Target: "/run/secrets/a", Mode: 0o4755}}, "has more than permissions"},
		"outside":            {[]job.Secret{file("a", "/etc/shadow")}, `"/etc/shadow" is not a clean path below /run/secrets`},
		"the directory":      {[]job.Secret{file("a", "/run/secrets/")}, "is not a clean path"},
		"up":                 {[]job.Secret{file("a", "/run/secrets/../x")}, "is not a clean path"},
		"relative":           {[]job.Secret{file("a", "run/secrets/x")}, "is not a clean path"},
		"one target":         {[]job.Secret{file("a", "/run/secrets/x"), file("b", "/run/secrets/x")}, `the target of secret "a"`},
		"one below":          {[]job.Secret{file("a", "/run/secrets/x/y"), file("b", "/run/secrets/x")}, `are in each other's way`},
		"a volume over them": {[]job.Secret{file("a", "/run/secrets/x")}, `"/run/secrets" is in /run/secrets, where the secrets are`},
	} {
		// Jobs that no file was read for: the decoder refuses some of these itself.
		j := jobOf(t)
		j.Secrets, j.Env = c.secrets, map[string]string{"TAKEN": "1"}
		if strings.HasPrefix(name, "a volume") {
			j.Volumes = []job.Volume{{Name: "v", Source: "/usr", Target: "/run/secrets"}}
		}
		if _, err := Make(j, inputs(rootV2())); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	j := jobOf(t)
	j.Secrets = many[:MaxSecrets]
	if _, err := Make(j, inputs(rootV2())); err != nil {
		t.Errorf("as many as there may be: %v", err)
	}
}

// TestThePlanHidesWhatProvidersAreTold: it may be what opens a store.
func TestThePlanHidesWhatProvidersAreTold(t *testing.T) {
	p := mustPlan(t, jobOf(t, `secret "db" {`, `provider = "vault"`, `config {`, `token = "hunter2"`, `}`, `}`, `secret "v" {`, `provider = "vault"`, `env = "V"`, `}`), rootV2())
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	oci, err := json.Marshal(p.OCI())
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := Explain(&text, p); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{string(b), string(oci), text.String()} {
		if strings.Contains(s, "hunter2") {
			t.Error(s)
		}
	}
	if p.Secrets[0].Config == nil {
		t.Error("the provider is told nothing")
	}
	if !regexp.MustCompile(`(?m)^WARNING +secret "v" is in the environment: every program of the sandbox sees it$`).MatchString(text.String()) {
		t.Error(text.String())
	}
	for _, kv := range p.Process.Env {
		if strings.HasPrefix(kv, "V=") {
			t.Error(kv)
		}
	}
	if m, ok := findMount(p, "/run/secrets"); !ok || !m.Has("ro") || m.Kind != MountSecrets {
		t.Errorf("%+v", m)
	}
	if _, ok := findMount(mustPlan(t, jobOf(t, `secret "v" {`, `provider = "vault"`, `env = "V"`, `}`), rootV2()), "/run/secrets"); ok {
		t.Error("a mount for files that there are none of")
	}
}
