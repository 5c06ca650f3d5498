package attack

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// abstractSockets makes two of the host's, name and name-d, that can be reached from outside.
func (l *lab) abstractSockets(t *testing.T) (name string) {
	t.Helper()
	name = fmt.Sprintf("nucleus-attack-%d-%s", os.Getpid(), l.name)
	ln, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	dgram, err := net.ListenPacket("unixgram", "@"+name+"-d")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dgram.Close() })
	teeth(t, l.outside(t, l.attacker, "abstract", name, name+"-d"), "abstract", "connected to "+name, "sent to "+name+"-d")
	return name
}

// Abstract sockets are found by name in the network namespace (CVE-2020-15257):
// with the host's network that is the host's, and Landlock must hold.
func TestAbstractSockets(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		name := l.abstractSockets(t)
		held(t, l.attacked(t, l.attack("abstract", name, name+"-d")), "abstract")
		testutil.Needs(t, testutil.Landlock(6))
		j := l.attack("abstract", name, name+"-d").with(`  network "host" {}`)
		held(t, l.attacked(t, j), "abstract")
		// Rules of the job's own, and none by default, do not give it up.
		j.security = "    no_default_landlock = true\n    landlock {\n      rule {\n        paths  = [\"/\"]\n        access = [\"read\", \"write\", \"execute\"]\n      }\n    }\n"
		held(t, l.attacked(t, j), "abstract")
	})
}

// A socket with a path on a volume is a door that the operator opened, also on
// a read-only volume: connecting is not writing. What is not on a volume is not
// there.
func TestPathSockets(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		volume := l.dir(t, "lent")
		hidden := l.dir(t, "hidden")
		for _, dir := range []string{volume, hidden} {
			ln, err := net.Listen("unix", filepath.Join(dir, "sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			if err := os.Chmod(filepath.Join(dir, "sock"), 0o666); err != nil {
				t.Fatal(err)
			}
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					_, _ = c.Write([]byte("CANARY"))
					_ = c.Close()
				}
			}()
		}
		path := filepath.Join(hidden, "sock")
		teeth(t, l.outside(t, l.attacker, "socket", path), "socket", path+" said CANARY")
		paths := []string{path, "/run/dbus/system_bus_socket", "/var/run/docker.sock", "/run/systemd/private", "/run/systemd/journal/socket", "/run/containerd/containerd.sock", "/volume/sock"}
		for _, ro := range []bool{true, false} {
			j := l.attack(append([]string{"socket"}, paths...)...).with("  volume \"v\" {\n    source = %q\n    target = \"/volume\"\n    read_only = %t\n  }", volume, ro)
			// The one that was lent answers, and no other.
			if got := l.attacked(t, j).wins("socket"); !slices.Equal(got, []string{"/volume/sock said CANARY"}) {
				t.Errorf("read_only = %t: %q", ro, got)
			}
		}
	})
}

// System V and POSIX objects of the host's.
func TestHostIPC(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		key := 0x4e55434c + l.UID
		id, err := unix.SysvShmGet(key, 4096, unix.IPC_CREAT|0o666)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil); err != nil {
				t.Error(err)
			}
		}()
		name := fmt.Sprintf("nucleus-attack-%d-%d", os.Getpid(), l.UID)
		file := filepath.Join("/dev/shm", name)
		write(t, file, "CANARY", 0o666)
		defer os.Remove(file)
		args := []string{"ipc", fmt.Sprint(key), name}
		teeth(t, l.outside(t, l.attacker, args...), "ipc", "shared memory segment", "segments in /proc/sysvipc/shm", "/dev/shm CANARY")
		held(t, l.attacked(t, l.attack(args...)), "ipc")
		held(t, l.attacked(t, l.attack(args...).with(`  network "host" {}`)), "ipc")
		if l.UID == 0 {
			held(t, l.attacked(t, l.attack(args...).with(`  namespaces { user = "host" }`)), "ipc")
		}
	})
}

// A file anywhere on the host that was not lent is not found by its content or
// its name, by whatever path.
func TestHostFilesAreNotFound(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		canary := fmt.Sprintf("CANARY%d%s", os.Getpid(), l.name)
		// Beside what is lent, below the account's home, and in its parent.
		for _, dir := range []string{l.Home, l.dir(t, "beside"), l.Dir} {
			file := filepath.Join(dir, "x"+canary)
			write(t, file, canary, 0o644)
			l.Own(t, file)
		}
		lent := l.dir(t, "lent")
		write(t, filepath.Join(lent, "known"), "LENT"+canary, 0o644)
		j := l.attack("sweep", canary).with("  volume \"v\" {\n    source = %q\n    target = \"/volume\"\n    read_only = true\n  }", lent)
		r := l.attacked(t, j)
		// Teeth: the sweep finds what was lent, and nothing else.
		if got := r.wins("sweep"); !slices.Equal(got, []string{"content /volume/known"}) {
			t.Errorf("found %q", got)
		}
	})
}
