package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// patience bounds every command of these tests but the one that connects thousands of
// times.
const patience = 90 * time.Second

// client is the program that runs in the sandboxes, static, as bytes.
var client []byte

func TestMain(m *testing.M) {
	if os.Getenv(withoutNFTables) != "" {
		fmt.Fprintln(os.Stderr, becomeWithoutNFTables(os.Args[1:]))
		os.Exit(1)
	}
	if os.Geteuid() == 0 {
		dir, err := os.MkdirTemp("", "client")
		if err == nil {
			build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "client"), "./client")
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			var out []byte
			if out, err = build.CombinedOutput(); err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			} else {
				client, err = os.ReadFile(filepath.Join(dir, "client"))
			}
			_ = os.RemoveAll(dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "building the client of the sandboxes:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// site is one account on the host of a laboratory, with a backend.
type site struct {
	t       *testing.T
	lab     *netlab.Lab
	who     *account
	backend string
	conf    string // the host configuration
	more    string // lines of all jobs
	stuff   string // the volume of the sandboxes
	state   string
	jobs    int
}

// setup is a backend and who uses it.
type setup struct {
	backend string
	who     func(*testing.T) *account
	config  string // of the backend
	runtime string // the runtime block of its jobs
}

// order is that of the setups.
var order = []string{"netbridge/root", "netuserspace/root", "netuserspace/user", "netstack/root", "netstack/user"}

// setups are those that must agree with each other. netstack is netuserspace as it is
// where a kernel has no nftables for the sandbox.
var setups = map[string]setup{
	"netbridge/root":    {backend: "netbridge", who: root},
	"netuserspace/root": {backend: "netuserspace", who: root},
	"netuserspace/user": {backend: "netuserspace", who: ordinary},
	"netstack/root":     {backend: "netuserspace", who: root, config: `path = "netstack"`},
	"netstack/user":     {backend: "netuserspace", who: ordinary, config: `path = "netstack"`},
}

// sites runs a test in each setup, with a laboratory of its own.
func sites(t *testing.T, test func(*testing.T, *site)) {
	t.Helper()
	sitesOf(t, order, test)
}

func sitesOf(t *testing.T, names []string, test func(*testing.T, *site)) {
	t.Helper()
	netlab.Needs(t)
	for _, name := range names {
		t.Run(name, func(t *testing.T) { test(t, newSite(t, setups[name])) })
	}
}

func newSite(t *testing.T, with setup) *site {
	t.Helper()
	s := &site{t: t, lab: netlab.New(t), who: with.who(t), backend: with.backend}
	if with.backend != "none" {
		if _, err := os.Stat(filepath.Join(s.who.bins, "plugins", "nucleus-plugin-"+with.backend)); err != nil {
			t.Fatalf("%v (make build?)", err)
		}
	}
	s.state = filepath.Join(s.who.run, "nucleus")
	s.stuff = filepath.Join(s.who.dir, "stuff")
	if err := os.Mkdir(s.stuff, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.stuff, "client"), client, 0o755); err != nil {
		t.Fatal(err)
	}
	s.more = with.runtime
	if with.runtime != "" {
		s.who.lendRunsc(t)
	}
	s.configure(with.config)
	return s
}

