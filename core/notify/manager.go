package notify

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Manager is a service manager that wants to hear of this process.
type Manager struct {
	address string // a path, or "@" and an abstract name
	// Watchdog is how often it wants to hear at least, 0 for no matter.
	Watchdog time.Duration
}

// FromEnv finds the manager that started this process in its environment, as
// sd_notify(3) and sd_watchdog_enabled(3) say; nil if there is none.
func FromEnv(getenv func(string) string, pid int) *Manager {
	m := &Manager{address: getenv("NOTIFY_SOCKET")}
	if len(m.address) < 2 || m.address[0] != '/' && m.address[0] != '@' {
		return nil
	}
	usec, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	whose := getenv("WATCHDOG_PID")
	if err == nil && usec > 0 && usec <= int64(maxWatchdog/time.Microsecond) && (whose == "" || whose == strconv.Itoa(pid)) {
		m.Watchdog = time.Duration(usec) * time.Microsecond
	}
	return m
}

// maxWatchdog is more than anybody means, and fits into a Duration.
const maxWatchdog = 1000 * 24 * time.Hour

// patience is how long a manager may take to make room for a message.
const patience = 2 * time.Second

// Tell sends a message that says something.
func (m *Manager) Tell(x Message) error {
	text, err := x.text()
	if err == nil && text != "" {
		err = m.send(text)
	}
	if err != nil {
		return fmt.Errorf("telling the service manager at %q: %w", strings.ToValidUTF8(m.address, "?"), err)
	}
	return nil
}

func (m *Manager) send(text string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	for {
		err := unix.Sendto(fd, []byte(text), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: m.address})
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("sendto", err)
		}
	}
}
