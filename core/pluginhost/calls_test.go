package pluginhost

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/nucleus-runtime/nucleus/core/secret"
)

// A plugin that fails, hangs or lies when it is asked for secrets fails the start of
// the sandbox with an error that names it, in bounded time.
func TestFetchRefuses(t *testing.T) {
	const lost = "it ended (exit status 9)"
	for name, c := range map[string]struct{ want, hint string }{
		"crash-info":      {"asking what it is: " + lost, "it said: last words"},
		"crash-schema":    {"asking for its configuration's schema: " + lost, "it said: last words"},
		"crash-configure": {"configuring it: " + lost, "it said: last words"},
		"crash-fetch":     {"fetching: " + lost, "it said: last words"},
		"hang-info":       {"asking what it is: no answer in time", ""},
		"hang-schema":     {"asking for its configuration's schema: no answer in time", ""},
		"hang-configure":  {"configuring it: no answer in time", ""},
		"down":            {"fetching: down at attempt 2", ""},
		"down-long":       {"fetching: down at attempt 1", ""}, // it asks to wait for an hour
		"too-few":         {"2 secrets were asked for, and the plugin gave 1", ""},
		"too-many":        {"2 secrets were asked for, and the plugin gave 3", ""},
		"misnamed":        {`answer for secret "a" is not for it`, ""},
		"swapped":         {`answer for secret "a" is not for it`, ""},
		"absent":          {`answer for secret "a" is not for it`, ""},
		"oversized":       {secret.ErrTooLarge.Error(), ""},
		"giant":           {"larger than max", ""},
		"nasty-error":     {"fetching:  ]0;owned  [2J nucleus: forged line", "it said: ]0;owned  [2J"},
		"huge-error":      {"eeee… (", ""},
		"giant-error":     {"fetching: ", ""}, // see below
		"nasty-configure": {"its operator has to configure it: ", `plugin "nasty-configure" { config { … } } in the host configuration (-host-config); nucleus plugin schema nasty-configure shows what`},
		"other-name":      {"it says that it is plugin ", ""},
		"no-secrets":      {"it gives no secrets", ""},
		"hooks-too":       {"it serves hooks, which its operator does not allow", `allow = ["hooks"] in its block of the host configuration`},
		"needs-caps":      {"it needs CAP_SYS_ADMIN, which its operator does not give", `caps = ["CAP_SYS_ADMIN"] in its block of the host configuration`},
		"nasty-caps":      {"it needs ]0;owned", ""},
		"needs-root":      {"it needs to run as root", ""},
		"bad-pattern":     {`attribute "a": its pattern: `, ""},
		"bad-default":     {"its default: ", ""},
		"bad-type":        {"its type: ", ""},
		"deep-type":       {`plugin "deep-type": asking for its configuration's schema: configuration schema: attribute "a": its type nests deeper than 32`, ""},
		"long-type":       {"its type or its default is too long", ""},
		"twice":           {`attribute "a" is there twice`, ""},
		"nasty-name":      {"that is no name of at most 64 bytes", ""},
		"optional":        {"its type is not fixed", ""},
		"deep":            {"deeper than 16", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, map[string]string{"hooks-too": `allow = ["secrets"]`, "giant": `memory = "2GiB"`})
			inTime(t, 5*time.Second, func() {
				got, err := r.fetch(t.Context(), name)
				if err == nil {
					t.Fatalf("it gave %d values", len(got))
				}
				if name == "needs-caps" && os.Geteuid() != 0 {
					c.want, c.hint = "it needs CAP_SYS_ADMIN, which only root can give", "run nucleus as root"
				}
				if s := err.Error(); !strings.Contains(s, c.want) || !strings.Contains(s, name) && name != "oversized" {
					t.Errorf("error %.2000q, want %q", s, c.want)
				}
				if name == "giant-error" && strings.Contains(err.Error(), "eeee") {
					t.Error("an error of megabytes was taken")
				}
				if hint := hintOf(err); c.hint != "" && hint != c.hint {
					t.Errorf("hint %q, want %q", hint, c.hint)
				}
				fit(t, err.Error(), 30*maxText)
				fit(t, hintOf(err), 2*maxText)
			})
		})
	}
}

