package plugins

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/conformance"
	"github.com/nucleus-runtime/nucleus/sdk/plugintest"
)

func TestDotenvConforms(t *testing.T) {
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, []byte("DB_PASSWORD=correct-horse\nAPI=battery-staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := func(id, key string, missing bool) plugintest.Instance {
		return plugintest.Instance{Service: "secrets", ID: id, Config: plugintest.Values{"key": key}, Missing: missing}
	}
	all(t, plugintest.Run(t, plugintest.Config{
		Binary:    plugintest.Build(t, "./nucleus-plugin-dotenv", "nucleus-plugin-dotenv"),
		Plugin:    plugintest.Values{"path": path},
		Instances: []plugintest.Instance{secret("db", "DB_PASSWORD", false), secret("api", "API", false), secret("gone", "GONE", true)},
	}), "secrets/revoke", "secrets/renew")
}

func TestCurfewConforms(t *testing.T) {
	hour := time.Now().Add(12 * time.Hour).Hour()
	all(t, plugintest.Run(t, plugintest.Config{
		Binary: plugintest.Build(t, "./nucleus-plugin-curfew", "nucleus-plugin-curfew"),
		Plugin: plugintest.Values{"from": hour, "until": (hour + 1) % 24},
	}), "hooks/post", "hooks/cleanup")
}

func TestSeatsConforms(t *testing.T) {
	all(t, plugintest.Run(t, plugintest.Config{
		Binary: plugintest.Build(t, "./nucleus-plugin-seats", "nucleus-plugin-seats"),
		Plugin: plugintest.Values{"dir": t.TempDir(), "seats": 100},
	}))
}

func TestCrunConforms(t *testing.T) {
	all(t, plugintest.Run(t, plugintest.Config{
		Binary:    plugintest.Build(t, "./nucleus-plugin-crun", "nucleus-plugin-crun"),
		Instances: []plugintest.Instance{{Service: "runtime", ID: "sandbox", Config: plugintest.Values{"crun": "/usr/bin/crun"}}},
	}), "runtime/exec", "runtime/exec-signal", "runtime/exec-group", "runtime/checkpoint")
}

// all makes sure that no rule but those named has found nothing to look at.
func all(t *testing.T, rs []plugintest.Result, except ...string) {
	t.Helper()
	may := map[string]bool{}
	for _, r := range except {
		may[r] = true
	}
	if os.Geteuid() != 0 {
		may["base/other-user"] = true // only root can be somebody else
	}
	for _, r := range rs {
		if r.Outcome == conformance.NotApplicable && !may[r.Rule] {
			t.Error(r)
		}
	}
}
