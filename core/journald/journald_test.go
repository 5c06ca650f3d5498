package journald

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/logs"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// journal is one that is read by the test.
func journal(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// receive decodes an entry.
func receive(t *testing.T, c *net.UnixConn) map[string]string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(testutil.Patient(10 * time.Second))); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 256<<10)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, b[:n])
}

func decode(t *testing.T, b []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	for len(b) > 0 {
		line, rest, ok := bytes.Cut(b, []byte{'\n'})
		if !ok {
			t.Fatalf("no end: %q", b)
		}
		name, value, text := bytes.Cut(line, []byte{'='})
		if !text {
			n := binary.LittleEndian.Uint64(rest)
			value, rest = rest[8:8+n], rest[8+n+1:]
		}
		if _, twice := out[string(name)]; twice {
			t.Errorf("%s twice", name)
		}
		out[string(name)] = string(value)
		b = rest
	}
	return out
}

func begin(t *testing.T, path string) *Sender {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	s.Begin("6df7e1bb1f7f55dc2934a48438f53b8a", "web")
	return s
}

func TestEntries(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c := journal(t, path)
	s := begin(t, path)
	base := "NUCLEUS_ID:6df7e1bb1f7f55dc2934a48438f53b8a NUCLEUS_NAME:web "
	long := strings.Repeat("x", maxLine)
	for _, x := range []struct {
		records []logs.Record
		want    string
	}{
		{[]logs.Record{{Stream: logs.Out, Text: []byte("a line")}}, "map[MESSAGE:a line " + base + "NUCLEUS_STREAM:out PRIORITY:6 SYSLOG_IDENTIFIER:nucleus]"},
		{[]logs.Record{{Stream: logs.Err, Text: []byte("PRIORITY=0\x00\xff")}}, "map[MESSAGE:PRIORITY=0\x00\xff " + base + "NUCLEUS_STREAM:err PRIORITY:3 SYSLOG_IDENTIFIER:nucleus]"},
		{[]logs.Record{{Stream: logs.Out}}, "map[MESSAGE: " + base + "NUCLEUS_STREAM:out PRIORITY:6 SYSLOG_IDENTIFIER:nucleus]"},
		// No text of a workload can add a field.
		{[]logs.Record{{Stream: logs.Out, Text: []byte("a\nPRIORITY=0\n")}}, "map[MESSAGE:a\nPRIORITY=0\n " + base + "NUCLEUS_STREAM:out PRIORITY:6 SYSLOG_IDENTIFIER:nucleus]"},
		{[]logs.Record{{Lost: 3}, {Stream: logs.Terminal, Text: []byte("$ "), Partial: true}, {Stream: logs.Terminal, Text: []byte("ls\r")}}, "map[MESSAGE:$ ls " + base + "NUCLEUS_STREAM:tty PRIORITY:6 SYSLOG_IDENTIFIER:nucleus]"},
		{[]logs.Record{{Stream: logs.Out, Text: []byte(long), Partial: true}}, "map[MESSAGE:" + long + " " + base + "NUCLEUS_PARTIAL:1 NUCLEUS_STREAM:out PRIORITY:6 SYSLOG_IDENTIFIER:nucleus]"},
	} {
		for _, r := range x.records {
			s.Send(r)
		}
		if got := fmt.Sprint(receive(t, c)); got != x.want {
			t.Errorf("got  %q\nwant %q", got, x.want)
		}
	}
	// A line that has no end ends with its workload.
	s.Send(logs.Record{Stream: logs.Out, Text: []byte("first run"), Partial: true})
	s.Flush()
	if got := receive(t, c); got["MESSAGE"] != "first run" || got["NUCLEUS_PARTIAL"] != "1" {
		t.Errorf("the first run: %q", got)
	}
	s.Send(logs.Record{Stream: logs.Out, Text: []byte("second run")})
	if got := receive(t, c); got["MESSAGE"] != "second run" || got["NUCLEUS_PARTIAL"] != "" {
		t.Errorf("the second run: %q", got)
	}
	s.Send(logs.Record{Stream: logs.Err, Text: []byte("no end"), Partial: true})
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if got := receive(t, c); got["MESSAGE"] != "no end" || got["NUCLEUS_PARTIAL"] != "1" {
		t.Errorf("the last part: %q", got)
	}
}

