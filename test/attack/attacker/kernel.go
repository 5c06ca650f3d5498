package attacker

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// gadgets are files that give the whole machine to who can write them. They are
// only opened, never written.
var gadgets = []string{
	"/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug", "/proc/sys/vm/panic_on_oom",
	"/proc/sys/fs/binfmt_misc/register", "/proc/sys/kernel/poweroff_cmd", "/proc/sys/kernel/sysrq", "/proc/sys/kernel/ns_last_pid",
	"/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/hostname", "/sys/kernel/uevent_helper", "/sys/kernel/kexec_crash_size", "/sys/power/state",
	"/sys/kernel/mm/ksm/run", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/fs/cgroup/release_agent", "/proc/acpi/alarm", "/proc/irq/default_smp_affinity",
	"/proc/1/oom_score_adj", "/proc/1/loginuid",
}

// openGadgets opens the gadgets, and then everything of the kernel's
// interfaces that is not a process's own, for writing.
func openGadgets(args []string) {
	seen := map[string]bool{}
	try := func(path string) {
		if seen[path] {
			return
		}
		seen[path] = true
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if err != nil {
			return
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR { // else it is a mask: the null device
			won("gadgets", "%s", path)
		}
		_ = unix.Close(fd)
	}
	for _, g := range gadgets {
		try(g)
	}
	if len(args) == 0 { // the whole trees only on request: on a host they are large
		return
	}
	for _, root := range []string{"/proc", "/sys"} {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			name := strings.TrimPrefix(path, "/proc/")
			if d.IsDir() && path != "/proc" && root == "/proc" && (name[0] >= '0' && name[0] <= '9' || name == "self" || name == "thread-self") {
				return fs.SkipDir
			}
			if d.Type().IsRegular() {
				try(path)
			}
			return nil
		})
	}
}

// readLeaks reads what tells of the host.
func readLeaks([]string) {
	for _, path := range []string{
		"/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/sched_debug", "/proc/slabinfo", "/proc/vmallocinfo", "/proc/kallsyms",
		"/proc/config.gz", "/proc/interrupts", "/proc/kpagecount", "/proc/kpageflags",
		"/dev/kmsg", "/sys/firmware/dmi/tables/DMI", "/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh/sshd_config",
	} {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		b := make([]byte, 64)
		if n, err := unix.Read(fd, b); err == nil && n > 0 {
			won("leaks", "%s", path)
		}
		_ = unix.Close(fd)
	}
	for _, dir := range []string{"/sys/firmware", "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/security", "/sys/fs/bpf", "/sys/fs/cgroup", "/proc/acpi", "/proc/scsi"} {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			won("leaks", "%s", dir)
		}
	}
}

func writableDirs(extra []string) []string {
	return append([]string{"/", "/tmp", "/var/tmp", "/run", "/dev", "/dev/shm", "/dev/pts", "/root", "/proc", "/etc", os.Getenv("HOME")}, extra...)
}

// makeDevices makes device nodes and opens what it made.
func makeDevices(args []string) {
	for _, dir := range writableDirs(args) {
		for name, node := range map[string]struct {
			mode uint32
			dev  uint64
		}{"null": {unix.S_IFCHR, unix.Mkdev(1, 3)}, "mem": {unix.S_IFCHR, unix.Mkdev(1, 1)}, "kmsg": {unix.S_IFCHR, unix.Mkdev(1, 11)}, "disk": {unix.S_IFBLK, unix.Mkdev(254, 0)}} {
			path := fmt.Sprintf("%s/attack-%s", dir, name)
			if unix.Mknod(path, node.mode|0o666, int(node.dev)) != nil {
				continue
			}
			won("devices", "made %s", path)
			if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
				won("devices", "opened %s", path)
				_ = unix.Close(fd)
			}
			_ = unix.Unlink(path)
		}
	}
}

// openDevices opens nodes that somebody else left.
func openDevices(args []string) {
	for _, path := range args {
		if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			won("opendev", "%s", path)
			_ = unix.Close(fd)
		}
	}
}

// useKeyrings asks for keys, which no namespace confines: the one whose
// description is the argument, and its own.
func useKeyrings(args []string) {
	for _, ring := range []int{unix.KEY_SPEC_SESSION_KEYRING, unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_USER_SESSION_KEYRING, unix.KEY_SPEC_PROCESS_KEYRING} {
		if _, err := unix.KeyctlGetKeyringID(ring, false); err == nil {
			won("keys", "keyring %d", ring)
		}
		if id, err := unix.AddKey("user", "attack", []byte("x"), ring); err == nil {
			won("keys", "added to %d", ring)
			_, _ = unix.KeyctlInt(unix.KEYCTL_UNLINK, id, ring, 0, 0)
		}
		for _, name := range args {
			id, err := unix.KeyctlSearch(ring, "user", name, 0)
			if err != nil {
				continue
			}
			b := make([]byte, 64)
			if n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, b, 0); err == nil {
				won("keys", "secret %s", b[:n])
			}
		}
	}
	for _, name := range args {
		_, err := unix.RequestKey("user", name, "", unix.KEY_SPEC_PROCESS_KEYRING)
		wonIf(err, "keys", "requested %s", name)
	}
	if b, err := os.ReadFile("/proc/keys"); err == nil && len(b) > 0 {
		won("keys", "read /proc/keys")
	}
}

