package e2e

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// bus is a message bus for whoever can reach its socket.
const bus = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=DIR/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
</busconfig>
`

// firewalld runs on the laboratory's host until the end of the test, and gives what runs
// its client there.
func firewalld(t *testing.T, l *netlab.Lab) (client func(args ...string) (string, error)) {
	t.Helper()
	for _, program := range []string{"firewalld", "firewall-cmd", "dbus-daemon"} {
		if _, err := exec.LookPath(program); err != nil {
			netlab.Skip(t, "firewalld", err.Error())
		}
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(conf, []byte(strings.ReplaceAll(bus, "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+filepath.Join(dir, "bus"))
	log := filepath.Join(dir, "log")
	for _, args := range [][]string{
		{"dbus-daemon", "--config-file=" + conf, "--nofork", "--nopidfile"},
		{"firewalld", "--nofork", "--nopid", "--system-config=" + dir, "--log-file=" + log},
	} {
		cmd := l.Host.Command(args[0], args[1:]...)
		cmd.Env = env
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		for end := time.Now().Add(10 * time.Second); args[0] == "dbus-daemon"; time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(dir, "bus")); err == nil {
				break
			}
			if time.Now().After(end) {
				netlab.Skip(t, "firewalld", "no message bus has come up")
			}
		}
	}
	client = func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cmd := l.Host.CommandContext(ctx, "firewall-cmd", args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		out, err := client("--state")
		if err == nil {
			return client
		}
		if time.Now().After(end) {
			said, _ := os.ReadFile(log)
			netlab.Skip(t, "firewalld", "it has not come up: "+out+string(said))
		}
	}
}

// Beside firewalld a job is refused with a remedy, and after that has a network.
func TestFirewalld(t *testing.T) {
	netlab.Needs(t)
	s := newSite(t, setups["netbridge/root"])
	publish(s.lab)
	s.lab.Echo(t, 443)
	client := firewalld(t, s.lab)
	before := s.lab.Host.Census(t)
	probes := []probe.Probe{
		{ID: "named", Kind: probe.TCP, To: "allowed.example:443"},
		{ID: "block", Kind: probe.UDP, To: "93.184.216.130:443"},
		{ID: "block6", Kind: probe.TCP, To: "[2606:2800:220:a::130]:443"},
		{ID: "denied", Kind: probe.TCP, To: "93.184.216.99:443"},
	}
	o := s.start(job{network: policy, probes: probes}).wait()
	const first, second = "firewall-cmd --permanent --zone=trusted --add-interface=nucleus0", "firewall-cmd --reload"
	if o.code != 125 || !strings.Contains(o.stderr, "run "+first+" && "+second) {
		t.Fatalf("exit code %d: %s", o.code, o.stderr)
	}
	for _, change := range before.Changed(s.lab.Host.Census(t)) {
		t.Errorf("left by a job that was refused: %s", change)
	}
	for _, remedy := range []string{first, second} {
		if out, err := client(strings.Fields(remedy)[1:]...); err != nil {
			t.Fatalf("%s: %v: %s", remedy, err, out)
		}
	}
	o = s.run(job{network: policy, probes: probes})
	for id, r := range o.results {
		if r.OK == (id == "denied") {
			t.Errorf("with the remedy: %s: passed: %t: %s", id, r.OK, r.Err)
		}
	}
	r := s.server(policy + published("0.0.0.0:8083", 8080, "tcp"))
	if _, err := eventually(s.lab.Internet, "tcp", netip.AddrPortFrom(netlab.HostV4, 8083).String()); err != nil {
		t.Errorf("with the remedy a published port: %v", err)
	}
	r.stop()
}
