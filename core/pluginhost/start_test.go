package pluginhost

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// What is no plugin, or no honest one, is refused at its start, in bounded time, with
// an error that names it.
func TestStartRefuses(t *testing.T) {
	socket := `s="$PLUGIN_UNIX_SOCKET_DIR/s"; `
	for name, c := range map[string]struct {
		program string // "" for a behaviour of that name
		want    string
		hint    string
	}{
		"exits":       {"echo first >&2; echo 'wrong cookie' >&2; exit 3", "it ended before it was ready (exit status 3)", "it said: wrong cookie"},
		"exits-well":  {"exit 0", "it ended before it was ready (exit status 0)", ""},
		"killed":      {"kill -9 $$", "it ended before it was ready (signal: killed)", ""},
		"nasty-words": {`printf '\033[2J\033]0;owned\007last\n' >&2; exit 1`, "exit status 1", "it said: [2J ]0;owned last"},
		"no-line":     {"exec >&-; sleep 1000", "it has closed its standard output", ""},
		"noise":       {"echo hello; sleep 1000", "Unrecognized remote plugin message: hello", ""},
		"nasty-noise": {`printf 'a\033[2Jb\n'; sleep 1000`, "Unrecognized remote plugin message: a [2Jb", ""},
		"long-line":   {"head -c 1000000000 /dev/zero; sleep 1000", "its first line on standard output is longer than 4096 bytes", ""},
		"app-version": {socket + `echo "1|99|unix|$s|grpc|"; sleep 1000`, "incompatible API version", ""},
		"core-version": {
			socket + `echo "9|1|unix|$s|grpc|"; sleep 1000`, "incompatible core API version", "",
		},
		"no-numbers": {socket + `echo "x|y|unix|$s|grpc|"; sleep 1000`, "core protocol version", ""},
		"net-rpc":    {socket + `echo "1|1|unix|$s|netrpc|"; sleep 1000`, "unsupported plugin protocol", ""},
		"tcp":        {`echo "1|1|tcp|127.0.0.1:1234|grpc|"; sleep 1000`, "only Unix sockets are taken", ""},
		"outside":    {`echo "1|1|unix|/run/other|grpc|"; sleep 1000`, "outside of the directory that was made for it", ""},
		"dots":       {`echo "1|1|unix|$PLUGIN_UNIX_SOCKET_DIR/../../s|grpc|"; sleep 1000`, "outside of the directory", ""},
		"abstract":   {`echo "1|1|unix|@x|grpc|"; sleep 1000`, "outside of the directory", ""},
		"no-socket":  {socket + `echo "1|1|unix|$s|grpc|"; sleep 1000`, "no such file or directory", ""},
		"link-out":   {socket + `ln -s /run/nowhere/s "$s"; echo "1|1|unix|$s|grpc|"; sleep 1000`, "connecting: ", ""},
		"squatted":   {"", "not the expected process", ""},
		"no-http":    {"", "connecting: what answers at its socket speaks no HTTP/2", ""},
		"leaves":     {"", "it ended before it was ready (exit status 0)", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			if c.program != "" {
				r.script(t, name, c.program)
			}
			inTime(t, 3*time.Second, func() {
				p, err := r.Start(t.Context(), name)
				if err == nil {
					p.Close()
					t.Fatal("it was taken")
				}
				if !strings.HasPrefix(err.Error(), `plugin "`+name+`": starting it: `) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %q, want %q", err, c.want)
				}
				if hint := hintOf(err); c.hint != "" && hint != c.hint || strings.Contains(hint, "heard 1") {
					t.Errorf("hint %q, want %q", hint, c.hint)
				}
			})
		})
	}
}

// A plugin that never gets ready is given up, by the limit or by the caller.
func TestStartGivesUp(t *testing.T) {
	for name, program := range map[string]string{
		"mute":   "exec sleep 1000",
		"slow":   `trap "" TERM INT HUP; while :; do sleep 1; done`,
		"silent": "", // it listens, and says nothing to who connects
	} {
		for _, way := range []string{"limit", "context", "deadline"} {
			t.Run(name+" "+way, func(t *testing.T) {
				r := newRig(t, nil)
				if program != "" {
					r.script(t, name, program)
				}
				ctx, want := t.Context(), "it was not ready within 300ms"
				cancel := func() {}
				switch way {
				case "limit":
					r.o.StartTime = 300 * time.Millisecond
				case "context":
					ctx, cancel = context.WithCancel(ctx)
					time.AfterFunc(300*time.Millisecond, cancel)
					want = context.Canceled.Error()
				case "deadline":
					ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
					want = context.DeadlineExceeded.Error()
				}
				defer cancel()
				inTime(t, 2*time.Second, func() {
					if _, err := r.Start(ctx, name); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) {
						t.Errorf("error %v, want %q", err, want)
					}
				})
			})
		}
	}
}