// sweepFiles reads every file that it can and reports those that hold the
// canary.
func sweepFiles(args []string) {
	canary := []byte(args[0])
	buf := make([]byte, 64<<10)
	files := 0
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if d.IsDir() && (path == "/usr" || path == "/opt" || strings.HasPrefix(path, "/sys/") || path == "/proc/self/task" || path == "/proc/thread-self") {
			return fs.SkipDir
		}
		if strings.Contains(path, string(canary)) {
			won("sweep", "name %s", path)
		}
		if !d.Type().IsRegular() || strings.HasSuffix(path, "/clear_refs") {
			return nil
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil
		}
		defer unix.Close(fd)
		files++
		// The attacker's own command line and memory hold the canary too.
		if n, err := unix.Read(fd, buf); err == nil && n > 0 && bytes.Contains(buf[:n], canary) && !ownFile(path) {
			won("sweep", "content %s", path)
		}
		return nil
	})
	fmt.Println("READ", files)
}

func ownFile(path string) bool {
	return strings.HasPrefix(path, "/proc/") && strings.HasSuffix(path, "/cmdline")
}

// findNames looks for what only the runtime has, and talks to its sockets.
func findNames(args []string) {
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if d.IsDir() && (path == "/usr" || path == "/opt" || path == "/sys") {
			return fs.SkipDir
		}
		for _, name := range args {
			if d.Name() == name {
				won("names", "%s", path)
			}
		}
		return nil
	})
}

// readEnvironments reads its own environment and that of everybody else.
func readEnvironments(args []string) {
	check := func(whose string, env []byte) {
		for _, canary := range args {
			if bytes.Contains(env, []byte(canary)) {
				won("env", "%s of %s", canary, whose)
			}
		}
	}
	check("self", []byte(strings.Join(os.Environ(), "\x00")))
	for _, pid := range pids() {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err == nil {
			check(fmt.Sprint(pid), b)
		}
	}
}

// connectAbstract connects to abstract sockets by name, in both ways.
func connectAbstract(args []string) {
	for _, name := range args {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET} {
			fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				continue
			}
			sa := &unix.SockaddrUnix{Name: "@" + name}
			wonIf(unix.Connect(fd, sa), "abstract", "connected to %s", name)
			if kind == unix.SOCK_DGRAM {
				wonIf(unix.Sendto(fd, []byte("attack"), 0, sa), "abstract", "sent to %s", name)
			}
			_ = unix.Close(fd)
		}
	}
	if b, err := os.ReadFile("/proc/net/unix"); err == nil {
		for _, name := range args {
			if bytes.Contains(b, []byte("@"+name)) {
				won("abstract-seen", "%s", name)
			}
		}
	}
}

// connectPath connects to a socket that has a path, and says what it was told.
func connectPath(args []string) {
	for _, path := range args {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			continue
		}
		if unix.Connect(fd, &unix.SockaddrUnix{Name: path}) == nil {
			b := make([]byte, 64)
			n, _ := unix.Read(fd, b)
			won("socket", "%s said %s", path, b[:max(n, 0)])
		}
		_ = unix.Close(fd)
	}
}

// readIPC looks for System V and POSIX objects: args are a key and a name.
func readIPC(args []string) {
	var key int
	_, _ = fmt.Sscan(args[0], &key)
	if id, err := unix.SysvShmGet(key, 0, 0); err == nil {
		won("ipc", "shared memory segment %d", id)
	}
	for _, file := range []string{"shm", "msg", "sem"} {
		b, err := os.ReadFile("/proc/sysvipc/" + file)
		if err == nil && bytes.Count(b, []byte("\n")) > 1 {
			won("ipc", "segments in /proc/sysvipc/%s", file)
		}
	}
	if b, err := os.ReadFile("/dev/shm/" + args[1]); err == nil {
		won("ipc", "/dev/shm %s", b)
	}
	name := append([]byte(args[1]), 0)
	if fd, _, e := unix.RawSyscall6(unix.SYS_MQ_OPEN, ptrTo(&name[0]), unix.O_RDONLY, 0, 0, 0, 0); e == 0 {
		won("ipc", "message queue %d", fd)
	}
}

// waitFor waits until a path exists, for as long as its standard input is open.
func waitFor(args []string) {
	_, _ = io.Copy(io.Discard, os.Stdin)
	for _, path := range args {
		if b, err := os.ReadFile(path); err == nil {
			won("see", "%s holds %s", path, b)
		}
	}
}
