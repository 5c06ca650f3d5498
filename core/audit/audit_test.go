package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func events(t *testing.T, text string) []Event {
	t.Helper()
	var out []Event
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\n") {
			t.Errorf("a line without end: %q", line)
		}
		var e Event
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, e)
	}
	return out
}

// The schema is a promise: a change of this line needs another version.
func TestSchema(t *testing.T) {
	var out bytes.Buffer
	l := NewLog("0123", "web", &out)
	l.now = func() time.Time { return time.Date(2026, 1, 2, 4, 4, 5, 6000, time.FixedZone("", 3600)) }
	l.Emit(Undone, errors.New("no\nluck"), map[string]any{"step": "cgroup"})
	want := `{"v":1,"seq":1,"time":"2026-01-02T03:04:05.000006Z","sandbox":"0123","name":"web","type":"undo.done","error":"no luck","detail":{"step":"cgroup"}}` + "\n"
	if out.String() != want {
		t.Errorf("got  %swant %s", out.String(), want)
	}
}

func TestBegin(t *testing.T) {
	var users, own bytes.Buffer
	l := NewLog("", "web", &users)
	l.Emit(Refused, errors.New("x"), nil)
	l.Begin("0123", "web-2", &own)
	l.Emit(Created, nil, nil)
	u, o := events(t, users.String()), events(t, own.String())
	if len(u) != 2 || u[0].Sandbox != "" || u[0].Name != "web" || u[1].Sandbox != "0123" || u[1].Name != "web-2" || u[1].Seq != 2 {
		t.Errorf("the user's sink: %+v", u)
	}
	if len(o) != 1 || o[0].Type != Created || o[0].Seq != 2 {
		t.Errorf("the sandbox's own: %+v", o)
	}
}

func TestNoEventForgesAnother(t *testing.T) {
	var out bytes.Buffer
	l := NewLog("1", "a\nb", &out)
	l.Emit(Failed, errors.New("x\n{\"v\":1,\"type\":\"sandbox.removed\"}\x1b[2J\u009b"), map[string]any{"k": "y\n{\"v\":1}\n\u202egnp.exe"})
	got := events(t, out.String())
	if strings.ContainsRune(out.String(), '\u202e') { // CVE-2021-42574
		t.Errorf("it turns the direction of writing: %q", out.String())
	}
	if len(got) != 1 || got[0].Type != Failed || strings.ContainsAny(got[0].Error, "\n\x1b\u009b") {
		t.Errorf("%+v", got)
	}
}

type broken struct{ after int }

func (b *broken) Write(p []byte) (int, error) {
	if b.after--; b.after < 0 {
		return 0, unix.ENOSPC
	}
	return len(p), nil
}

// One sink that fails keeps no event from the others, and is told of.
func TestBrokenSink(t *testing.T) {
	var out bytes.Buffer
	l := NewLog("1", "x", &broken{1}, &out)
	for range 3 {
		l.Emit(Created, nil, nil)
	}
	if n := len(events(t, out.String())); n != 3 {
		t.Errorf("%d events in the other sink, want 3", n)
	}
	if err := l.Err(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Err: %v, want ENOSPC", err)
	}
	l.Emit(Created, nil, map[string]any{"f": func() {}})
	if n := len(events(t, out.String())); n != 3 {
		t.Errorf("an event that cannot be encoded left %d lines", n)
	}
}

func TestWithoutSinksNothingIsDone(t *testing.T) {
	l := NewLog("1", "x")
	l.Emit(Created, nil, map[string]any{"f": func() {}})
	if err := l.Err(); err != nil {
		t.Error(err)
	}
}

func TestConcurrentEvents(t *testing.T) {
	var out bytes.Buffer
	l := NewLog("1", "x", &out)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				l.Emit(Signalled, nil, map[string]any{"signal": "SIGTERM"})
			}
		})
	}
	wg.Wait()
	for i, e := range events(t, out.String()) {
		if e.Seq != i+1 {
			t.Fatalf("line %d has number %d", i+1, e.Seq)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain äöü 漢字":                         "plain äöü 漢字",
		"a\tb\r\nc\x00d\x7fe":                  "a b  c d e",
		"\x1b[31mred":                          " [31mred",
		"c1 \u0085\u009b":                      "c1   ",
		"a\u202ab\u202bc\u202cd\u202de\u202ef": "a b c d e f",
		"a\u2066b\u2067c\u2068d\u2069e":        "a b c d e",
		"a\u200eb\u200fc\u061cd":               "a b c d",
		"שלום\u200dعربي":                       "שלום\u200dعربي",
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestOpenSink(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "events")
	for range 2 { // it is appended to
		f, err := OpenSink(path)
		if err != nil {
			t.Fatal(err)
		}
		NewLog("1", "x", f).Emit(Created, nil, nil)
		_ = f.Close()
	}
	b, err := os.ReadFile(path)
	if err != nil || len(events(t, string(b))) != 2 {
		t.Errorf("%q, %v, want two events", b, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", st.Mode(), err)
	}
	if err := os.Symlink(path, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{filepath.Join(dir, "link"), filepath.Join(dir, "missing", "x"), dir, "fd:", "fd:-1", "fd:0", "fd:x", "fd:99999"} {
		if f, err := OpenSink(bad); err == nil {
			t.Errorf("events to %q were accepted", bad)
			_ = f.Close()
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	f, err := OpenSink(fmt.Sprintf("fd:%d", n))
	if err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the descriptor would get into the sandbox: %v", err)
	}
	NewLog("1", "x", f).Emit(Created, nil, nil)
	_ = f.Close()
	buf := make([]byte, 1000)
	m, err := r.Read(buf)
	if err != nil || len(events(t, string(buf[:m]))) != 1 {
		t.Errorf("%q, %v", buf[:m], err)
	}
}
