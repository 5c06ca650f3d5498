package main

import (
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

//go:embed floor/floor.c floor/filter.c
var sources embed.FS

// The limits that a sandbox gets where limits can be had.
const (
	limitMemory = 256 << 20
	limitCPUs   = 1
	limitPids   = 128
)

// fixture is what all peers share: one root file system, one filter, one place
// for state, and the answers to what this host and user allow.
type fixture struct {
	dir        string
	rootfs     string
	runtimeDir string
	floor      string
	filterBPF  string
	filterOCI  *specs.LinuxSeccomp
	env        []string
	nucleus    string
	root       bool
	uid, gid   int
	// peerLimits says that the cgroup v2 hierarchy that peers get has the
	// controllers; nucleusLimits that Nucleus can set limits here.
	peerLimits, nucleusLimits bool
	bundles                   int
}

func newFixture(dir, memory string) (*fixture, error) {
	f := &fixture{
		dir: dir, rootfs: filepath.Join(dir, "rootfs"), runtimeDir: memory,
		floor: filepath.Join(dir, "floor"), filterBPF: filepath.Join(dir, "filter.bpf"),
	}
	for _, step := range []func() error{f.makeRootfs, f.compileFloor, f.makeFilter} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// forUser settles who starts the sandboxes.
func (f *fixture) forUser(uid, gid int) error {
	f.uid, f.gid, f.root = uid, gid, uid == 0
	f.runtimeDir = filepath.Join(f.runtimeDir, fmt.Sprintf("run-%d", uid))
	if err := os.Mkdir(f.runtimeDir, 0o700); err != nil {
		return err
	}
	f.env = []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + f.runtimeDir, "XDG_RUNTIME_DIR=" + f.runtimeDir, "NUCLEUS_STATE_ROOT=" + filepath.Join(f.runtimeDir, "nucleus")}
	return os.Chown(f.runtimeDir, uid, gid)
}

func (f *fixture) makeRootfs() error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	for _, sub := range []string{"bin", "dev", "proc", "sys", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(f.rootfs, sub), 0o755); err != nil {
			return err
		}
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(f.rootfs, "bin/busybox"), program, 0o755); err != nil {
		return err
	}
	for _, applet := range []string{"true", "sh", "sleep"} {
		if err := os.Symlink("busybox", filepath.Join(f.rootfs, "bin", applet)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(f.rootfs, "etc/passwd"), []byte("root:x:0:0:root:/:/bin/sh\n"), 0o644)
}

func (f *fixture) compile(name string, flags ...string) error {
	source, err := sources.ReadFile("floor/" + name + ".c")
	if err != nil {
		return err
	}
	args := append([]string{"-O2", "-x", "c", "-", "-x", "none", "-o", filepath.Join(f.dir, name)}, flags...)
	cmd := exec.Command("gcc", args...)
	cmd.Stdin = strings.NewReader(string(source))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compiling %s.c: %w\n%s", name, err, out)
	}
	return nil
}

func (f *fixture) compileFloor() error { return f.compile("floor", "-static") }

func (f *fixture) makeFilter() error {
	if err := f.compile("filter", "-lseccomp"); err != nil {
		return err
	}
	oci := filepath.Join(f.dir, "filter.json")
	if out, err := exec.Command(filepath.Join(f.dir, "filter"), f.filterBPF, oci).CombinedOutput(); err != nil {
		return fmt.Errorf("making the filter: %w\n%s", err, out)
	}
	file, err := os.Open(oci)
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, &f.filterOCI)
}

func (f *fixture) filterInstructions() int64 {
	info, err := os.Stat(f.filterBPF)
	if err != nil {
		return 0
	}
	return info.Size() / 8
}

func limitsText(limited bool) string {
	if limited {
		return "memory, cpu and pids limits"
	}
	return "no limits"
}

func (f *fixture) limitsText() string        { return limitsText(f.peerLimits) }
func (f *fixture) nucleusLimitsText() string { return limitsText(f.nucleusLimits) }

// job writes a job file that runs argv and has further blocks, for which it is named.
func (f *fixture) job(argv []string, name, blocks string) (string, error) {
	path := filepath.Join(f.dir, fmt.Sprintf("job-%d-%s-%s.hcl", f.uid, name, filepath.Base(argv[0])))
	quoted := make([]string, len(argv))
	for i, arg := range argv {
		quoted[i] = fmt.Sprintf("%q", arg)
	}
	resources := ""
	if f.nucleusLimits {
		resources = fmt.Sprintf("  resources {\n    memory = %d\n    cpus   = %d\n    pids   = %d\n  }\n", limitMemory, limitCPUs, limitPids)
	}
	text := fmt.Sprintf("job \"bench\" {\n  command = [%s]\n  rootfs {\n    path = %q\n  }\n%s%s}\n",
		strings.Join(quoted, ", "), f.rootfs, resources, blocks)
	return path, os.WriteFile(path, []byte(text), 0o644)
}
