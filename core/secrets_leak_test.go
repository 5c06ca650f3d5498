package core_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// canary is a value that is nowhere in this process's memory before New moves it:
// its text is made in the very bytes.
func canary() (value, half []byte) {
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	value = make([]byte, 32)
	hex.Encode(value, raw)
	return value, append([]byte(nil), value[:16]...)
}

// TestSecretsAreNowhereElse: while the workload runs no value is in anything that
// Nucleus writes, in what /proc shows of the supervisor and of init, or in init's
// memory.
func TestSecretsAreNowhereElse(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	var halves [][]byte
	var events bytes.Buffer
	rt := withSecrets(t, secret.SourceFunc(func(_ context.Context, r secret.Request) (map[string]*secret.Value, error) {
		out := map[string]*secret.Value{}
		for _, ref := range r.Groups[0].Refs {
			value, half := canary()
			halves = append(halves, half)
			var err error
			if out[ref.Name], err = secret.New(value); err != nil {
				return out, err
			}
		}
		return out, nil
	}), &events)
	j := secretJob(t, "echo ready; sleep 600; true", `hostname = "known-to-init"`,
		`secret "file" {`, `provider = "store"`, `}`, `secret "variable" {`, `provider = "store"`, `env = "VARIABLE"`, `}`,
		`hook "poststart" {`, `command = ["/bin/true"]`, `}`, `hook "startContainer" {`, `command = ["/bin/true"]`, `}`)
	p := planFor(t, rt, j)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, err := rt.Create(t.Context(), p, core.RunOptions{Streams: core.Streams{Out: w}})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	look := func(where string, b []byte) {
		t.Helper()
		for i, half := range halves {
			if bytes.Contains(b, half) {
				t.Errorf("the value of secret %d is in %s", i, where)
			}
		}
	}
	defer func() {
		s.Kill()
		if _, err := s.Wait(); err != nil {
			t.Error(err)
		}
		// A sandbox that lives still writes them.
		look("the events", events.Bytes())
		if !strings.Contains(events.String(), `"type":"secrets.placed","detail":{"secrets":["file","variable"]}`) {
			t.Errorf("no event: %s", events.String())
		}
	}()
	if _, err := io.ReadFull(r, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	if len(halves) != 2 {
		t.Fatalf("%d values", len(halves))
	}
	for name, v := range map[string]any{"the plan": p, "the OCI configuration": p.OCI()} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		look(name, b)
	}
	var text bytes.Buffer
	if err := plan.Explain(&text, p); err != nil {
		t.Fatal(err)
	}
	look("the explanation", text.Bytes())
	files := 0
	err = filepath.WalkDir(filepath.Join(options.StateRoot, "sandboxes", s.ID()), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		files++
		look(path, b)
		return err
	})
	if err != nil || files < 3 {
		t.Errorf("%d files in the state root: %v", files, err)
	}
	init := parentOf(t, s.Pid())
	for _, name := range []string{"self/environ", "self/cmdline", fmt.Sprintf("%d/cmdline", init), fmt.Sprintf("%d/environ", init)} {
		b, err := os.ReadFile("/proc/" + name)
		if err != nil && !errors.Is(err, os.ErrPermission) { // init is not dumpable: root alone sees it
			t.Fatal(err)
		}
		look("/proc/"+name, b)
	}
	for _, d := range descriptors(t) {
		if strings.Contains(d, "nucleus-secret") {
			t.Errorf("the supervisor still has %s", d)
		}
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.Pid()))
	if err != nil || !bytes.Contains(environ, halves[1]) || bytes.Contains(environ, halves[0]) {
		t.Errorf("the workload's own environment: %q, %v", environ, err)
	}
	if os.Geteuid() != 0 {
		return
	}
	for _, e := range mustReadDir(t, fmt.Sprintf("/proc/%d/fd", init)) {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", init, e.Name())); strings.Contains(to, "secret") {
			t.Errorf("init still has %s", to)
		}
	}
	searched := memoryOf(t, init)
	if !bytes.Contains(searched, []byte("known-to-init")) {
		t.Error("what init was told is not found in its memory either: the search proves nothing")
	}
	look("init's memory", searched)
	// It is in the workload's: the search would find it.
	if !bytes.Contains(memoryOf(t, s.Pid()), halves[1]) {
		t.Error("the value is not found in the workload's memory, where it must be")
	}
}

func mustReadDir(t *testing.T, dir string) []fs.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nPPid:\t")
	var parent int
	if _, err := fmt.Sscan(rest, &parent); err != nil {
		t.Fatal(err)
	}
	return parent
}

// memoryOf gives all that can be read of a process's memory.
func memoryOf(t *testing.T, pid int) []byte {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	var all []byte
	page := make([]byte, os.Getpagesize())
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if mode[0] != 'r' || to-from > 256<<20 {
			continue // the runtime reserves more than it uses; vsyscall, past what ReadAt takes, is not readable
		}
		for ; from < to; from += uint64(len(page)) {
			n, err := mem.ReadAt(page, int64(from))
			if err != nil {
				break // guard pages, the kernel's own
			}
			all = append(all, page[:n]...)
		}
	}
	return all
}

// TestSecretsThatSomebodyUncovers end the start: a hook makes their mount
// writable, and the audit sees it.
func TestSecretsThatSomebodyUncovers(t *testing.T) {
	testutil.Needs(t, testutil.UserNS, testutil.Program("python3"))
	rt := withSecrets(t, given(t, map[string]string{"db": "hunter2"}))
	hook := func(flags string) []string {
		return []string{
			`secret "db" {`, `provider = "store"`, `}`, `hook "createContainer" {`,
			`command = ["/usr/bin/python3", "-c", "import ctypes; c = ctypes.CDLL(None, use_errno=True); exit(c.mount(None, b'run/secrets', None, ` + flags + `, None) and ctypes.get_errno())"]`,
			`}`,
		}
	}
	// MS_REMOUNT and MS_BIND, with MS_NOSUID, MS_NODEV, MS_NOEXEC and MS_RDONLY as planned.
	if got := output(t, rt, secretJob(t, "cat /run/secrets/db", hook("32|4096|2|4|8|1")...)); got != "hunter2" {
		t.Errorf("as planned: %q", got)
	}
	for flags, want := range map[string]string{"32|4096|2|4|8": "/run/secrets: mounted rw", "32|4096|2|4|1": "want ro,nosuid,nodev,noexec", "32|4096|4|8|1": "want ro,nosuid,nodev,noexec"} {
		_, out, err := runOf(t, rt, planFor(t, rt, secretJob(t, "cat /run/secrets/db", hook(flags)...)))
		if err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("%s: %v, %q", flags, err, out)
		}
	}
}

// TestSecretsOfAnOrdinaryUser runs the tests of this package's secrets as users
// with subordinate ids and without.
func TestSecretsOfAnOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return // the tests themselves run as one
	}
	testutil.Needs(t, testutil.UserNS)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	for name, account := range map[string]func(testing.TB) *testutil.Account{"subordinate ids": testutil.User, "one id": testutil.PlainUser} {
		t.Run(name, func(t *testing.T) {
			a := account(t)
			test := filepath.Join(a.Bin, "core.test")
			if err := os.WriteFile(test, program, 0o755); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := a.CommandContext(ctx, test, "-test.run", "^(TestSecrets|TestTheSource|TestSources)", "-test.v")
			cmd.Env = append(cmd.Env, "NUCLEUS_BIN="+a.Bin)
			out, err := cmd.CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("--- PASS: TestSecretsAreFiles/default")) || !bytes.Contains(out, []byte("--- PASS: TestSecretsAreNowhereElse")) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
