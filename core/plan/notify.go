package plan

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/internal/pathname"
)

// Notify says where the sandbox tells of itself (sd_notify(3)).
type Notify struct {
	Socket string `json:"socket"` // in the sandbox
	// Manager: the caller's service manager is told of it.
	Manager bool `json:"manager,omitempty"`
	// Stopping: of STOPPING=1 as well. Not of a workload that is restarted: its end is
	// not the service's.
	Stopping bool `json:"stopping,omitempty"`
}

const (
	notifyDir    = "/run/nucleus"
	notifySocket = notifyDir + "/notify"
)

// notifies tells which part of the job wants a socket, "" if none does.
func (m *maker) notifies() string {
	switch {
	case m.j.SDNotify:
		return "sd_notify"
	case m.j.Readiness != nil && m.j.Readiness.Notify:
		return "readiness.notify"
	}
	return ""
}

// notifyEnv adds the variables of a workload that notifies. Without WATCHDOG_PID
// WATCHDOG_USEC is meant for whoever reads it (sd_watchdog_enabled(3)).
func (m *maker) notifyEnv(env map[string]string) {
	if m.notifies() == "" {
		return
	}
	env["NOTIFY_SOCKET"] = notifySocket
	if m.j.SDNotify && m.in.Watchdog > 0 {
		env["WATCHDOG_USEC"] = fmt.Sprint(m.in.Watchdog.Microseconds())
	}
}

// notify plans the socket. Its file system is its own and read-only, so nobody inside
// can put another in its place; a socket is written to all the same (inode_permission
// in the kernel's fs/namei.c asks for a writable file system for files, directories and
// links alone).
func (m *maker) notify(id identity) {
	from := m.notifies()
	if from == "" {
		return
	}
	for _, t := range targets(m.j) {
		if pathname.Within(t.path, notifyDir) {
			m.fail(t.origin, "choose another target", "%q is in %s, where the socket for notifications is", t.path, notifyDir)
		}
	}
	m.p.Notify = &Notify{Socket: notifySocket, Manager: m.j.SDNotify, Stopping: m.j.SDNotify && m.j.Restart == nil}
	m.p.Mounts = append(m.p.Mounts, Mount{
		Mount: specs.Mount{Destination: notifyDir, Type: "tmpfs", Source: "notify", Options: []string{"ro", "nosuid", "nodev", "noexec", "mode=0755", "size=4096"}},
		Kind:  MountNotify, Origin: from, UID: m.owner(0, id.uid, m.p.IDs.UIDs), GID: m.owner(0, id.gid, m.p.IDs.GIDs), Mode: 0o755,
	})
}

func (e *explainer) notify() {
	n := e.p.Notify
	if n == nil {
		return
	}
	whom := "the supervisor"
	if n.Manager {
		whom = "the supervisor, which tells the service manager that started it"
	}
	e.add("notifications", n.Socket+", to "+whom, "datagram socket, bound by init; READY, RELOADING, STOPPING, WATCHDOG, STATUS and ERRNO, all else is dropped", "sd_notify", "readiness.notify")
}
