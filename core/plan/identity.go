package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// identity is who the workload is inside.
type identity struct {
	name   string
	uid    uint32
	gid    uint32
	groups []uint32
	home   string
}

// identity resolves the job's user and groups by the passwd and group files
// that the workload will see.
func (m *maker) identity() identity {
	id := identity{name: "root", home: "/root"}
	user, group, hasGroup := strings.Cut(m.j.User, ":")
	if user == "" && m.j.Namespaces.User == "keep-id" {
		// Who keeps its id runs under it.
		user, group, hasGroup = strconv.Itoa(m.h.EUID), strconv.Itoa(m.h.EGID), true
	}
	if user != "" {
		e, numeric, ok := m.in.Accounts.user(user)
		switch {
		case ok:
			id.uid, id.gid, id.name, id.home = e.uid, e.gid, e.name, e.home
		case numeric:
			id.uid, id.gid, id.name = e.uid, e.uid, "user"
			if e.uid == 0 {
				id.name = "root"
			}
		default:
			hint := "write a numeric uid"
			if names := m.userNames(); len(names) > 0 {
				hint += ", or one of: " + strings.Join(names, ", ")
			}
			m.fail("user", hint, "user %q is not in %s", user, m.accountFile("passwd"))
		}
	} else if e, _, ok := m.in.Accounts.user("0"); ok {
		id.name, id.home = e.name, e.home
	}
	if hasGroup {
		if g, ok := m.in.Accounts.group(group); ok {
			id.gid = g
		} else {
			m.fail("user", "write a numeric gid", "group %q is not in %s", group, m.accountFile("group"))
		}
	}
	for _, g := range m.j.Groups {
		n, ok := m.in.Accounts.group(g)
		if !ok {
			m.fail("groups", "write a numeric gid", "group %q is not in %s", g, m.accountFile("group"))
			continue
		}
		if n != id.gid {
			id.groups = append(id.groups, n)
		}
	}
	if m.j.Rootfs == nil {
		// The toolchain root has homes of its own; those in the host's passwd
		// are not there.
		id.home = "/home/" + id.name
		if id.uid == 0 {
			id.home = "/root"
		}
	}
	if id.home == "" || id.home == "/" || !strings.HasPrefix(id.home, "/") || strings.Contains(id.home, "..") {
		id.home = "/root"
		if id.uid != 0 {
			id.home = "/home/" + id.name
		}
	}
	return id
}

// accountFile names the file that names are looked up in.
func (m *maker) accountFile(name string) string {
	if m.j.Rootfs != nil {
		return "the rootfs's /etc/" + name
	}
	return "the host's /etc/" + name
}

func (m *maker) userNames() []string {
	var out []string
	for line := range lines(m.in.Accounts.Passwd) {
		if name, _, ok := strings.Cut(line, ":"); ok && len(out) < 8 {
			out = append(out, name)
		}
	}
	return out
}

const idRange = 65536

// idMaps chooses the user namespace's maps.
func (m *maker) idMaps(id identity) {
	p := &m.p.IDs
	p.SetGroups = true
	switch m.j.Namespaces.User {
	case "host":
		p.Kind = "none"
		if m.j.Mode.Strict() {
			m.fail("namespaces.user", `write: namespaces { user = "auto" }`, "user = \"host\" is refused in mode %s", m.j.Mode)
		}
		return
	case "keep-id":
		m.keepID(p)
	case "map":
		p.Kind = "map"
		for _, x := range m.j.Namespaces.UIDMap {
			p.UIDs = append(p.UIDs, specs.LinuxIDMapping{ContainerID: x.Container, HostID: x.Host, Size: x.Size})
		}
		for _, x := range m.j.Namespaces.GIDMap {
			p.GIDs = append(p.GIDs, specs.LinuxIDMapping{ContainerID: x.Container, HostID: x.Host, Size: x.Size})
		}
	default:
		m.autoMap(p, id)
	}
	m.checkMaps(p, id)
}

