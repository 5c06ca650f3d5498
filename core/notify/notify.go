// Package notify speaks sd_notify(3). It reads what a sandbox says of itself, of which
// a few words are known and all others dropped, and tells a service manager, in words
// of its own: nothing that a sandbox wrote reaches the manager as it was written.
package notify

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// MaxSize is the longest datagram that counts, as in systemd (NOTIFY_BUFFER_MAX).
const MaxSize = 4096

// MaxStatus is the longest status, in bytes: more is cut off.
const MaxStatus = 512

// maxErrno is the kernel's MAX_ERRNO.
const maxErrno = 4095

// Message is what a datagram says.
type Message struct {
	Ready, Reloading, Stopping, Watchdog bool
	// HasStatus: Status was said, perhaps to be empty.
	HasStatus bool
	Status    string // fit to be shown
	Errno     int    // 0 if it was not said
}

// Parse reads a datagram. What is not known, or not well-formed, is as if it were not
// there: MAINPID, FDSTORE and NOTIFYACCESS would be commands to the host's manager.
func Parse(b []byte) (m Message) {
	b = bytes.TrimSuffix(b, []byte{0})
	if len(b) > MaxSize || bytes.IndexByte(b, 0) >= 0 {
		return Message{}
	}
	for line := range bytes.SplitSeq(b, []byte{'\n'}) {
		switch string(line) {
		case "READY=1":
			m.Ready = true
		case "RELOADING=1":
			m.Reloading = true
		case "STOPPING=1":
			m.Stopping = true
		case "WATCHDOG=1":
			m.Watchdog = true
		default:
			m.value(line)
		}
	}
	return m
}

// value takes an assignment with a value; the first of a name counts, as in systemd.
func (m *Message) value(line []byte) {
	if v, ok := bytes.CutPrefix(line, []byte("STATUS=")); ok && !m.HasStatus && utf8.Valid(v) {
		m.HasStatus, m.Status = true, shown(v)
	}
	if v, ok := bytes.CutPrefix(line, []byte("ERRNO=")); ok && m.Errno == 0 && len(v) <= len("4095") {
		if n, err := strconv.ParseUint(string(v), 10, 16); err == nil && n <= maxErrno {
			m.Errno = int(n)
		}
	}
}

// shown makes text of a sandbox fit for a terminal and a log: what cannot be seen, and
// could forge lines or turn them around, becomes a space.
func shown(v []byte) string {
	s := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, string(v))
	if len(s) > MaxStatus {
		s = strings.ToValidUTF8(s[:MaxStatus], "")
	}
	return s
}

// text is the message as sd_notify(3) has it.
func (m Message) text() (string, error) {
	var lines []string
	for _, x := range []struct {
		said bool
		line string
	}{{m.Ready, "READY=1"}, {m.Stopping, "STOPPING=1"}, {m.Watchdog, "WATCHDOG=1"}, {m.HasStatus, "STATUS=" + m.Status}, {m.Errno != 0, fmt.Sprintf("ERRNO=%d", m.Errno)}} {
		if x.said {
			lines = append(lines, x.line)
		}
	}
	if m.Reloading {
		// By our clock: a sandbox may have another, in a time namespace.
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return "", err
		}
		lines = append(lines, "RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", time.Duration(now.Nano()).Microseconds()))
	}
	return strings.Join(lines, "\n"), nil
}
