package job

import (
	"slices"
	"strings"
	"testing"
)

const stack = `
variable "port" {
  default = 8080
}
locals {
  where = "port ${var.port}"
}
job "db" {
  command = ["/bin/db", local.where]
  readiness {
    exec = ["/bin/check"]
  }
}
job "schema" {
  command = ["/bin/migrate"]
  depends_on {
    job       = "db"
    condition = "ready"
  }
}
job "web" {
  command = ["/bin/web", tostring(var.port)]
  env     = { A = "1" }
  depends_on {
    job       = "schema"
    condition = "exited"
  }
  depends_on {
    job = "db"
  }
}
`

func mustParseAll(t *testing.T, src string, o Options) []*Job {
	t.Helper()
	o.Dir = "/home/me"
	jobs, diags := ParseAll("stack.hcl", []byte(src), o)
	if diags.HasErrors() {
		t.Fatal(describe(src, diags))
	}
	return jobs
}

func TestJobsShareVariablesAndLocals(t *testing.T) {
	jobs := mustParseAll(t, stack, Options{Vars: map[string]string{"port": "9"}})
	if len(jobs) != 3 || jobs[0].Name != "db" || jobs[1].Name != "schema" || jobs[2].Name != "web" {
		t.Fatalf("%d jobs", len(jobs))
	}
	if jobs[0].Command[1] != "port 9" || jobs[2].Command[1] != "9" {
		t.Errorf("commands %q and %q", jobs[0].Command, jobs[2].Command)
	}
	want := []Dependency{{"schema", ConditionExited}, {"db", ConditionStarted}}
	if !slices.Equal(jobs[2].DependsOn, want) {
		t.Errorf("web depends on %v, want %v", jobs[2].DependsOn, want)
	}
	// What stands in one job says nothing of the others.
	if jobs[1].Readiness != nil || len(jobs[0].Env) > 0 {
		t.Errorf("a job has what is another's: %+v", jobs[1])
	}
	for path, at := range map[string]string{"command": "stack.hcl:22,3", "depends_on[1].job": "stack.hcl:29,5", "mode": "stack.hcl:21,1", "readiness": "stack.hcl:21,1"} {
		if got := jobs[2].Where(path); got != at {
			t.Errorf("%s of the third job is at %s, want %s", path, got, at)
		}
	}
}

func TestOneJobOfSeveral(t *testing.T) {
	o := Options{Dir: "/home/me", Job: "schema", Name: "other", Command: []string{"/bin/sh"}}
	j, diags := Parse("stack.hcl", []byte(stack), o)
	if diags.HasErrors() {
		t.Fatal(describe(stack, diags))
	}
	if j.Name != "other" || !slices.Equal(j.Command, o.Command) || len(j.DependsOn) != 1 {
		t.Errorf("%+v", j)
	}
	_, diags = Parse("stack.hcl", []byte(stack), Options{Dir: "/home/me", Job: "shema"})
	if len(diags) != 1 || diags[0].Subject != nil || !strings.Contains(diags[0].Detail, `Did you mean "schema"?`) {
		t.Errorf("an unknown job: %v", diags)
	}
	// What is wrong with a job that is not wanted is told as well.
	_, diags = Parse("stack.hcl", []byte(stack+"job \"z\" {\n}\n"), Options{Dir: "/home/me", Job: "db"})
	if !diags.HasErrors() {
		t.Error("a file with a job that has no command is in order")
	}
}

func TestNames(t *testing.T) {
	names, diags := Names("stack.hcl", []byte(strings.ReplaceAll(stack, "default = 8080", "")))
	if diags.HasErrors() || !slices.Equal(names, []string{"db", "schema", "web"}) {
		t.Errorf("%q, %v", names, diags)
	}
	for path, want := range map[string]string{"stack.hcl": "stack", "../a/My App.hcl": "my-app", ".hcl": "job", "/x/": "x", "a.b.hcl": "a-b"} {
		if got := NameOfFile(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func TestDigest(t *testing.T) {
	of := func(src, name string, o Options, key string) string {
		for _, j := range mustParseAll(t, src, o) {
			if j.Name == name {
				d, err := j.Digest([]byte(key))
				if err != nil || len(d) != 64 {
					t.Fatalf("%q, %v", d, err)
				}
				return d
			}
		}
		t.Fatal(name)
		return ""
	}
	const plugins = `
job "x" {
  command = ["/bin/true"]
  network "netbridge" {
    config {
      b = local.b
      a = [1, "x"]
      c {
        d = 1
      }
    }
  }
  secret "s" {
    provider = "file"
    config {
      path = "/p"
    }
  }
  plugin_hook "h" {
    config {
      n = 1
    }
  }
  runtime "r" {
    config {
      n = 1
    }
  }
}
locals {
  b = "b"
}
`
	for name, tc := range map[string]struct {
		src, job, with string
		o              Options
		same           bool
	}{
		"unchanged":           {src: stack, job: "web", with: stack, same: true},
		"moved":               {src: stack, job: "web", with: "# more\n\n" + strings.Replace(stack, `"1" }`, "\"1\" # why\n}", 1), same: true},
		"another job changed": {src: stack, job: "web", with: strings.Replace(stack, "/bin/db", "/bin/db2", 1), same: true},
		"a variable":          {src: stack, job: "web", with: stack, o: Options{Vars: map[string]string{"port": "1"}}},
		"not its variable":    {src: stack, job: "schema", with: stack, o: Options{Vars: map[string]string{"port": "1"}}, same: true},
		"environment":         {src: stack, job: "web", with: strings.Replace(stack, `"1"`, `"2"`, 1)},
		"condition":           {src: stack, job: "web", with: strings.Replace(stack, `"exited"`, `"started"`, 1)},
		"host's defaults":     {src: stack, job: "web", with: stack, o: Options{Defaults: Defaults{CPUs: 1}}},
		"order in a config":   {src: plugins, job: "x", with: strings.Replace(plugins, "      b = local.b\n      a = [1, \"x\"]\n", "      a = [1, \"x\"]\n      b = \"b\"\n", 1), same: true},
		"a config":            {src: plugins, job: "x", with: strings.Replace(plugins, "b = \"b\"", "b = \"c\"", 1)},
		"a block in a config": {src: plugins, job: "x", with: strings.Replace(plugins, "d = 1", "d = 2", 1)},
		"a secret's config":   {src: plugins, job: "x", with: strings.Replace(plugins, `"/p"`, `"/q"`, 1)},
		"a hook's config":     {src: plugins, job: "x", with: strings.Replace(plugins, "n = 1", "n = 2", 1)},
		"a runtime's config":  {src: plugins, job: "x", with: strings.Replace(plugins, "runtime \"r\" {\n    config {\n      n = 1", "runtime \"r\" {\n    config {\n      n = 2", 1)},
	} {
		if tc.with == tc.src && !tc.same && tc.o.Vars == nil && tc.o.Defaults.CPUs == 0 {
			t.Fatalf("%s: nothing changes", name)
		}
		if got := of(tc.src, tc.job, Options{}, "k") == of(tc.with, tc.job, tc.o, "k"); got != tc.same {
			t.Errorf("%s: the same is %v", name, got)
		}
	}
	if of(stack, "web", Options{}, "k") == of(stack, "web", Options{}, "l") {
		t.Error("the key does not count")
	}
}
