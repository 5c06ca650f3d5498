package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// left fails with what there is after all sandboxes have ended and gc has been called.
func (s *site) left(before netlab.Census, files []string) {
	s.t.Helper()
	s.gc()
	for _, change := range before.Changed(s.lab.Host.Census(s.t)) {
		s.t.Errorf("left in the host's network: %s", change)
	}
	for _, f := range s.files() {
		if !contains(files, f) {
			s.t.Errorf("left behind: %s", f)
		}
	}
	for pid, name := range processes(s.t) {
		if strings.HasPrefix(name, s.who.bins) {
			s.t.Errorf("process %d is still there: %s", pid, name)
		}
	}
}

func contains(all []string, one string) bool {
	for _, s := range all {
		if s == one {
			return true
		}
	}
	return false
}

// files are those of the runtime and state directories.
func (s *site) files() []string {
	var all []string
	err := filepath.WalkDir(s.who.run, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, path)
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// settled runs a first job, which makes directories that stay, and takes the census.
func (s *site) settled() (netlab.Census, []string) {
	s.t.Helper()
	s.run(job{network: policy, probes: []probe.Probe{{ID: "self", Kind: probe.Self}}})
	s.gc()
	return s.lab.Host.Census(s.t), s.files()
}

// processes gives the programs of all that there are.
func processes(t *testing.T) map[int]string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]string{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil {
			all[pid] = program
		}
	}
	return all
}

// plugin gives the process of the backend that a run has started: one of its account's
// copy of the program, whose ancestor the run is.
func (r *running) plugin() int {
	r.s.t.Helper()
	want := "nucleus-plugin-" + r.s.backend
	for pid := range processes(r.s.t) {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !bytes.Contains(line, []byte(want)) {
			continue
		}
		for up := pid; up > 1; up = parent(up) {
			if up == r.cmd.Process.Pid {
				return pid
			}
		}
	}
	r.s.t.Fatalf("the run has no process of %s", want)
	return 0
}

// workload gives the process of a run that is its client.
func (r *running) workload() int {
	r.s.t.Helper()
	for pid := range processes(r.s.t) {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !bytes.HasPrefix(line, []byte("/probe/client\x00")) && !bytes.HasPrefix(line, []byte("runsc\x00")) {
			continue
		}
		for up := pid; up > 1; up = parent(up) {
			if up == r.cmd.Process.Pid {
				return pid
			}
		}
	}
	r.s.t.Fatal("the run has no workload")
	return 0
}

func parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name in brackets may hold anything: proc_pid_stat(5).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(fields[1])
	return n
}

func TestPluginDies(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		publish(s.lab)
		s.lab.Echo(t, 443)
		before, files := s.settled()
		r := s.start(job{network: policy, probes: []probe.Probe{
			{ID: "first", Kind: probe.TCP, To: "allowed.example:443", Alone: true},
			{ID: "wait", Kind: probe.Sleep, Wait: patience},
		}})
		if first := r.result("first"); !first.OK {
			t.Fatalf("the allowed name: %s", first.Err)
		}
		if err := unix.Kill(r.plugin(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		o := r.wait()
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("the run ended only after %s", took)
		}
		if o.code != 125 || !strings.Contains(o.stderr, s.backend) {
			t.Errorf("exit code %d, want 125 and a word about the backend: %s", o.code, o.stderr)
		}
		if len(o.of("network.lost")) != 1 {
			t.Errorf("no event tells that the network is lost")
		}
		s.left(before, files)
	})
}

// With on_failure = "closed" the run goes on, and nothing passes: neither new flows nor
// what was open, least of all what was denied before.
func TestPluginDiesAndTheSandboxStaysClosed(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		publish(s.lab)
		s.lab.Echo(t, 443, 444)
		before, files := s.settled()
		after := []probe.Probe{
			{ID: "name", Kind: probe.TCP, To: "allowed.example:443"},
			{ID: "block", Kind: probe.TCP, To: "93.184.216.130:443"},
			{ID: "block6", Kind: probe.TCP, To: "[2606:2800:220:a::130]:443"},
			{ID: "datagram", Kind: probe.UDP, To: "93.184.216.130:443"},
			{ID: "denied", Kind: probe.TCP, To: "93.184.216.99:443"},
			{ID: "denied datagram", Kind: probe.UDP, To: "[2606:2800:220::99]:443"},
			{ID: "question", Kind: probe.DNS, Name: "allowed.example", Type: "A"},
		}
		r := s.start(job{network: policy + "\non_failure = \"closed\"\n", probes: append([]probe.Probe{
			{ID: "first", Kind: probe.TCP, To: "allowed.example:443", Alone: true},
			{ID: "wait", Kind: probe.Sleep, Wait: 3 * time.Second, Alone: true},
		}, after...)})
		if first := r.result("first"); !first.OK {
			t.Fatalf("the allowed name: %s", first.Err)
		}
		if err := unix.Kill(r.plugin(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		s.lab.ForgetPackets(t)
		o := r.wait()
		if o.code != 0 || len(o.of("network.lost")) != 1 {
			t.Errorf("exit code %d, want 0, and an event: %s", o.code, o.stderr)
		}
		for _, p := range after {
			if o.results[p.ID].OK {
				t.Errorf("%s passed without a backend", p.ID)
			}
		}
		for _, p := range s.lab.Packets(t) {
			// The kernel ends what the dead process had open.
			if p.Flags&(flagFIN|flagRST) == 0 {
				t.Errorf("left the host: %s", p)
			}
		}
		s.left(before, files)
	})
}