// configure writes the host configuration, with what the operator tells the backend.
func (s *site) configure(config string) {
	s.t.Helper()
	text := fmt.Sprintf("plugin_dirs = [%q]\nstate_root = %q\n", filepath.Join(s.who.bins, "plugins"), s.state)
	text += fmt.Sprintf("plugin %q {\n%s%s}\n", s.backend, rights(s.backend, s.who), block("config", config))
	s.conf = filepath.Join(s.who.dir, "host.hcl")
	if err := os.WriteFile(s.conf, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// rights are what the backend's documentation tells an operator to give it.
func rights(backend string, who *account) string {
	if backend == "netbridge" && who.uid == 0 {
		return "caps = [\"NET_ADMIN\", \"NET_BIND_SERVICE\"]\n"
	}
	return ""
}

func block(name, content string) string {
	if content == "" {
		return ""
	}
	return name + " {\n" + content + "\n}\n"
}

// job is one to run: network is the content of its network block.
type job struct {
	name    string
	network string
	config  string // of the backend, in the job
	probes  []probe.Probe
	more    string // lines of the job
	backend string // "" for the site's
}

// write gives the path of the job's file.
func (s *site) write(j job) string {
	s.t.Helper()
	s.jobs++
	if j.name == "" {
		j.name = fmt.Sprintf("job-%d", s.jobs)
	}
	if j.backend == "" {
		j.backend = s.backend
	}
	list, err := json.Marshal(j.probes)
	if err != nil {
		s.t.Fatal(err)
	}
	file := fmt.Sprintf("%s-%d.json", j.name, s.jobs)
	if err := os.WriteFile(filepath.Join(s.stuff, file), list, 0o644); err != nil {
		s.t.Fatal(err)
	}
	text := fmt.Sprintf("job %q {\ncommand = [\"/probe/client\", \"/probe/%s\"]\n%s\n%s\n", j.name, file, j.more, s.more)
	text += fmt.Sprintf("volume \"probe\" {\nsource = %q\ntarget = \"/probe\"\nread_only = true\n}\n", s.stuff)
	text += fmt.Sprintf("network %q {\n%s%s\n}\n}\n", j.backend, block("config", j.config), j.network)
	path := filepath.Join(s.who.dir, fmt.Sprintf("%s-%d.hcl", j.name, s.jobs))
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// nucleus prepares the command on the laboratory's host.
func (s *site) nucleus(ctx context.Context, args ...string) *exec.Cmd {
	program := filepath.Join(s.who.bins, "nucleus")
	cmd := s.lab.Host.CommandAs(ctx, s.who.uid, s.who.gid, program, args...)
	cmd.Env = s.who.env()
	cmd.WaitDelay = 5 * time.Second // an orphan that holds the output must not hang the test
	return cmd
}

// event is a line of -events.
type event struct {
	Type   string
	Error  string
	Detail struct {
		Protocol, Destination, Name, Reason, Where string
		Rule                                       *int
		Count                                      uint64
		Plugin, Backend                            string
		Addresses, Published                       []string
	}
}

// outcome is what came of a run.
type outcome struct {
	code    int
	stderr  string
	results map[string]probe.Result
	events  []event
}

// running is a run that has not ended.
type running struct {
	s      *site
	cmd    *exec.Cmd
	job    string
	events string
	stderr bytes.Buffer
	mu     sync.Mutex
	lines  map[string]probe.Result
	came   chan struct{}
	done   chan struct{}
}

// start begins a run.
func (s *site) start(j job) *running { return s.startWithin(patience, j) }

func (s *site) startWithin(limit time.Duration, j job) *running { return s.startWith(limit, j) }

// startWith adds flags of nucleus run.
func (s *site) startWith(limit time.Duration, j job, flags ...string) *running {
	s.t.Helper()
	path := s.write(j)
	r := &running{s: s, job: path, lines: map[string]probe.Result{}, came: make(chan struct{}, 1), done: make(chan struct{})}
	r.events = filepath.Join(s.who.home, filepath.Base(path)+".events")
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	s.t.Cleanup(cancel)
	r.cmd = s.nucleus(ctx, append([]string{"run", "-host-config", s.conf, "-events", r.events, "-config", path}, flags...)...)
	r.cmd.Stderr = &r.stderr
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = r.cmd.Process.Kill() // a test that failed half-way
		<-r.done
	})
	go r.read(bufio.NewScanner(out))
	return r
}

func (r *running) read(lines *bufio.Scanner) {
	defer close(r.done)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var one probe.Result
		if json.Unmarshal(lines.Bytes(), &one) != nil {
			continue
		}
		r.mu.Lock()
		r.lines[one.ID] = one
		r.mu.Unlock()
		select {
		case r.came <- struct{}{}:
		default:
		}
	}
}

// result waits for that of one probe.
func (r *running) result(id string) probe.Result {
	r.s.t.Helper()
	limit := time.After(patience)
	for {
		r.mu.Lock()
		one, ok := r.lines[id]
		r.mu.Unlock()
		if ok {
			return one
		}
		select {
		case <-r.came:
		case <-r.done:
			r.mu.Lock()
			one, ok := r.lines[id]
			r.mu.Unlock()
			if ok {
				return one
			}
			_ = r.cmd.Wait()
			r.s.t.Fatalf("the run ended before the probe %q: %s", id, r.stderr.String())
		case <-limit:
			r.s.t.Fatalf("no result of the probe %q", id)
		}
	}
}

// wait waits for the end.
func (r *running) wait() outcome {
	r.s.t.Helper()
	<-r.done
	o := outcome{code: exitCode(r.s.t, r.cmd, r.cmd.Wait()), stderr: r.stderr.String(), results: r.lines}
	data, err := os.ReadFile(r.events)
	if err != nil {
		r.s.t.Logf("no events: %v", err)
	}
	for line := range strings.Lines(string(data)) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			r.s.t.Errorf("event %q: %v", line, err)
		}
		o.events = append(o.events, e)
	}
	if r.s.more != "" && o.code != 125 && len(o.of("runtime.prepared")) != 1 {
		r.s.t.Error("no runtime plugin was asked")
	}
	return o
}

// run runs a job to its end, which has to be a good one.
func (s *site) run(j job) outcome {
	s.t.Helper()
	o := s.start(j).wait()
	if o.code != 0 {
		s.t.Fatalf("exit code %d: %s", o.code, o.stderr)
	}
	for _, p := range j.probes {
		if _, ok := o.results[p.ID]; !ok {
			s.t.Errorf("no result of the probe %q", p.ID)
		}
	}
	return o
}

// gc collects what is left, and gives what it printed.
func (s *site) gc() string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := s.nucleus(ctx, "gc", "-host-config", s.conf)
	out, err := cmd.CombinedOutput()
	if code := exitCode(s.t, cmd, err); code != 0 {
		s.t.Errorf("nucleus gc: exit code %d: %s", code, out)
	}
	return string(out)
}

func (o outcome) of(kind string) []event {
	var all []event
	for _, e := range o.events {
		if e.Type == kind {
			all = append(all, e)
		}
	}
	return all
}
