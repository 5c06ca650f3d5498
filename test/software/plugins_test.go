package software

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// TestExamplesOfPlugins runs the jobs of examples/plugins with its host configuration,
// in which only paths, users and the hour are others.
func TestExamplesOfPlugins(t *testing.T) {
	const dir = "../../examples/plugins"
	jobs, err := filepath.Glob(dir + "/*.hcl")
	if err != nil || len(jobs) == 0 {
		t.Fatalf("%q, %v", jobs, err)
	}
	shows := map[string]string{
		"dotenv.hcl": `16 /run/secrets/api\n13 /run/secrets/db-password\n29 total`,
		"curfew.hcl": `the next curfew is at \d\d:00`,
		"seats.hcl":  `seated`,
	}
	asEach(t, func(t *testing.T, h host) {
		testutil.NoLeaks(t, h.scope())
		at := filepath.Join(h.Home, "plugins")
		seats := filepath.Join(at, "seats")
		if err := os.MkdirAll(seats, 0o755); err != nil {
			t.Fatal(err)
		}
		conf := read(t, dir+"/host.conf")
		later := time.Now().Add(2 * time.Hour).Hour()
		for from, to := range map[string]string{
			"/tmp/nucleus-example.env": at + "/env", "/tmp/nucleus-seats": seats,
			"from  = 22": "from = " + strconv.Itoa(later), "until = 6": "until = " + strconv.Itoa((later+1)%24),
			"\" {\n  ": "\" {\n  user = \"" + h.Name + "\"\n  ",
		} {
			if !strings.Contains(conf, from) {
				t.Fatalf("host.conf has no %q", from)
			}
			conf = strings.ReplaceAll(conf, from, to)
		}
		write(t, at+"/host.conf", "plugin_dirs = [\""+h.Bin+"/examples\"]\n"+conf, 0o644)
		write(t, at+"/env", read(t, dir+"/example.env"), 0o600)
		h.Own(t, at)
		for _, job := range jobs {
			name := filepath.Base(job)
			t.Run(name, func(t *testing.T) {
				want, ok := shows[name]
				if !ok {
					t.Fatal("this example is not tried: say what it shows")
				}
				write(t, filepath.Join(at, name), read(t, job), 0o644)
				ctx, cancel := context.WithTimeout(t.Context(), testutil.Patient(patience))
				defer cancel()
				c := h.CommandContext(ctx, "nucleus", "run", "-host-config", at+"/host.conf", "-config", filepath.Join(at, name))
				c.Env = append(c.Env, "NUCLEUS_STATE_ROOT="+h.state)
				r := finish(t, c, nil)
				if r.code != 0 || !regexp.MustCompile("(?m)^"+want+"$").MatchString(r.out) {
					t.Errorf("exit code %d, output without %s\n%s\n%s", r.code, want, tail(r.out), tail(r.err))
				}
			})
		}
		if left, err := os.ReadDir(seats); err != nil || len(left) > 0 {
			t.Errorf("seats that are still taken: %v, %v", left, err)
		}
	})
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}