// Flags of TCP.
const (
	flagFIN = 1
	flagRST = 4
)

func TestSupervisorDies(t *testing.T) { sites(t, supervisorDies) }

func supervisorDies(t *testing.T, s *site) {
	publish(s.lab)
	s.lab.Echo(t, 443)
	before, files := s.settled()
	s.abandon(policy + published("127.0.0.1:8081", 8080, "tcp") + published("[::]:8082", 8080, "udp"))
	s.left(before, files)
	// And the next sandbox has all that the first had.
	o := s.run(job{network: policy + published("127.0.0.1:8081", 8080, "tcp"), probes: []probe.Probe{{ID: "again", Kind: probe.TCP, To: "allowed.example:443"}}})
	if again := o.results["again"]; !again.OK {
		t.Errorf("after gc: %s", again.Err)
	}
	s.left(before, files)
}

// After a reboot nothing of the kernel's is there, every pid is somebody else's, and a
// state root on disk still says that a sandbox was connected.
func TestHostReboots(t *testing.T) {
	for _, name := range []string{"netbridge/root", "netuserspace/root"} {
		t.Run(name, func(t *testing.T) {
			netlab.Needs(t)
			s := newSite(t, setups[name])
			publish(s.lab)
			s.lab.Echo(t, 443)
			before, files := s.settled()
			network := policy + published("127.0.0.1:8081", 8080, "tcp")
			s.abandon(network)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			boot := filepath.Join(t.TempDir(), "boot_id")
			if err := os.WriteFile(boot, []byte("00000000-0000-4000-8000-000000000000\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := s.lab.Host.CommandAs(ctx, s.who.uid, s.who.gid, "unshare", "-m", "sh", "-c", `
				set -e
				nft flush ruleset
				for f in ipv4/conf/uplink0/forwarding ipv6/conf/uplink0/force_forwarding; do [ ! -e /proc/sys/net/$f ] || echo 0 >/proc/sys/net/$f; done
				for link in $(ls /sys/class/net); do
					case $link in lo) ;; *) [ ! -e /sys/class/net/$link/bridge ] || ip link del $link ;; esac
				done
				mount --bind "$0" /proc/sys/kernel/random/boot_id
				exec "$@"`, boot, filepath.Join(s.who.bins, "nucleus"), "gc", "-host-config", s.conf)
			cmd.Env = append(s.who.env(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
			if out, err := cmd.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) != 32 {
				t.Errorf("gc after the reboot: %v\n%s", err, out)
			}
			s.left(before, files)
			o := s.run(job{network: network, probes: []probe.Probe{{ID: "again", Kind: probe.TCP, To: "allowed.example:443"}}})
			if again := o.results["again"]; !again.OK {
				t.Errorf("a sandbox after the reboot: %s", again.Err)
			}
			s.left(before, files)
		})
	}
}

// abandon connects a sandbox and kills its supervisor. Init and the plugin end by
// themselves then.
func (s *site) abandon(network string) {
	s.t.Helper()
	r := s.start(job{network: network, probes: []probe.Probe{
		{ID: "first", Kind: probe.TCP, To: "allowed.example:443", Alone: true},
		{ID: "wait", Kind: probe.Sleep, Wait: patience},
	}})
	r.result("first")
	if err := r.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	r.wait()
	s.gone()
}

func (s *site) anyProcess() bool {
	for _, name := range processes(s.t) {
		if strings.HasPrefix(name, s.who.bins) {
			return true
		}
	}
	return false
}

func TestRunLeavesNothing(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		publish(s.lab)
		s.lab.Echo(t, 443)
		fresh := s.lab.Host.Census(t)
		_, files := s.settled()
		s.run(job{network: policy + published("0.0.0.0:8081", 8080, "tcp"), probes: []probe.Probe{{ID: "one", Kind: probe.TCP, To: "allowed.example:443"}}})
		s.left(fresh, files)
	})
}

// Somebody deletes what the backend has made while a sandbox uses it: the sandbox loses
// its network, nothing falls open, and its end is a clean one.
func TestBridgeIsDeletedUnderASandbox(t *testing.T) {
	netlab.Needs(t)
	s := newSite(t, setups["netbridge/root"])
	publish(s.lab)
	s.lab.Echo(t, 443)
	before, files := s.settled()
	r := s.start(job{network: policy, probes: []probe.Probe{
		{ID: "first", Kind: probe.TCP, To: "allowed.example:443", Alone: true},
		{ID: "wait", Kind: probe.Sleep, Wait: 2 * time.Second, Alone: true},
		{ID: "allowed", Kind: probe.TCP, To: "allowed.example:443"},
		{ID: "denied", Kind: probe.TCP, To: "93.184.216.99:443"},
	}})
	r.result("first")
	s.lab.Host.Do(func() {
		links, err := netlink.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		deleted := 0
		for _, l := range links {
			if l.Type() == "bridge" {
				if err := netlink.LinkDel(l); err != nil {
					t.Fatal(err)
				}
				deleted++
			}
		}
		if deleted == 0 {
			t.Error("the host has no bridge")
		}
	})
	o := r.wait()
	if o.results["denied"].OK || o.results["allowed"].OK {
		t.Errorf("passed without a bridge: %+v", o.results)
	}
	for _, p := range escaped(t, s.lab, mayLeave()) {
		t.Errorf("left the host: %s", p)
	}
	s.left(before, files)
}

func TestBadInputOfTheBridge(t *testing.T) {
	netlab.Needs(t)
	t.Run("exhausted pool", func(t *testing.T) {
		s := newSite(t, setups["netbridge/root"])
		s.configure("subnet = \"10.42.0.0/30\"")
		r := s.server("dns = [\"93.184.216.53\"]")
		o := s.start(job{network: "dns = [\"93.184.216.53\"]", probes: []probe.Probe{{ID: "self", Kind: probe.Self}}}).wait()
		if o.code != 125 || !strings.Contains(o.stderr, "10.42.0.0/30") || len(o.results) > 0 {
			t.Errorf("exit code %d, want 125 and a word about the subnet: %s", o.code, o.stderr)
		}
		if o := r.stop(); len(o.of("network.up")) != 1 {
			t.Errorf("the first sandbox: exit code %d: %s", o.code, o.stderr)
		}
		// Its address is free again.
		s.run(job{network: "dns = [\"93.184.216.53\"]", probes: []probe.Probe{{ID: "self", Kind: probe.Self}}})
	})
	for name, subnet := range map[string]string{
		"the uplink's subnet": "151.101.7.0/24", "a part of the uplink's subnet": "151.101.7.128/25", "no subnet": "10.42.0.0/33", "no room": "10.42.0.0/32",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, setups["netbridge/root"])
			before := s.lab.Host.Census(t)
			s.configure(fmt.Sprintf("subnet = %q", subnet))
			o := s.start(job{network: "dns = [\"93.184.216.53\"]", probes: []probe.Probe{{ID: "self", Kind: probe.Self}}}).wait()
			if o.code != 125 || !strings.Contains(o.stderr, subnet) || len(o.results) > 0 {
				t.Errorf("exit code %d, want 125 and a word about the subnet: %s", o.code, o.stderr)
			}
			s.gc()
			if changed := before.Changed(s.lab.Host.Census(t)); len(changed) > 0 {
				t.Errorf("left behind: %q", changed)
			}
		})
	}
}

// An ordinary user cannot have a bridge, and learns what to write instead.
func TestBridgeAsOrdinaryUser(t *testing.T) {
	netlab.Needs(t)
	s := newSite(t, setup{backend: "netbridge", who: ordinary})
	o := s.start(job{network: policy, probes: []probe.Probe{{ID: "self", Kind: probe.Self}}}).wait()
	if o.code != 125 || !strings.Contains(o.stderr, "CAP_NET_ADMIN") || !strings.Contains(o.stderr, "hint") || len(o.results) > 0 {
		t.Errorf("exit code %d, want 125, what is missing, and a hint: %s", o.code, o.stderr)
	}
}

func TestNoSuchBackend(t *testing.T) {
	netlab.Needs(t)
	s := newSite(t, setups["netuserspace/root"])
	o := s.start(job{backend: "netnowhere", network: policy, probes: []probe.Probe{{ID: "self", Kind: probe.Self}}}).wait()
	if o.code != 125 || !strings.Contains(o.stderr, "netnowhere") || len(o.results) > 0 {
		t.Errorf("exit code %d, want 125 and a word about the backend: %s", o.code, o.stderr)
	}
}

// The signal comes while the network is made: whatever was made by then goes.
func TestInterruptedStart(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		before, files := s.settled()
		path := s.write(job{network: policy, probes: []probe.Probe{{ID: "wait", Kind: probe.Sleep, Wait: 10 * time.Second}}})
		for _, delay := range []time.Duration{20, 60, 120, 180, 250, 350} {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			cmd := s.nucleus(ctx, "run", "-host-config", s.conf, "-config", path)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(delay * time.Millisecond)
			_ = cmd.Process.Signal(unix.SIGTERM)
			_ = cmd.Wait()
			cancel()
			s.left(before, files)
		}
	})
}
