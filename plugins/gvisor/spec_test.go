package gvisor

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// spec is one that is had, and a change to it.
func spec(t *testing.T, change func(s *specs.Spec)) []byte {
	t.Helper()
	s := specs.Spec{
		Version: "1.2.0",
		Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true},
		Root:    &specs.Root{Path: "/rootfs", Readonly: true},
	}
	if change != nil {
		change(&s)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWhatIsHadIsKept(t *testing.T) {
	umask, score := uint32(0o27), 300
	in := spec(t, func(s *specs.Spec) {
		s.Hostname, s.Domainname = "box", "lan"
		s.Process = &specs.Process{
			Terminal: true, ConsoleSize: &specs.Box{Height: 24, Width: 80},
			User: specs.User{UID: 7, GID: 8, Umask: &umask, AdditionalGids: []uint32{9}},
			Args: []string{"--network=host", "-x"}, Env: []string{"A=--debug"}, Cwd: "/w",
			Capabilities:    &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}},
			Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 2, Soft: 1}},
			NoNewPrivileges: true, OOMScoreAdj: &score,
		}
		s.Mounts = []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"size=1m"}},
			{Destination: "/w", Type: "bind", Source: "/rootfs/w", Options: []string{"rbind", "rw"}},
			{Destination: "/etc/x", Source: "/rootfs/etc/x", Options: []string{"bind", "ro"}},
		}
	})
	out, err := rewrite(in, stackHost)
	if err != nil {
		t.Fatal(err)
	}
	b, err := out.json()
	if err != nil {
		t.Fatal(err)
	}
	var was, is map[string]any
	if err := json.Unmarshal(in, &was); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &is); err != nil {
		t.Fatal(err)
	}
	delete(is, "linux")
	for _, key := range slices.Sorted(maps.Keys(was)) {
		if !reflect.DeepEqual(was[key], is[key]) {
			t.Errorf("%s: %v became %v", key, was[key], is[key])
		}
	}
	if len(was) != len(is) {
		t.Errorf("%v became %v", was, is)
	}
}

func TestWhatGVisorHasOfItsOwnIsLeftOut(t *testing.T) {
	memory := int64(1 << 20)
	out, err := rewrite(spec(t, func(s *specs.Spec) {
		// Each of these changes a flag of runsc's, or opens a file of the host's.
		s.Annotations = map[string]string{
			"dev.gvisor.flag.network": "host", "dev.gvisor.bundle.x": "true", "dev.gvisor.tar.rootfs.upper": "/bundle/x",
			"dev.gvisor.spec.mount.a.type": "bind",
		}
		s.Linux = &specs.Linux{
			Resources:   &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}},
			MaskedPaths: []string{"/proc/kcore", "/sys/firmware"}, ReadonlyPaths: []string{"/proc/sys"},
		}
		s.Mounts = []specs.Mount{
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts"},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue"},
			{Destination: "/dev/null", Type: "bind", Source: "/dev/null", Options: []string{"bind"}},
			{Destination: "/dev/console", Type: "bind", Source: "/dev/pts/0", Options: []string{"bind"}},
		}
	}), stackNone)
	if err != nil {
		t.Fatal(err)
	}
	b, err := out.json()
	if err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{"annotations", "mounts", "resources", "maskedPaths", "readonlyPaths"} {
		if strings.Contains(string(b), left) {
			t.Errorf("there is still %s in %s", left, b)
		}
	}
}