func (m *maker) autoMap(p *IDs, id identity) {
	uid, gid := uint32(m.h.EUID), uint32(m.h.EGID)
	if m.h.Privileged {
		base := m.h.FreeSubID.Start
		p.Kind = "range"
		p.UIDs = []specs.LinuxIDMapping{{ContainerID: 0, HostID: base, Size: idRange}}
		p.GIDs = []specs.LinuxIDMapping{{ContainerID: 0, HostID: base, Size: idRange}}
		return
	}
	// One id is enough for a toolchain root and a job that names no other; it
	// needs no set-up and no helper. A rootfs, another user or further groups
	// want the caller's subordinate range, if there is one.
	wantsRange := m.j.Rootfs != nil && m.j.Rootfs.Writable == "overlay" || id.uid != 0 || id.gid != 0 || len(id.groups) > 0
	if wantsRange && m.helpersUsable() {
		// The workload's own id stands for the caller's, so that what it writes to
		// the caller's files stays the caller's.
		p.Kind = "range"
		p.UIDs = around(id.uid, uid, largest(m.h.SubUID))
		p.GIDs = around(id.gid, gid, largest(m.h.SubGID))
		return
	}
	p.Kind = "single"
	p.UIDs = []specs.LinuxIDMapping{{ContainerID: id.uid, HostID: uid, Size: 1}}
	p.GIDs = []specs.LinuxIDMapping{{ContainerID: id.gid, HostID: gid, Size: 1}}
	p.SetGroups = false
}

// around maps one id inside to one outside, and the other ids inside, from 0
// on, to a subordinate range.
func around(inside, outside uint32, sub fact.IDRange) []specs.LinuxIDMapping {
	sub = without(sub, outside)
	size := min(sub.Count, idRange-1)
	out := []specs.LinuxIDMapping{{ContainerID: inside, HostID: outside, Size: 1}}
	below := min(inside, size)
	if below > 0 {
		out = append(out, specs.LinuxIDMapping{ContainerID: 0, HostID: sub.Start, Size: below})
	}
	if size > below {
		out = append(out, specs.LinuxIDMapping{ContainerID: inside + 1, HostID: sub.Start + below, Size: size - below})
	}
	return out
}

// without gives the longer part of a range beside an id: the kernel takes no
// map in which an id outside stands twice.
func without(r fact.IDRange, id uint32) fact.IDRange {
	if id < r.Start || id-r.Start >= r.Count {
		return r
	}
	below := id - r.Start
	above := r.Count - below - 1
	if below > above {
		return fact.IDRange{Start: r.Start, Count: below}
	}
	return fact.IDRange{Start: id + 1, Count: above}
}

// largest chooses among the caller's ranges: one that is too short maps too few ids.
func largest(rs []fact.IDRange) fact.IDRange {
	return slices.MaxFunc(rs, func(a, b fact.IDRange) int { return cmp.Compare(min(a.Count, idRange), min(b.Count, idRange)) })
}

// helpersUsable reports whether newuidmap and newgidmap can give us a range.
func (m *maker) helpersUsable() bool {
	return len(m.h.SubUID) > 0 && len(m.h.SubGID) > 0 && m.h.NewUIDMap != "" && m.h.NewGIDMap != ""
}

// keepID maps the caller's id to itself and fills the ids around it from the
// subordinate range, so that files of the caller keep their owner inside.
func (m *maker) keepID(p *IDs) {
	p.Kind = "keep"
	uid, gid := uint32(m.h.EUID), uint32(m.h.EGID)
	switch {
	case m.h.Privileged:
		p.UIDs, p.GIDs = around(uid, uid, m.h.FreeSubID), around(gid, gid, m.h.FreeSubID)
	case m.helpersUsable():
		p.UIDs, p.GIDs = around(uid, uid, largest(m.h.SubUID)), around(gid, gid, largest(m.h.SubGID))
	default:
		p.UIDs = []specs.LinuxIDMapping{{ContainerID: uid, HostID: uid, Size: 1}}
		p.GIDs = []specs.LinuxIDMapping{{ContainerID: gid, HostID: gid, Size: 1}}
		p.SetGroups = false
	}
}

