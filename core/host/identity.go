package host

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxAccounts bounds /etc/passwd and the subordinate id files: larger than any
// real one, small enough that a hostile file costs no memory to speak of.
const maxAccounts = 4 << 20

// initUserNSInode is the inode number that the kernel gives the initial user
// namespace (PROC_USER_INIT_INO in include/linux/proc_ns.h).
const initUserNSInode = "user:[4026531837]"

func effectiveCaps() (uint64, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, err
	}
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32, nil
}

// userNS is the user namespace that we are in.
type userNS struct {
	known   bool
	initial bool
	uids    []idExtent
	gids    []idExtent
}

// idExtent is a line of /proc/self/uid_map: count ids from inside.
type idExtent struct{ inside, count uint64 }

// readUserNS asks by inode first: in the initial namespace, where most runs
// are, that saves two files of /proc, whose inodes are made for each new
// process. A child namespace of root's can have the identity map too, so the
// map decides only where the link cannot be read.
func readUserNS(r root) userNS {
	var buf [64]byte
	n, err := unix.Readlink(r.path("/proc/self/ns/user"), buf[:])
	linked := err == nil
	if linked && string(buf[:n]) == initUserNSInode {
		whole := []idExtent{{0, maxID}}
		return userNS{known: true, initial: true, uids: whole, gids: whole}
	}
	u, errU := r.read("/proc/self/uid_map", 64<<10)
	g, errG := r.read("/proc/self/gid_map", 64<<10)
	if errU != nil || errG != nil {
		return userNS{}
	}
	return userNS{known: true, initial: !linked && identity(u), uids: parseExtents(u), gids: parseExtents(g)}
}

func identity(m []byte) bool {
	f := strings.Fields(string(m))
	return len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295"
}

func parseExtents(m []byte) []idExtent {
	var out []idExtent
	for line := range strings.Lines(string(m)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		in, err1 := strconv.ParseUint(f[0], 10, 32)
		n, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil {
			out = append(out, idExtent{in, n})
		}
	}
	return out
}

func covers(extents []idExtent, start, count uint64) bool {
	for _, e := range extents {
		if start >= e.inside && start+count <= e.inside+e.count {
			return true
		}
	}
	return false
}

// loginName is the first name of uid in /etc/passwd. It reads the file itself:
// the resolver of the C library would bring in cgo and, with network accounts,
// a network round trip on every start.
func loginName(r root, uid int) string {
	b, err := r.read("/etc/passwd", maxAccounts)
	if err != nil {
		return ""
	}
	want := []byte(strconv.Itoa(uid))
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte{'\n'})
		name, rest, ok := bytes.Cut(line, []byte{':'})
		// "+" and "-" lines are directives of the NIS compat mode, not users.
		if !ok || len(name) == 0 || name[0] == '#' || name[0] == '+' || name[0] == '-' {
			continue
		}
		_, rest, ok = bytes.Cut(rest, []byte{':'})
		if !ok {
			continue
		}
		id, _, ok := bytes.Cut(rest, []byte{':'})
		if ok && bytes.Equal(id, want) {
			return string(name)
		}
	}
	return ""
}
