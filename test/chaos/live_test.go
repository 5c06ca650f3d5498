package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// What the tests of sandboxes that live share: those are detached, and asked through
// their control socket.

// must runs nucleus and gives what it printed, without the newline.
func (s *site) must(args ...string) string {
	s.t.Helper()
	code, out := s.try(args...)
	if code != 0 {
		s.t.Fatalf("nucleus %q: exit code %d: %s", args, code, out)
	}
	return strings.TrimSpace(out)
}

// shell is a job that runs a script; more are its further lines.
func (s *site) shell(name, script, more string) string {
	s.t.Helper()
	return s.job(name, "  command = [\"/bin/sh\", \"-c\", "+quote(script)+"]\n"+more)
}

// live is what inspect and ps tell of a sandbox.
type live struct {
	ID, Name, Status string
	Pid              int
	InitPid          int `json:"init_pid"`
	Supervisor       int
	Cgroup           map[string]string
	Result           *struct {
		Cause    string
		ExitCode int `json:"exit_code"`
	}
}

func (s *site) inspect(name string) live {
	s.t.Helper()
	return decoded[live](s, s.must("inspect", name))
}

// ask runs nucleus as must does, where several do so at once.
func (s *site) ask(args ...string) error {
	_, err := s.output(args...)
	return err
}

func (s *site) told(name string) (x live, err error) {
	out, err := s.output("inspect", name)
	if err == nil {
		err = json.Unmarshal(out, &x)
	}
	return x, err
}

func (s *site) output(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), testutil.Patient(patience))
	defer cancel()
	cmd := s.who.CommandContext(ctx, "nucleus", args...)
	cmd.Env = append(cmd.Env, "NUCLEUS_STATE_ROOT="+s.root)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("nucleus %q: %w: %s", args, err, out)
	}
	return out, nil
}

// ps lists what is alive, or all, by name.
func (s *site) ps(flags ...string) map[string]live {
	s.t.Helper()
	list := decoded[struct{ Sandboxes []live }](s, s.must(append([]string{"ps", "-json"}, flags...)...))
	out := map[string]live{}
	for _, x := range list.Sandboxes {
		out[x.Name] = x
	}
	return out
}

func decoded[T any](s *site, text string) (v T) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		s.t.Fatalf("%v: %s", err, text)
	}
	return v
}

// written is what the state root has of a sandbox, where asking nucleus would take its
// time, or disturb: the zero value if there is none.
func (s *site) written(name string) (x live) {
	s.t.Helper()
	id, err := os.Readlink(filepath.Join(s.root, "names", name))
	if err != nil {
		return x
	}
	b, err := os.ReadFile(filepath.Join(s.root, "sandboxes", id, "state.json"))
	if err != nil {
		return x
	}
	return decoded[live](s, string(b))
}

// until waits for something that comes by itself.
func (s *site) until(what string, done func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// beside counts from now on only what is there more than now.
func (s *site) beside() {
	s.t.Helper()
	s.before = testutil.TakeCensus(s.t, s.scope)
}