// checkMaps decides who writes the maps, and refuses an identity that they do
// not map.
func (m *maker) checkMaps(p *IDs, id identity) {
	own := len(p.UIDs) == 1 && len(p.GIDs) == 1 && p.UIDs[0].Size == 1 && p.GIDs[0].Size == 1 &&
		p.UIDs[0].HostID == uint32(m.h.EUID) && p.GIDs[0].HostID == uint32(m.h.EGID)
	if !m.h.Privileged {
		// Without privilege the kernel takes one line that maps the writer's own
		// id, and only once setgroups(2) is denied (user_namespaces(7)).
		p.SetGroups = !own
		if !own {
			p.Helpers, p.NewUIDMap, p.NewGIDMap = true, m.h.NewUIDMap, m.h.NewGIDMap
			if !m.helpersUsable() {
				m.fail("namespaces.user", "apt-get install uidmap, and as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "+m.h.UserName,
					"id maps of more than your own id need newuidmap, newgidmap and a line for you in /etc/subuid and /etc/subgid")
			} else if p.Kind == "map" {
				m.callersOwn("namespaces.uid_map", "uid", p.UIDs, uint32(m.h.EUID), m.h.SubUID)
				m.callersOwn("namespaces.gid_map", "gid", p.GIDs, uint32(m.h.EGID), m.h.SubGID)
			}
		}
	}
	m.hostRoot(p)
	m.mapped("user", "user", id.uid, p.UIDs)
	m.mapped("user", "group", id.gid, p.GIDs)
	if len(id.groups) > 0 && p.SetGroups {
		for _, g := range id.groups {
			m.mapped("groups", "supplementary group", g, p.GIDs)
		}
	} else if len(id.groups) > 0 {
		m.fail("groups", "get a subordinate range (usermod --add-subgids), or remove groups",
			"supplementary groups cannot be set in a user namespace of one id")
	}
}

// callersOwn refuses lines that newuidmap and newgidmap would: outside there is the
// caller's own id, alone, and what its subordinate ranges have (newuidmap(1)).
func (m *maker) callersOwn(path, what string, maps []specs.LinuxIDMapping, own uint32, sub []fact.IDRange) {
	for _, x := range maps {
		if x.Size == 1 && x.HostID == own || within(sub, uint64(x.HostID), uint64(x.HostID)+uint64(x.Size)) {
			continue
		}
		have := []string{fmt.Sprint(own)}
		for _, r := range sub {
			have = append(have, fmt.Sprintf("%d-%d", r.Start, uint64(r.Start)+uint64(r.Count)-1))
		}
		m.fail(path, "map those that are yours, or have root add to them: /etc/sub"+what+" (sub"+what+"(5))",
			"the host's %ss %d-%d are not all yours to map (yours: %s)", what, x.HostID, uint64(x.HostID)+uint64(x.Size)-1, strings.Join(have, ", "))
	}
}

// within tells whether ranges have all ids from start to end, which is not among them.
func within(rs []fact.IDRange, start, end uint64) bool {
	for again := true; again && start < end; {
		again = false
		for _, r := range rs {
			if last := uint64(r.Start) + uint64(r.Count); uint64(r.Start) <= start && start < last {
				start, again = last, true
			}
		}
	}
	return start >= end
}

// hostRoot refuses maps that give the sandbox the host's root in a strict mode.
// Inside another user namespace, a container's, id 0 is not the host's.
func (m *maker) hostRoot(p *IDs) {
	if !m.j.Mode.Strict() || m.h.UserNS {
		return
	}
	for _, x := range []struct {
		path, what string
		maps       []specs.LinuxIDMapping
	}{{"namespaces.uid_map", "uid", p.UIDs}, {"namespaces.gid_map", "gid", p.GIDs}} {
		path := x.path
		if p.Kind != "map" {
			path = "namespaces.user"
		}
		if slices.ContainsFunc(x.maps, func(l specs.LinuxIDMapping) bool { return l.HostID == 0 }) {
			m.fail(path, `write: namespaces { user = "auto" }, or map a range that nobody on the host has`, "the host's %s 0 may not be mapped in mode %s", x.what, m.j.Mode)
			if p.Kind != "map" {
				return // the other map is of the same making
			}
		}
	}
}

func (m *maker) mapped(path, what string, id uint32, maps []specs.LinuxIDMapping) {
	if _, ok := HostID(maps, id); ok {
		return
	}
	var have []string
	for _, x := range maps {
		have = append(have, fmt.Sprintf("%d-%d", x.ContainerID, uint64(x.ContainerID)+uint64(x.Size)-1))
	}
	m.fail(path, "choose an id that is mapped, or change namespaces { user = … }", "%s %d is not mapped in the sandbox (mapped: %s)", what, id, strings.Join(have, ", "))
}

// HostID translates an id inside to the id outside.
func HostID(maps []specs.LinuxIDMapping, id uint32) (uint32, bool) {
	for _, x := range maps {
		if id >= x.ContainerID && id-x.ContainerID < x.Size {
			return x.HostID + (id - x.ContainerID), true
		}
	}
	return 0, false
}
