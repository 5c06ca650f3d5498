package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A plugin that was taken over through one job has sockets of another, and often the user
// who owns both. It rules neither network, and gets into no process of the other: that
// runs as before.
func TestPluginThatWasTakenOver(t *testing.T) {
	sitesOf(t, []string{"netuserspace/user", "netuserspace/root"}, func(t *testing.T, s *site) {
		s.backend = "hostile"
		s.configure("")
		to := filepath.Join(s.who.bins, "plugins", "nucleus-plugin-hostile")
		build := exec.Command("go", "build", "-trimpath", "-o", to, "./hostile")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building the plugin: %v: %s", err, out)
		}
		if err := os.Chmod(to, 0o755); err != nil {
			t.Fatal(err)
		}
		path := s.stackFile()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cmd := s.nucleus(ctx, "up", "-host-config", s.conf, "-config", path)
		out, err := cmd.CombinedOutput()
		if exitCode(t, cmd, err) == 0 {
			t.Fatalf("the plugin has not attacked: %s", out)
		}
		if !strings.Contains(string(out), "3 processes, 34 attempts, not refused: []") {
			t.Errorf("it says: %s", out)
		}
		if got := s.addressesOf("shop-db"); len(got) == 0 {
			t.Error("the other sandbox has no addresses any more")
		}
		s.must("down", "-config", path)
	})
}
