package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// scratch is a fresh tmpfs in this mount namespace, which dies with us. Any
// directory serves as the place; these are the ones that hosts have.
func scratch() (string, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", setup("making the mount tree private", err)
	}
	err := error(unix.ENOENT)
	for _, dir := range []string{"/tmp", "/var/tmp", "/run", "/mnt", "/var", "/usr", "/dev"} {
		if err = unix.Mount("probe", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size=1m"); err == nil {
			return dir, nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			break
		}
	}
	return "", setup("mounting a tmpfs", err)
}

// scratchDirs is a scratch tmpfs with directories in it.
func scratchDirs(names ...string) (string, error) {
	base, err := scratch()
	if err != nil {
		return "", err
	}
	for _, n := range names {
		if err := os.Mkdir(filepath.Join(base, n), 0o700); err != nil {
			return "", setup("making a directory", err)
		}
	}
	return base, nil
}

func probeMountAPI(string) (string, error) {
	base, err := scratchDirs("m")
	if err != nil {
		return "", err
	}
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("opening a file system context: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return "", fmt.Errorf("creating a file system: %w", err)
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return "", fmt.Errorf("making a detached mount: %w", err)
	}
	defer unix.Close(m)
	if err := unix.MoveMount(m, "", unix.AT_FDCWD, filepath.Join(base, "m"), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("attaching a mount: %w", err)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, base, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return "", fmt.Errorf("cloning a mount tree: %w", err)
	}
	unix.Close(tree)
	return "", nil
}

// probeMountSetattr makes a tree read-only and writes below its inner mount,
// which is what an older remount of the top leaves writable.
func probeMountSetattr(string) (string, error) {
	base, err := scratchDirs("inner")
	if err != nil {
		return "", err
	}
	inner := filepath.Join(base, "inner")
	if err := unix.Mount("probe", inner, "tmpfs", 0, "size=1m"); err != nil {
		return "", setup("mounting a tmpfs", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, base, unix.AT_RECURSIVE, &attr); err != nil {
		return "", fmt.Errorf("making a mount tree read-only: %w", err)
	}
	err = os.Mkdir(filepath.Join(inner, "x"), 0o700)
	if err == nil {
		return "", &refusal{why: "a mount inside a read-only tree could still be written"}
	}
	if !errors.Is(err, unix.EROFS) {
		return "", setup("writing to a read-only mount", err)
	}
	return "", nil
}

// probeIDMapped gives a detached clone of dir's mount other ids. Nothing is
// attached, so nothing is left.
func probeIDMapped(dir string) (string, error) {
	privileged := inInitialUserNS()
	attr := &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
	}
	if privileged {
		attr.UidMappings[0] = syscall.SysProcIDMap{ContainerID: 0, HostID: subIDStart, Size: 1}
		attr.GidMappings[0] = attr.UidMappings[0]
	}
	h, err := hold(attr)
	if err != nil {
		return "", setup("making a user namespace for the map", err)
	}
	defer h.release()
	ns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/user", h.proc.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", setup("opening the user namespace of the map", err)
	}
	defer unix.Close(ns)
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		if errors.Is(err, unix.ENOSYS) {
			return "", fmt.Errorf("cloning a mount tree: %w", err)
		}
		return "", setup(fmt.Sprintf("cloning the mount of %q", dir), err)
	}
	defer unix.Close(tree)
	where := fmt.Sprintf("%s on %s", fsName(tree), dir)
	set := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &set); err != nil {
		return where, fmt.Errorf("mapping the ids of %s: %w", where, err)
	}
	return where, nil
}

func inInitialUserNS() bool {
	ns := readUserNS("")
	return ns.known && ns.initial
}

// fsName is the file system's name for readers; numbers are from statfs(2).
func fsName(fd int) string {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return "file system"
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	case unix.F2FS_SUPER_MAGIC:
		return "f2fs"
	case unix.FUSE_SUPER_MAGIC:
		return "fuse"
	}
	return fmt.Sprintf("file system 0x%x", uint32(st.Type))
}

// probeOverlay writes through an overlay and looks that the lower layer is as
// it was. In a user namespace it needs userxattr, as trusted.* is for root.
func probeOverlay(string) (string, error) {
	base, err := scratchDirs("lower", "upper", "work", "merged")
	if err != nil {
		return "", err
	}
	lower, merged := filepath.Join(base, "lower"), filepath.Join(base, "merged")
	if err := os.WriteFile(filepath.Join(lower, "f"), []byte("lower"), 0o600); err != nil {
		return "", setup("writing a file", err)
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, base, base)
	if !inInitialUserNS() {
		data += ",userxattr"
	}
	if err := unix.Mount("probe", merged, "overlay", 0, data); err != nil {
		return "", fmt.Errorf("mounting an overlay: %w", err)
	}
	if err := os.WriteFile(filepath.Join(merged, "f"), []byte("upper"), 0o600); err != nil {
		return "", fmt.Errorf("writing to an overlay: %w", err)
	}
	if b, err := os.ReadFile(filepath.Join(lower, "f")); err != nil || string(b) != "lower" {
		return "", &refusal{why: "a write to an overlay reached its lower layer"}
	}
	return "", nil
}

func probeNoSwap(string) (string, error) {
	base, err := scratchDirs("m")
	if err != nil {
		return "", err
	}
	if err := unix.Mount("probe", filepath.Join(base, "m"), "tmpfs", 0, "noswap,size=1m"); err != nil {
		return "", fmt.Errorf("mounting a tmpfs with noswap: %w", err)
	}
	return "", nil
}

func probeDevpts(string) (string, error) {
	base, err := scratchDirs("pts")
	if err != nil {
		return "", err
	}
	pts := filepath.Join(base, "pts")
	if err := unix.Mount("probe", pts, "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return "", fmt.Errorf("mounting devpts: %w", err)
	}
	fd, err := unix.Open(pts+"/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening a terminal: %w", err)
	}
	defer unix.Close(fd)
	if n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil || n != 0 {
		return "", &refusal{why: fmt.Sprintf("a new devpts gave terminal %d (%v), not its first", n, err)}
	}
	return "", nil
}

func probeProcMount(string) (string, error) {
	base, err := scratchDirs("proc")
	if err != nil {
		return "", err
	}
	p := filepath.Join(base, "proc")
	if err := unix.Mount("probe", p, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "hidepid=2"); err != nil {
		return "", fmt.Errorf("mounting proc: %w", err)
	}
	self, err := os.Readlink(p + "/self")
	if err != nil || self != "1" {
		return "", &refusal{why: fmt.Sprintf("a new proc shows us as %q (%v), not as pid 1", self, err)}
	}
	return "hidepid", nil
}

func probeSysfsMount(string) (string, error) {
	base, err := scratchDirs("sys")
	if err != nil {
		return "", err
	}
	if err := unix.Mount("probe", filepath.Join(base, "sys"), "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, ""); err != nil {
		return "", fmt.Errorf("mounting sysfs: %w", err)
	}
	return "", nil
}
