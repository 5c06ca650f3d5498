package pluginhost

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// userNamespace is that of a process.
func userNamespace(t *testing.T, pid int) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// Whoever runs as the owner of sandboxes is beside them, and not above; root's plugins
// have users that own nothing.
func TestPluginIsBesideTheSandboxes(t *testing.T) {
	for _, as := range []manifest.Service{manifest.Network, manifest.Secrets, manifest.Hooks, manifest.Runtime, ""} {
		t.Run(string(as), func(t *testing.T) {
			r := newRig(t, nil)
			p, err := r.Host.Start(t.Context(), "chatty", as)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			own, theirs := userNamespace(t, os.Getpid()), userNamespace(t, p.Pid())
			if ours := os.Geteuid() == 0; (own == theirs) != ours {
				t.Errorf("its user namespace is %s, and the host's is %s", theirs, own)
			}
			for file, id := range map[string]int{"uid_map": os.Geteuid(), "gid_map": os.Getegid()} {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Pid(), file))
				if err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(strings.Fields(string(b)), " "); os.Geteuid() != 0 && got != fmt.Sprintf("%d %d 1", id, id) {
					t.Errorf("%s is %q", file, got)
				}
			}
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/setgroups", p.Pid())); os.Geteuid() != 0 && (err != nil || string(b) != "deny\n") {
				t.Errorf("setgroups: %q, %v", b, err)
			}
		})
	}
}

func TestApart(t *testing.T) {
	ordinary := os.Geteuid() != 0
	for _, c := range []struct {
		switchTo bool
		caps     []string
		want     bool
	}{
		{false, nil, ordinary},
		{true, nil, false},
		{false, []string{"CAP_NET_ADMIN"}, false},
	} {
		if got := apart(c.switchTo, c.caps); got != c.want {
			t.Errorf("switched %v, with %q: %v", c.switchTo, c.caps, got)
		}
	}
}
