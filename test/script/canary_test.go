package script

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// While a job with secrets runs, and when it is over, their values are in no file,
// environment, command line, log or event but where they came from and where they
// were asked for, and in the memory of no process outside the sandbox: whatever form
// they have. Only root can read all of that.
func TestASecretIsNowhereElse(t *testing.T) {
	if os.Geteuid() != 0 {
		return // root's pass runs it as a user, too
	}
	testutil.Needs(t, testutil.UserNS)
	for name, account := range map[string]func(testing.TB) *testutil.Account{"root": testutil.Self, "user": testutil.User} {
		t.Run(name, func(t *testing.T) { searchForCanaries(t, account(t)) })
	}
}

// canary is a value to search for, in all forms that it may take.
type canary struct {
	value string
	forms map[string]string
}

func newCanary() canary {
	b := make([]byte, 24)
	_, _ = rand.Read(b)                        // never fails (crypto/rand)
	v := "c/+ " + hex.EncodeToString(b) + "=%" // changes in a URL
	c := canary{v, map[string]string{"raw": v, "raw, in part": v[8:32], "hex": hex.EncodeToString([]byte(v)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(v))), "URL": url.QueryEscape(v), "URL path": url.PathEscape(v)}}
	for shift := range 3 { // where it stands in the text decides the form; the ends depend on the neighbours
		enc := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + v))
		c.forms[fmt.Sprintf("base64, shifted by %d", shift)] = enc[4 : len(enc)-4]
		c.forms[fmt.Sprintf("base64url, shifted by %d", shift)] = strings.NewReplacer("+", "-", "/", "_").Replace(enc[4 : len(enc)-4])
	}
	return c
}

// in tells in which forms the value is in b, compressed ones included.
func (c canary) in(b []byte) []string {
	var found []string
	for name, form := range c.forms {
		if bytes.Contains(b, []byte(form)) {
			found = append(found, name)
		}
	}
	for at := 0; ; at++ {
		i := bytes.Index(b[at:], []byte{0x1f, 0x8b, 8})
		if i < 0 {
			return found
		}
		at += i
		z, err := gzip.NewReader(bytes.NewReader(b[at:]))
		if err != nil {
			continue
		}
		text, _ := io.ReadAll(io.LimitReader(z, 1<<20)) // as far as it goes
		if bytes.Contains(text, []byte(c.value)) {
			found = append(found, "gzip")
		}
	}
}

func searchForCanaries(t *testing.T, a *testutil.Account) {
	file, command := newCanary(), newCanary()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	fmt.Fprint(z, file.value)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for form, text := range map[string]string{"raw": file.value, "gzip": packed.String(), "base64": base64.StdEncoding.EncodeToString([]byte("{\"a\":\"" + file.value + "\"}")), "URL": url.QueryEscape(file.value)} {
		if len(file.in([]byte("before "+text+" after"))) == 0 {
			t.Fatalf("the search does not find the form %s", form)
		}
	}
	dir := filepath.Join(a.Home, "job")
	sources := filepath.Join(dir, "sources")
	if err := os.MkdirAll(sources, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"sources/file": file.value, "sources/command": command.value,
		"host.hcl": fmt.Sprintf("plugin \"file\" {\n user = %[1]q\n}\nplugin \"exec\" {\n user = %[1]q\n config {\n command \"cat\" {\n argv = [\"/bin/cat\", %[2]q]\n }\n }\n}\n", a.Name, sources+"/command"),
		"job.hcl": fmt.Sprintf(`job "canaries" {
  command = ["sh", "-c", "v=$(cat /run/secrets/a); echo ready; read x; echo over $${#v}; true"]
  secret "a" {
    provider = "file"
    config { path = %q }
  }
  secret "b" {
    provider = "exec"
    config { command = "cat" }
  }
}
`, sources+"/file"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a.Own(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := a.CommandContext(ctx, "nucleus", "run", "-config", "job.hcl", "-host-config", "host.hcl", "-events", "events", "-trace")
	cmd.Dir = dir
	state := filepath.Join(a.Home, "state")
	cmd.Env = append(cmd.Env, "NUCLEUS_STATE_ROOT="+state)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stdout)
	if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
		_ = cmd.Wait()
		t.Fatalf("%q, %v\n%s", line, err, stderr.String())
	}
	look := func(where string, b []byte) {
		for name, c := range map[string]canary{"file": file, "exec": command} {
			for _, form := range c.in(b) {
				t.Errorf("the value of the %s provider is in %s (%s)", name, where, form)
			}
		}
	}
	files := func() {
		for _, root := range []string{a.Home, a.RuntimeDir} {
			err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				if err == nil && path == sources {
					return fs.SkipDir
				}
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				b, err := os.ReadFile(path)
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				look(path, b)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
	files()
	family := processes(t, cmd.Process.Pid)
	if len(family) != 3 {
		t.Errorf("processes of the run: %v; want supervisor, init and workload, and no plugin any more", family)
	}
	for i, pid := range family {
		for _, name := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
			if err != nil {
				t.Error(err)
			}
			look(fmt.Sprintf("/proc/%d/%s", pid, name), b)
		}
		memory := memoryOf(t, pid)
		if workload := i == 2; workload {
			if len(file.in(memory)) == 0 {
				t.Error("the value is not found in the workload's memory, where it is")
			}
			continue
		}
		if !bytes.Contains(memory, []byte("canaries")) {
			t.Errorf("process %d: not even the job's name is found in its memory", pid)
		}
		look(fmt.Sprintf("the memory of process %d (%s)", pid, []string{"supervisor", "init"}[i]), memory)
	}
	if _, err := io.WriteString(stdin, "\n"); err != nil {
		t.Error(err)
	}
	rest, _ := io.ReadAll(lines)
	if err := cmd.Wait(); err != nil || string(rest) != fmt.Sprintf("over %d\n", len(file.value)) {
		t.Errorf("%q, %v\n%s", rest, err, stderr.String())
	}
	look("standard error", stderr.Bytes())
	files()
	events, err := os.ReadFile(filepath.Join(dir, "events"))
	if err != nil || !bytes.Contains(events, []byte(`"type":"secrets.placed"`)) {
		t.Errorf("events: %v\n%s", err, events)
	}
}

// processes gives a process and those below it, by generation.
func processes(t *testing.T, pid int) []int {
	t.Helper()
	children := map[int][]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		parent, err := strconv.Atoi(f[1])
		child, cerr := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		children[parent] = append(children[parent], child)
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
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
		if mode[0] != 'r' || from > 1<<62 {
			continue // vsyscall is past what ReadAt takes
		}
		for ; from < to; from += uint64(len(page)) {
			n, err := mem.ReadAt(page, int64(from))
			if err != nil {
				break // the kernel's own pages
			}
			all = append(all, page[:n]...)
		}
	}
	return all
}
