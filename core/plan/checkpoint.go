package plan

import "fmt"

// checkpoint refuses what a sandbox cannot have whose state is to be saved and restored:
// what the state depends on, and is not in it.
func (m *maker) checkpoint() {
	if !m.p.Runtime.Checkpoint {
		return
	}
	j := m.j
	if len(j.Secrets) > 0 {
		m.fail(fmt.Sprintf("secret[%q]", j.Secrets[0].Name), "remove checkpoint, or have the workload fetch the value when it needs it", "an image of a checkpoint is a file on disk with all of the sandbox's memory, this secret's value too")
	}
	if m.p.Root.Kind == RootOverlay {
		m.fail("rootfs.writable", `write writable = "none", and tmpfs or volume blocks for what must be written`, "what a sandbox writes to its root is in no image of a checkpoint")
	}
	if w := j.Workspace; w != nil && w.Mode == "overlay" {
		m.fail("workspace.mode", `write mode = "bind-ro" or "bind-rw"`, "what a sandbox writes to an overlay of its workspace is in no image of a checkpoint")
	}
	if from := m.notifies(); from != "" {
		m.fail(from, "remove the line, or checkpoint; probe readiness by exec = [...]", "a sandbox that is restored has notified somebody else already")
	}
}

// own makes a place for what a sandbox writes one of the runtime's kernel's, whose
// content is in an image; the core's would be empty when it is restored.
func own(x *Mount, size int64) {
	if x.Kind != MountScratch && x.Kind != MountTmpfs {
		return
	}
	o := withoutBind(x.Options)
	if x.Kind == MountScratch {
		o = append(o, fmt.Sprintf("mode=%04o", x.Mode), fmt.Sprintf("size=%d", size))
	}
	x.Type, x.Source, x.Inside = "tmpfs", "tmpfs", true
	x.Options = append(o, fmt.Sprintf("uid=%d", x.UID), fmt.Sprintf("gid=%d", x.GID))
}