func TestNoJournal(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]error{
		filepath.Join(dir, "none"):                   unix.ENOENT,
		filepath.Join(dir, strings.Repeat("x", 200)): unix.EINVAL,
	} {
		_, err := Open(path)
		var me *MissingError
		if !errors.As(err, &me) || !errors.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A journal that does not read holds nobody up, and is told of what it has missed.
func TestJournalThatDoesNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c := journal(t, path)
	s := begin(t, path)
	line := []byte(strings.Repeat("x", 16<<10))
	const lines = 2000
	began := time.Now()
	for range lines {
		s.Send(logs.Record{Stream: logs.Out, Text: line})
	}
	if took := time.Since(began); took > testutil.Patient(patience) {
		t.Errorf("the workload waited for %s", took)
	}
	began = time.Now()
	err := s.Close()
	if took := time.Since(began); took > testutil.Patient(closeTime+patience+time.Second) {
		t.Errorf("Close took %s", took)
	}
	var lost int
	if err == nil {
		t.Fatal("nothing is told of")
	}
	if _, serr := fmt.Sscanf(err.Error(), "the journal did not take %d lines", &lost); serr != nil || lost == 0 || lost >= lines {
		t.Errorf("%v", err)
	}
	// The queue may have been full before the journal was: it has been told of that, then.
	taken := 0
	for taken < lines-lost {
		if receive(t, c)["NUCLEUS_LOST"] == "" {
			taken++
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 256<<10); ; {
		n, err := c.Read(b)
		if err != nil {
			break
		}
		if decode(t, b[:n])["NUCLEUS_LOST"] == "" {
			t.Errorf("one more than %d of %d lines", taken, lines)
		}
	}
}

func TestWhatIsMissingIsToldWhenTheJournalReadsAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c := journal(t, path)
	s := begin(t, path)
	const lines = 300
	line := []byte(strings.Repeat("x", 16<<10))
	for range lines {
		s.Send(logs.Record{Stream: logs.Out, Text: line})
	}
	taken := 0
	for {
		got := receive(t, c)
		if got["NUCLEUS_LOST"] == "" {
			taken++
			continue
		}
		n, err := strconv.Atoi(got["NUCLEUS_LOST"])
		if err != nil || n < 1 || n > lines-taken || got["PRIORITY"] != "4" || !strings.Contains(got["MESSAGE"], "nucleus logs has them") {
			t.Errorf("%q after %d lines, %v", got, taken, err)
		}
		break
	}
	go func() {
		for b := make([]byte, 256<<10); ; {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	}()
	if err := s.Close(); err == nil {
		t.Error("nothing is told of")
	}
}

// A journal that is started anew goes on to get what comes.
func TestJournalIsStartedAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c := journal(t, path)
	s := begin(t, path)
	s.Send(logs.Record{Stream: logs.Out, Text: []byte("one")})
	receive(t, c)
	c.Close()
	if err := unix.Unlink(path); err != nil && !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	s.Send(logs.Record{Stream: logs.Out, Text: []byte("nobody hears")})
	for s.missing() == 0 {
		time.Sleep(time.Millisecond)
	}
	c = journal(t, path)
	s.Send(logs.Record{Stream: logs.Out, Text: []byte("two")})
	if got := receive(t, c); got["MESSAGE"] != "two" {
		t.Errorf("%q", got)
	}
	if got := receive(t, c); got["NUCLEUS_LOST"] != "1" {
		t.Errorf("%q", got)
	}
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "did not take 1 lines") {
		t.Error(err)
	}
}

func (s *Sender) missing() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

func TestCloseWithoutBegin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	journal(t, path)
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
