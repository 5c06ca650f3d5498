package notify

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestParse(t *testing.T) {
	long := strings.Repeat("x", MaxSize)
	for what, test := range map[string]struct {
		in   string
		want Message
	}{
		"nothing":                           {"", Message{}},
		"ready":                             {"READY=1", Message{Ready: true}},
		"with a newline at the end":         {"READY=1\n", Message{Ready: true}},
		"with a NUL at the end":             {"READY=1\x00", Message{Ready: true}},
		"several":                           {"STATUS=up\nREADY=1\nWATCHDOG=1\nERRNO=2", Message{Ready: true, Watchdog: true, HasStatus: true, Status: "up", Errno: 2}},
		"stopping, reloading":               {"STOPPING=1\nRELOADING=1\nMONOTONIC_USEC=77", Message{Stopping: true, Reloading: true}},
		"an empty status":                   {"STATUS=", Message{HasStatus: true}},
		"the first status":                  {"STATUS=a\nSTATUS=b", Message{HasStatus: true, Status: "a"}},
		"a status with an equals sign":      {"STATUS=a=b", Message{HasStatus: true, Status: "a=b"}},
		"a value that is not known":         {"READY=0\nREADY=2\nREADY=11\nREADY=\nREADY", Message{}},
		"no prefix":                         {" READY=1\nready=1\nXREADY=1", Message{}},
		"a carriage return":                 {"READY=1\r\nSTATUS=a", Message{HasStatus: true, Status: "a"}},
		"another main process":              {"MAINPID=1\nMAINPIDFDID=1\nMAINPIDFD=1", Message{}},
		"descriptors to be kept":            {"FDSTORE=1\nFDNAME=x\nFDSTOREREMOVE=1\nFDPOLL=0", Message{}},
		"who may notify":                    {"NOTIFYACCESS=all", Message{}},
		"more time":                         {"EXTEND_TIMEOUT_USEC=18446744073709551615", Message{}},
		"another watchdog":                  {"WATCHDOG=trigger\nWATCHDOG_USEC=1", Message{}},
		"a bus error":                       {"BUSERROR=org.example", Message{}},
		"an exit of the manager's":          {"EXIT_STATUS=1\nBARRIER=1\nX_SYSTEMD_UNIT_ACTIVE=a", Message{}},
		"a NUL inside":                      {"READY=1\x00\nMAINPID=1", Message{}},
		"two NULs at the end":               {"READY=1\x00\x00", Message{}},
		"too long":                          {"READY=1\nSTATUS=" + long, Message{}},
		"a status that is not UTF-8":        {"STATUS=\xff\xfe\nREADY=1", Message{Ready: true}},
		"a status that drives a terminal":   {"STATUS=\x1b[2Jx\x07\u009b31m\u202egnp.exe\u2028y\tz", Message{HasStatus: true, Status: " [2Jx  31m gnp.exe y z"}},
		"a negative errno":                  {"ERRNO=-1", Message{}},
		"a signed errno":                    {"ERRNO=+1", Message{}},
		"an errno that is none":             {"ERRNO=4096", Message{}},
		"an errno of zero":                  {"ERRNO=0", Message{}},
		"an errno of many digits":           {"ERRNO=00000000000000000002", Message{}},
		"an errno by name":                  {"ERRNO=ENOENT", Message{}},
		"a status that looks like an order": {"STATUS=MAINPID=1", Message{HasStatus: true, Status: "MAINPID=1"}},
	} {
		if got := Parse([]byte(test.in)); got != test.want {
			t.Errorf("%s: %+v, want %+v", what, got, test.want)
		}
	}
	m := Parse([]byte("STATUS=" + strings.Repeat("ä", MaxStatus)))
	if len(m.Status) != MaxStatus || !utf8.ValidString(m.Status) {
		t.Errorf("a long status: %d bytes", len(m.Status))
	}
	m = Parse([]byte("STATUS=x" + strings.Repeat("ä", MaxStatus)))
	if len(m.Status) != MaxStatus-1 || !utf8.ValidString(m.Status) {
		t.Errorf("a long status, cut inside a letter: %d bytes", len(m.Status))
	}
}

// Whatever a sandbox sends, a manager reads assignments of six names, one a line.
func FuzzText(f *testing.F) {
	for _, s := range []string{"READY=1\nMAINPID=1", "STATUS=a\x00MAINPID=1", "STATUS=\u2028MAINPID=1", "RELOADING=1\nERRNO=12"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		text, err := Parse(b).text()
		if err != nil {
			t.Fatal(err)
		}
		if text == "" {
			return
		}
		if !utf8.ValidString(text) || len(text) > MaxSize {
			t.Fatalf("%q", text)
		}
		for line := range strings.SplitSeq(text, "\n") {
			name, value, _ := strings.Cut(line, "=")
			switch name {
			case "READY", "RELOADING", "STOPPING", "WATCHDOG":
				if value != "1" {
					t.Errorf("%q", line)
				}
			case "STATUS", "ERRNO", "MONOTONIC_USEC":
			default:
				t.Errorf("%q", line)
			}
			if strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q", line)
			}
		}
		if bytes.IndexByte(b, '\n') < 0 && strings.Count(text, "\n") > 1 {
			t.Errorf("%q of one line", text)
		}
	})
}

func TestFromEnv(t *testing.T) {
	for what, test := range map[string]struct {
		env      map[string]string
		none     bool
		watchdog string
	}{
		"nothing":                         {none: true},
		"a path":                          {env: map[string]string{"NOTIFY_SOCKET": "/run/systemd/notify"}, watchdog: "0s"},
		"an abstract name":                {env: map[string]string{"NOTIFY_SOCKET": "@notify"}, watchdog: "0s"},
		"no address":                      {env: map[string]string{"NOTIFY_SOCKET": "notify"}, none: true},
		"a socket of a virtual machine's": {env: map[string]string{"NOTIFY_SOCKET": "vsock:2:1234"}, none: true},
		"a name without letters":          {env: map[string]string{"NOTIFY_SOCKET": "@"}, none: true},
		"a watchdog":                      {env: map[string]string{"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "1500000"}, watchdog: "1.5s"},
		"our watchdog":                    {env: map[string]string{"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "42"}, watchdog: "1.5s"},
		"another's watchdog":              {env: map[string]string{"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "43"}, watchdog: "0s"},
		"a watchdog of nonsense":          {env: map[string]string{"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "-1"}, watchdog: "0s"},
		"a watchdog of an age":            {env: map[string]string{"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "9223372036854775807"}, watchdog: "0s"},
	} {
		m := FromEnv(func(k string) string { return test.env[k] }, 42)
		if (m == nil) != test.none || m != nil && m.Watchdog.String() != test.watchdog {
			t.Errorf("%s: %+v", what, m)
		}
	}
}
