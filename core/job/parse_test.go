package job

import (
	"bytes"
	"testing"
)

func diagText(t *testing.T, name, src string, o Options) string {
	t.Helper()
	_, diags := Parse(name, []byte(src), o)
	var b bytes.Buffer
	if err := WriteDiagnostics(&b, map[string][]byte{name: []byte(src)}, diags, 0, false); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestSmoke(t *testing.T) {
	t.Log(diagText(t, "job.hcl", `
variable "x" { type = number }
locals { 
 a = local.b 
 b = "x${local.a}"
 c = foo
}
job "Web" {
  command = ["/bin/true", 1e999999999, upper("x", 3)]
  comand = 3
  mode = "prod"
  env = { LD_PRELOAD = "x", "1" = 2 }
  resources { 
    memory = "512M" 
	pids = "4"
	rlimit "nofiles" { soft = 3 }
  }
  network "none" {
    publish {
      host = "1.2.3.4:99999"
    }
  }
}`, Options{Dir: "/w", Vars: map[string]string{"y": "1"}}))
}
