package fs

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// Enclosure is what the root of a runtime plugin's program holds beside the workload's.
type Enclosure struct {
	Program   *os.File // the executable, opened
	Libraries bool     // it is dynamically linked
	Devices   []string // further devices of the host
	Image     *os.File // what it is to restore, nil for nothing
}

// scratchSize bounds each of the places that the program writes to: sockets, a lock,
// the description of one sandbox.
const scratchSize = 16 << 20

// place makes the mount point of what the program mounts itself, where it lies in the
// workload's root and not in another such mount.
func (p *Prepared) place(m plan.Mount) {
	for _, o := range p.plan.Mounts {
		if o.Inside && o.Destination != m.Destination && strings.HasPrefix(m.Destination, o.Destination+"/") {
			return
		}
	}
	p.op(initproto.Op{Code: initproto.OpMkdir, Target: m.Destination, Mode: 0o755, UID: p.rootUID(), GID: p.rootGID(), FD: -1})
}

// enclose lays the workload's root, which is complete, into the program's: it holds
// what the program needs and nothing of the host else.
func (p *Prepared) enclose() error {
	e := p.opts.Enclosure
	for i := range p.expect {
		p.expect[i].target = strings.TrimSuffix(runtime.RootPath+p.expect[i].target, "/")
	}
	p.origin = "runtime"
	defer func() { p.origin = "" }()
	ro := uint64(unix.MOUNT_ATTR_RDONLY)
	set := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	noexec := set | unix.MOUNT_ATTR_NOEXEC
	fresh := func(target, fstype, data string, set uint64) {
		p.op(initproto.Op{Code: initproto.OpMount, Target: target, FSType: fstype, Data: data, Set: set, FD: -1})
	}
	// Its supervisor looks for files there, and may be no root.
	tmpfs := func(target string) {
		fresh(target, "tmpfs", fmt.Sprintf("mode=0711\x00size=%d", scratchSize), noexec)
		p.expectMount(target, "tmpfs", noexec)
	}
	p.op(initproto.Op{Code: initproto.OpEnclose, FSType: "tmpfs", Data: fmt.Sprintf("mode=0755\x00size=%d", scratchSize), Set: set, Target: runtime.RootPath, FD: -1})
	fresh("/proc", "proc", "", noexec)
	p.expectMount("/proc", "proc", noexec)
	if err := p.devices(e.Devices); err != nil {
		return err
	}
	p.op(initproto.Op{Code: initproto.OpMkdir, Target: "/sys/fs/cgroup", Mode: 0o755, FD: -1})
	tmpfs("/tmp")
	tmpfs(runtime.StatePath)
	// Memory that is never swapped: the variables of the workload are in there. What the
	// program writes of them to its own files may be.
	fresh(runtime.BundlePath, "ramfs", "mode=0700", noexec)
	p.ConfigOp = len(p.Ops)
	p.op(initproto.Op{Code: initproto.OpSecret, Target: runtime.BundlePath + "/config.json", Mode: 0o400, FD: -1})
	p.op(initproto.Op{Code: initproto.OpAttr, Target: runtime.BundlePath, Set: ro, FD: -1})
	p.expectMount(runtime.BundlePath, "ramfs", noexec|ro)
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", e.Program.Fd()))
	if err != nil {
		return &Error{Path: e.Program.Name(), Origin: "runtime", Err: err}
	}
	if err := p.bindOp(e.Program, real, runtime.ProgramPath, set|ro, nil); err != nil {
		return &Error{Path: real, Origin: "runtime", Err: err}
	}
	p.expectMount(runtime.ProgramPath, "", set|ro)
	if e.Image != nil {
		if err := p.image(e.Image, noexec|ro); err != nil {
			return &Error{Path: e.Image.Name(), Err: err}
		}
	}
	if e.Libraries {
		for _, m := range p.plan.Runtime.Libraries {
			if err := p.mount(m); err != nil {
				return err
			}
		}
	}
	p.op(initproto.Op{Code: initproto.OpAttr, Target: "/", Set: ro, FD: -1})
	p.expectMount("/", "tmpfs", set|ro)
	return nil
}

// image binds what the program restores, of which it is the owner and may write nothing.
func (p *Prepared) image(dir *os.File, set uint64) error {
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return err
	}
	var idmap *idMapping
	if p.opts.Privileged {
		if idmap, err = programMapping(p.plan, dir, p.opts); err != nil {
			return err
		}
	}
	p.expectMount(runtime.ImagePath, "", set)
	return p.bindOp(dir, real, runtime.ImagePath, set, idmap)
}

// devices makes the program's /dev: what of a workload's it has a use for, and further
// devices.
func (p *Prepared) devices(further []string) error {
	var own []plan.Mount
	for _, m := range p.plan.Mounts {
		if m.Inside && (m.Kind == plan.MountDevice || slices.Contains(programDev, m.Destination)) {
			own = append(own, m)
		}
	}
	for _, d := range further {
		own = append(own, plan.DeviceMount(d))
	}
	for _, m := range own {
		m.Inside = false // this one is made by init
		if err := p.mount(m); err != nil {
			return err
		}
	}
	p.closeDev()
	return nil
}

// programDev is what a program's /dev has beside devices.
var programDev = []string{"/dev", "/dev/pts", "/dev/ptmx", "/dev/fd"}