// A context that has ended starts nothing.
func TestStartWithEndedContext(t *testing.T) {
	r := newRig(t, nil)
	witness := filepath.Join(filepath.Dir(r.dir), "open", "ran")
	if err := errors.Join(os.Mkdir(filepath.Dir(witness), 0o700), os.Chmod(filepath.Dir(witness), 0o777)); err != nil {
		t.Fatal(err)
	}
	r.script(t, "witness", "echo > "+witness)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 {
		if _, err := r.Start(ctx, "witness"); !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v", err)
		}
	}
	if _, err := os.Stat(witness); err == nil {
		t.Error("it ran")
	}
}

// What cannot be executed has no process to end.
func TestStartWithoutProcess(t *testing.T) {
	r := newRig(t, nil)
	write(t, filepath.Join(r.dir, Prefix+"text"), "no program\n", 0o755)
	if _, err := r.Start(t.Context(), "text"); err == nil || !strings.Contains(err.Error(), `plugin "text": starting it: executing`) {
		t.Errorf("error %v", err)
	}
	r.o.RunDirs = []string{filepath.Join(r.run, strings.Repeat("long", 20))}
	if _, err := r.Start(t.Context(), "good"); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("error %v", err)
	}
}

// A line without an end is no way to make the host hold it.
func TestStartHoldsNoLongLine(t *testing.T) {
	r := newRig(t, nil)
	r.script(t, "endless", "exec cat /dev/zero")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := r.Start(t.Context(), "endless"); !errors.Is(err, errLong) {
		t.Errorf("error %v", err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("%d bytes were allocated", n)
	}
}

// Whatever a program prints before and beside its handshake, with the SDK it is a
// plugin; and who prints after it, without the SDK, is not blocked.
func TestStartSurvivesNoise(t *testing.T) {
	for _, name := range []string{"noisy", "chatty"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			inTime(t, 3*time.Second, func() {
				if got, err := r.fetch(t.Context(), name); err != nil || got["a"] != "value" || got["b"] != "value" {
					t.Errorf("%q, %v", got, err)
				}
			})
		})
	}
}

// The descriptor that was hashed is what runs, whatever becomes of the path.
func TestStartRunsWhatWasHashed(t *testing.T) {
	r := newRig(t, nil)
	r.script(t, "swapped-file", "echo checked >&2; exit 1")
	r.script(t, "other", "echo swapped >&2; exit 1")
	path := filepath.Join(r.dir, Prefix+"swapped-file")
	p, err := r.o.Finder.Find("swapped-file")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(r.dir, Prefix+"other"), path); err != nil {
		t.Fatal(err)
	}
	if _, err := r.start(t.Context(), p, manifest.Secrets, r.prepare(p.Name, manifest.Secrets)); hintOf(err) != "it said: checked" {
		t.Errorf("%v, %s", err, hintOf(err))
	}
	if _, err := r.Start(t.Context(), "swapped-file"); hintOf(err) != "it said: swapped" {
		t.Errorf("the next start: %v, %s", err, hintOf(err))
	}
}

func TestClose(t *testing.T) {
	r := newRig(t, nil)
	p, err := r.Start(t.Context(), "good")
	if err != nil {
		t.Fatal(err)
	}
	pid := p.Pid()
	if !alive(pid) {
		t.Error("it does not run")
	}
	inTime(t, time.Second, func() {
		p.Close()
		p.Close()
	})
	if alive(pid) {
		t.Error("it still runs")
	}
	select {
	case <-p.Gone():
	default:
		t.Error("it is not told that it is gone")
	}
	if _, err := r.Describe(t.Context(), p); err == nil || !strings.Contains(err.Error(), `plugin "good"`) {
		t.Errorf("a call after the end: %v", err)
	}
	// One that was never connected, nor started.
	program, err := r.o.Finder.Find("good")
	if err != nil {
		t.Fatal(err)
	}
	inTime(t, time.Second, func() {
		(&Plugin{Program: program, proc: &process{done: make(chan struct{})}}).Close()
	})
}