// fit fails for what must not be shown.
func fit(t *testing.T, s string, most int) {
	t.Helper()
	if len(s) > most {
		t.Errorf("%d bytes of text, at most %d are wanted", len(s), most)
	}
	if i := strings.IndexFunc(s, unicode.IsControl); i >= 0 {
		t.Errorf("control character %q in %.300q", s[i], s)
	}
}

// The caller's context ends each call.
func TestFetchEndsWithItsContext(t *testing.T) {
	for _, name := range []string{"hang-info", "hang-schema", "hang-configure", "hang-fetch"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			time.AfterFunc(300*time.Millisecond, cancel)
			inTime(t, 900*time.Millisecond, func() {
				if _, err := r.fetch(ctx, name); err == nil || !strings.Contains(err.Error(), "canceled") || !strings.Contains(err.Error(), name) {
					t.Errorf("error %v", err)
				}
			})
			ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			inTime(t, 900*time.Millisecond, func() {
				if _, err := r.fetch(ctx, name); err == nil || !strings.Contains(err.Error(), "no answer in time") {
					t.Errorf("error %v", err)
				}
			})
		})
	}
}

// Who was down is asked once more, as a new process, with the same request id.
func TestFetchTriesAgain(t *testing.T) {
	for _, name := range []string{"down-once", "crash-once"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			got, err := r.fetch(t.Context(), name)
			if err != nil || got["a"] != "box-"+name || len(got) != 2 {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	r := newRig(t, nil)
	if got, err := r.fetch(t.Context(), "call"); err != nil || got["a"] != "box-call box 1" {
		t.Errorf("the first try: %q, %v", got, err)
	}
}

// A plugin sees nothing of its host's environment.
func TestFetchShowsNoEnvironment(t *testing.T) {
	t.Setenv("HOST_CANARY", "1")
	r := newRig(t, map[string]string{"env": ""})
	got, err := r.fetch(t.Context(), "env")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(got["a"], "\n") {
		name, _, _ := strings.Cut(line, "=")
		switch name {
		case "PATH", "LANG", "HOME", "TMPDIR", "PLUGINHOST_TEST", "PLUGIN_UNIX_SOCKET_DIR", "PLUGIN_MIN_PORT", "PLUGIN_MAX_PORT", "PLUGIN_PROTOCOL_VERSIONS":
		default:
			t.Errorf("it has %q", line)
		}
	}
}

// What a plugin says of itself is shown, and must be fit for it.
func TestDescribeCleans(t *testing.T) {
	r := newRig(t, nil)
	p, err := r.Start(t.Context(), "nasty-info")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	d, err := r.Describe(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	fit(t, d.Info.Description, maxText)
	fit(t, strings.Join(d.Info.Features, " "), maxText)
}

func TestShown(t *testing.T) {
	for in, want := range map[string]string{
		"":                               "",
		" plain ü\n":                     "plain ü",
		"a\r\nb\x1b[1mc\u009bd":          "a  b [1mc d",
		strings.Repeat("x", maxText+5):   strings.Repeat("x", maxText) + "… (5 bytes more)",
		strings.Repeat("x", maxText):     strings.Repeat("x", maxText),
		strings.Repeat("é", maxText)[1:]: "",
	} {
		got := shown(in)
		if want != "" && got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		if !bytes.Equal([]byte(got), bytes.ToValidUTF8([]byte(got), nil)) {
			t.Errorf("%q: not UTF-8", got)
		}
		fit(t, got, maxText+50)
	}
	if got := lastLine("one\ntwo\n\n"); got != "two" {
		t.Errorf("last line %q", got)
	}
}
