package host

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

const remedyMapHelper = "install newuidmap and newgidmap: apt-get install uidmap (Debian, Ubuntu), dnf install shadow-utils (Fedora), apk add shadow-subids (Alpine)"

// mapHelperDirs is fixed on purpose: PATH belongs to the user, and a helper
// that is found there would be handed the id map to write.
var mapHelperDirs = [...]string{
	"/usr/bin",
	"/bin",
	"/usr/sbin",
	"/sbin",
	"/usr/local/bin",
	"/run/wrappers/bin",    // NixOS
	"/run/privileged/bin",  // Guix System
	"/run/setuid-programs", // Guix System before 2024
}

// findMapHelper returns the first usable helper, or why there is none.
func findMapHelper(r root, name string, capability int) (path, why string) {
	why = name + " is not installed"
	for _, dir := range mapHelperDirs {
		p := dir + "/" + name
		var st unix.Stat_t
		if err := unix.Stat(r.path(p), &st); err != nil {
			continue
		}
		problem := helperProblem(r, p, &st, capability)
		if problem == "" {
			return p, ""
		}
		why = p + " " + problem
	}
	return "", why
}

func helperProblem(r root, p string, st *unix.Stat_t, capability int) string {
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return "is not a regular file"
	case st.Uid != 0:
		return fmt.Sprintf("belongs to uid %d, not to root", st.Uid)
	case st.Mode&0o022 != 0:
		return "can be written by others than root"
	case unix.Access(r.path(p), unix.X_OK) != nil:
		return "may not be executed by this user"
	}
	if st.Mode&unix.S_ISUID == 0 && !hasFileCap(r.path(p), capability) {
		return "is neither setuid root nor has the file capability that it needs"
	}
	// Both of these make the kernel ignore setuid bits and file capabilities
	// at execve without a word.
	var fs unix.Statfs_t
	if unix.Statfs(r.path(p), &fs) == nil && fs.Flags&unix.ST_NOSUID != 0 {
		return "is on a file system mounted nosuid"
	}
	if nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && nnp == 1 {
		return "cannot gain privileges: no_new_privs is set on this process"
	}
	return ""
}

// hasFileCap reads security.capability (struct vfs_cap_data, capabilities(7)):
// the capability must be permitted, and effective at once, as the helpers do
// not raise it themselves.
func hasFileCap(path string, capability int) bool {
	var buf [24]byte
	n, err := unix.Getxattr(path, "security.capability", buf[:])
	if err != nil || n < 12 {
		return false
	}
	const effective = 1
	if binary.LittleEndian.Uint32(buf[:])&effective == 0 {
		return false
	}
	at := 4 + capability/32*8
	return at+4 <= n && binary.LittleEndian.Uint32(buf[at:])&(1<<(capability%32)) != 0
}