func TestWhatCannotBeHadIsRefused(t *testing.T) {
	linux := func(change func(l *specs.Linux)) func(s *specs.Spec) {
		return func(s *specs.Spec) { s.Linux = &specs.Linux{}; change(s.Linux) }
	}
	mount := func(m specs.Mount) func(s *specs.Spec) {
		return func(s *specs.Spec) { s.Mounts = []specs.Mount{m} }
	}
	for says, change := range map[string]func(s *specs.Spec){
		"hooks":             func(s *specs.Spec) { s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/sh"}}} },
		"another system's":  func(s *specs.Spec) { s.Windows = &specs.Windows{} },
		"AppArmor":          func(s *specs.Spec) { s.Process.ApparmorProfile = "x" },
		"SELinux":           func(s *specs.Spec) { s.Process.SelinuxLabel = "x" },
		"scheduling policy": func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch} },
		"I/O priority":      func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE} },
		"CPU affinity":      func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0"} },
		"seccomp":           linux(func(l *specs.Linux) { l.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno} }),
		"sysctls":           linux(func(l *specs.Linux) { l.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"} }),
		"no devices":        linux(func(l *specs.Linux) { l.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c"}} }),
		"user namespace":    linux(func(l *specs.Linux) { l.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }),
		"namespaces":        linux(func(l *specs.Linux) { l.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace}} }),
		"control group":     linux(func(l *specs.Linux) { l.CgroupsPath = "/x" }),
		"RDT":               linux(func(l *specs.Linux) { l.IntelRdt = &specs.LinuxIntelRdt{} }),
		"personality":       linux(func(l *specs.Linux) { l.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32} }),
		"clock offsets":     linux(func(l *specs.Linux) { l.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}} }),
		"NUMA":              linux(func(l *specs.Linux) { l.MemoryPolicy = &specs.LinuxMemoryPolicy{} }),
		"network devices":   linux(func(l *specs.Linux) { l.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {}} }),
		"/etc/shadow is to": linux(func(l *specs.Linux) { l.MaskedPaths = []string{"/etc/shadow"} }),
		"/usr is to":        linux(func(l *specs.Linux) { l.ReadonlyPaths = []string{"/usr"} }),
		"proc at /x":        mount(specs.Mount{Destination: "/x", Type: "proc"}),
		"no overlay":        mount(specs.Mount{Destination: "/x", Type: "overlay"}),
		"no none":           mount(specs.Mount{Destination: "/x", Type: "none"}),
		"no ext4":           mount(specs.Mount{Destination: "/x", Type: "ext4", Source: "/dev/sda1"}),
		"below /dev":        mount(specs.Mount{Destination: "/dev/fuse", Type: "bind", Source: "/rootfs/fuse"}),
		"below /proc":       mount(specs.Mount{Destination: "/proc/self/../../proc/meminfo", Type: "bind", Source: "/rootfs/m"}),
		"not below /rootfs": mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/rootfs/../state"}),
		"is \"/rootfsx\"":   mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/rootfsx"}),
		"is \"rootfs/x\"":   mount(specs.Mount{Destination: "/x", Type: "bind", Source: "rootfs/x"}),
		"at \"x\"":          mount(specs.Mount{Destination: "x", Type: "tmpfs"}),
		"mapped ids":        mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/rootfs/x", UIDMappings: []specs.LinuxIDMapping{{Size: 1}}}),
		"root is \"/\"":     func(s *specs.Spec) { s.Root.Path = "/" },
		"no process":        func(s *specs.Spec) { s.Process = nil },
		"or no root":        func(s *specs.Spec) { s.Root = nil },
	} {
		t.Run(says, func(t *testing.T) {
			out, err := rewrite(spec(t, change), stackHost)
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Fatalf("error %v, spec %+v", err, out)
			}
			if c := errs.CodeOf(err); c != errs.Precondition && c != errs.Config {
				t.Errorf("code %v of %v", c, err)
			}
		})
	}
}

func TestGVisorsOwnStackIsToldWhoseInterfacesItTakes(t *testing.T) {
	for stack, want := range map[string][]specs.LinuxNamespace{
		stackNone: nil, stackHost: nil, stackSandbox: {{Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"}},
	} {
		out, err := rewrite(spec(t, nil), stack)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(out.Linux.Namespaces, want) {
			t.Errorf("%s: %+v", stack, out.Linux.Namespaces)
		}
	}
}

func TestASpecificationThatIsNotWhollyKnownIsRefused(t *testing.T) {
	b := strings.Replace(string(spec(t, nil)), `{"ociVersion"`, `{"tomorrow":{},"ociVersion"`, 1)
	if _, err := rewrite([]byte(b), stackHost); errs.CodeOf(err) != errs.Precondition || !strings.Contains(err.Error(), "tomorrow") {
		t.Errorf("error %v", err)
	}
}
