package unit

import (
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/job"
)

func TestCommandLine(t *testing.T) {
	for in, want := range map[string]string{
		"/usr/bin/nucleus":  "/usr/bin/nucleus",
		"k=v,w:x+y@z":       "k=v,w:x+y@z",
		"":                  `""`,
		"a b":               `"a b"`,
		"100%":              "100%%",
		"%i %n":             `"%%i %%n"`,
		"$HOME":             "$$HOME",
		"${HOME} $$":        `"$${HOME} $$$$"`,
		`"quoted"`:          `"\"quoted\""`,
		"it's":              `"it's"`,
		`back\slash`:        `"back\\slash"`,
		`ends\`:             `"ends\\"`,
		";":                 `";"`,
		"two\nlines\tand":   `"two\x0alines\x09and"`,
		"\x1b[31m\x7f":      `"\x1b[31m\x7f"`,
		"#no comment":       `"#no comment"`,
		"ünïcode":           `"ünïcode"`,
		"a\\;b;":            `"a\\;b;"`,
		"-var":              "-var",
		"name=[Install]\n[": `"name=[Install]\x0a["`,
	} {
		got, err := commandLine([]string{"/n", in})
		if err != nil || got != "/n "+want {
			t.Errorf("%q: %s, %v, want %s", in, got, err, want)
		}
		if strings.ContainsFunc(got, func(r rune) bool { return r < 0x20 }) {
			t.Errorf("%q: more than a line", in)
		}
	}
	if got, err := commandLine([]string{"/opt/$a/50%/n", "x"}); err != nil || got != "/opt/$a/50%%/n x" {
		t.Errorf("a program's path: %s, %v", got, err)
	}
	if _, err := commandLine([]string{"/n", "\xff"}); err == nil {
		t.Error("bytes that are no UTF-8")
	}
}

func TestText(t *testing.T) {
	parse := func(blocks string) *job.Job {
		j, diags := job.Parse("job.hcl", []byte("job \"web\" {\n command = [\"true\"]\n"+blocks+"\n}\n"), job.Options{Dir: "/"})
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		return j
	}
	for what, test := range map[string]struct {
		blocks string
		o      Options
		want   []string
		not    []string
	}{
		"smallest": {
			want: []string{"Type=exec", "KillMode=mixed", "TimeoutStopSec=25s", "SuccessExitStatus=143", "WantedBy=multi-user.target", "ExecStart=/n run"},
			not:  []string{"NotifyAccess", "TimeoutStartSec", "Delegate", "Watchdog", "Restart"},
		},
		"of a user": {
			o: Options{User: true, Delegate: true}, want: []string{"WantedBy=default.target", "Delegate=yes"}, not: []string{"multi-user"},
		},
		"probe": {
			blocks: "readiness {\n exec = [\"true\"]\n timeout = \"30s\"\n}", want: []string{"Type=notify", "NotifyAccess=main", "TimeoutStartSec=120s"},
		},
		"notifications": {
			blocks: "sd_notify = true", o: Options{Watchdog: 1500 * time.Millisecond},
			want: []string{"Type=notify", "NotifyAccess=main", "WatchdogSec=1500ms", "WatchdogSignal=SIGTERM", "Restart=on-watchdog"}, not: []string{"TimeoutStartSec"},
		},
		"sockets": {
			blocks: "socket_activation = true", want: []string{"# The sockets are those of the .socket unit of the same name."},
		},
		"stop and hooks": {
			blocks: "stop {\n signal = \"SIGINT\"\n grace = \"1m\"\n}\nhook \"poststop\" {\n command = [\"/bin/true\"]\n timeout = \"7s\"\n}\nhook \"poststart\" {\n command = [\"/bin/true\"]\n timeout = \"100s\"\n}\nplugin_hook \"a\" { timeout = \"3s\" }",
			want:   []string{"TimeoutStopSec=88s", "SuccessExitStatus=130"},
		},
	} {
		test.o.Version, test.o.Job, test.o.Path, test.o.Command = "1", parse(test.blocks), "/srv/a\nb.hcl", []string{"/n", "run"}
		got, err := Text(test.o)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		lines := strings.Split(got, "\n")
		for _, w := range test.want {
			found := false
			for _, l := range lines {
				found = found || l == w
			}
			if !found {
				t.Errorf("%s lacks %s:\n%s", what, w, got)
			}
		}
		for _, n := range test.not {
			if strings.Contains(got, n) {
				t.Errorf("%s has %s:\n%s", what, n, got)
			}
		}
		if lines[0] != "# Written by nucleus 1 unit for /srv/a b.hcl." {
			t.Errorf("%s: %s", what, lines[0])
		}
	}
}
