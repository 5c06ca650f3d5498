package cgroups

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fake is a tree of files that stands for a host. Directories and files that
// are not listed as writable refuse an ordinary user.
type fake struct {
	cgroup   string            // /proc/self/cgroup
	mounts   string            // lines of mountinfo; %s is the tree's root
	files    map[string]string // below the root; a name that ends in / is a directory
	writable []string          // prefixes; "" means everything
	marked   []string          // directories with systemd's mark
	systemd  bool
	euid     int
	readOnly bool
}

const testPid = 4242

func (k fake) host(t *testing.T) (host, string) {
	t.Helper()
	root := t.TempDir()
	for name, content := range k.files {
		path := filepath.Join(root, name)
		if strings.HasSuffix(name, "/") {
			mkdirs(t, path)
			continue
		}
		mkdirs(t, filepath.Dir(path))
		write(t, path, content)
	}
	write(t, filepath.Join(root, "self.cgroup"), k.cgroup)
	write(t, filepath.Join(root, "self.mountinfo"), strings.ReplaceAll(k.mounts, "%s", root))
	h := host{
		cgroupFile: filepath.Join(root, "self.cgroup"),
		mountFile:  filepath.Join(root, "self.mountinfo"),
		systemdDir: filepath.Join(root, "no-systemd"),
		procDir:    filepath.Join(root, "proc"),
		euid:       k.euid,
		pid:        testPid,
		writable: func(path string) error {
			if _, err := os.Lstat(path); err != nil {
				return unix.ENOENT
			}
			if k.readOnly {
				return unix.EROFS
			}
			for _, w := range k.writable {
				if strings.HasPrefix(path, filepath.Join(root, w)) {
					return nil
				}
			}
			return unix.EACCES
		},
		delegate: func(dir string) bool {
			rel, _ := filepath.Rel(root, dir)
			return slices.Contains(k.marked, rel)
		},
	}
	if k.systemd {
		h.systemdDir = root
	}
	return h, root
}

func mkdirs(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// group is the files of a v2 group.
func group(dir, procs, controllers, subtree string) map[string]string {
	return map[string]string{
		dir + "/cgroup.type": "domain\n", dir + "/cgroup.procs": procs, dir + "/cgroup.freeze": "0\n",
		dir + "/cgroup.controllers": controllers, dir + "/cgroup.subtree_control": subtree,
	}
}

func tree2(groups ...map[string]string) map[string]string {
	all := map[string]string{
		"cg/cgroup.procs": "1\n", "cg/cgroup.controllers": "cpu io memory pids\n", "cg/cgroup.subtree_control": "cpu io memory pids\n",
	}
	for _, g := range groups {
		maps.Copy(all, g)
	}
	return all
}

const (
	mountV2   = "30 23 0:26 / %s/cg rw - cgroup2 cgroup2 rw,nsdelegate\n"
	self      = "4242\n"
	ctrl      = "cpu io memory pids\n"
	userGroup = "cg/user.slice/user-1000.slice/user@1000.service"
)

func TestPlaceOnV2(t *testing.T) {
	service := "cg/system.slice/foo.service"
	appScope := userGroup + "/app.slice/run-1.scope"
	userTree := func(scopeProcs string) map[string]string {
		return tree2(group("cg/user.slice", "", ctrl, ctrl), group("cg/user.slice/user-1000.slice", "", ctrl, ctrl),
			group(userGroup, "", "cpu memory pids\n", "memory pids\n"), group(userGroup+"/app.slice", "", "memory pids\n", "memory pids\n"),
			group(appScope, scopeProcs, "memory pids\n", ""))
	}
	sessionTree := tree2(group("cg/user.slice", "", ctrl, ctrl), group("cg/user.slice/user-1000.slice", "", ctrl, ctrl),
		group("cg/user.slice/user-1000.slice/session-3.scope", "900\n4242\n", ctrl, ""))
	serviceTree := func(procs string) map[string]string {
		return tree2(group("cg/system.slice", "", ctrl, ctrl), group(service, procs, ctrl, ""))
	}
	all := []string{""}
	for name, c := range map[string]struct {
		fake
		parentOverride          string
		parent, leaf            string
		delegated, shared       bool
		why, remedy             string
		unavailable, enableDirs []string
	}{
		"root in the root group": {
			fake: fake{cgroup: "0::/\n", files: tree2(), writable: all}, parent: "cg", enableDirs: []string{"cg"},
		},
		"root in the root group of a systemd host": {
			fake: fake{cgroup: "0::/\n", files: tree2(), writable: all, systemd: true}, parent: "cg", shared: true, enableDirs: []string{"cg"},
		},
		"root in a service with delegation, alone": {
			fake:   fake{cgroup: "0::/system.slice/foo.service\n", files: serviceTree(self), writable: all, systemd: true, marked: []string{service}},
			parent: service, leaf: service + "/" + leafName, delegated: true, enableDirs: []string{service},
		},
		"root in a service without delegation, alone": {
			fake:   fake{cgroup: "0::/system.slice/foo.service\n", files: serviceTree(self), writable: all, systemd: true},
			parent: service, leaf: service + "/" + leafName, shared: true, enableDirs: []string{"cg", "cg/system.slice", service},
		},
		"root in a service without delegation, not alone": {
			fake:   fake{cgroup: "0::/system.slice/foo.service\n", files: serviceTree("7\n4242\n"), writable: all, systemd: true},
			parent: "cg/system.slice", shared: true, enableDirs: []string{"cg", "cg/system.slice"},
		},
		"user in a delegated scope of the user manager": {
			fake:   fake{cgroup: "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope\n", files: userTree(self), writable: []string{userGroup}, euid: 1000, systemd: true, marked: []string{userGroup, appScope}},
			parent: appScope, leaf: appScope + "/" + leafName, delegated: true, enableDirs: []string{appScope}, unavailable: []string{CPU, IO},
		},
		"user in a delegated scope with a shell": {
			fake:   fake{cgroup: "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope\n", files: userTree("900\n4242\n"), writable: []string{userGroup}, euid: 1000, systemd: true, marked: []string{userGroup, appScope}},
			parent: userGroup + "/app.slice", shared: true, enableDirs: []string{userGroup, userGroup + "/app.slice"}, unavailable: []string{IO},
		},
		"user in a plain scope of the user manager": {
			fake:   fake{cgroup: "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope\n", files: userTree("900\n4242\n"), writable: []string{userGroup}, euid: 1000, systemd: true, marked: []string{userGroup}},
			parent: userGroup + "/app.slice", delegated: true, shared: true, enableDirs: []string{userGroup, userGroup + "/app.slice"}, unavailable: []string{IO},
		},
		"user in a login session": {
			fake: fake{cgroup: "0::/user.slice/user-1000.slice/session-3.scope\n", files: sessionTree, euid: 1000, systemd: true},
			why:  "no group was delegated to uid 1000", remedy: delegateRemedy,
		},
		"user without systemd": {
			fake: fake{cgroup: "0::/user.slice/user-1000.slice/session-3.scope\n", files: sessionTree, euid: 1000},
			why:  "no group was delegated to uid 1000", remedy: "as root: make a group",
		},
		"user in a leaf of a hand-made subtree": {
			fake:   fake{cgroup: "0::/mine/init\n", files: tree2(group("cg/mine", "", ctrl, ctrl), group("cg/mine/init", "900\n4242\n", ctrl, "")), writable: []string{"cg/mine"}, euid: 1000},
			parent: "cg/mine", delegated: true, enableDirs: []string{"cg/mine"},
		},
		"user alone in a hand-made group": {
			fake:   fake{cgroup: "0::/mine\n", files: tree2(group("cg/mine", self, ctrl, "")), writable: []string{"cg/mine"}, euid: 1000},
			parent: "cg/mine", leaf: "cg/mine/" + leafName, delegated: true, enableDirs: []string{"cg/mine"},
		},
		"second sandbox of a supervisor that moved aside": {
			fake:   fake{cgroup: "0::/mine/nucleus-supervisor\n", files: tree2(group("cg/mine", "", ctrl, "memory pids\n"), group("cg/mine/"+leafName, self, "memory pids\n", "")), writable: []string{"cg/mine"}, euid: 1000},
			parent: "cg/mine", leaf: "cg/mine/" + leafName, delegated: true, enableDirs: []string{"cg/mine"},
		},
		"root's supervisor, alone in its group beside a service": {
			fake:   fake{cgroup: "0::/system.slice/nucleus-supervisors-0\n", files: tree2(group("cg/system.slice", "", ctrl, ctrl), group("cg/system.slice/nucleus-supervisors-0", self, ctrl, "")), writable: all, systemd: true},
			parent: "cg/system.slice", shared: true, enableDirs: []string{"cg", "cg/system.slice"},
		},
		"user's supervisor in its group beside a scope": {
			fake:   fake{cgroup: "0::/user.slice/user-1000.slice/user@1000.service/app.slice/nucleus-supervisors-1000\n", files: userTree(self), writable: []string{userGroup}, euid: 1000, systemd: true, marked: []string{userGroup}},
			parent: userGroup + "/app.slice", delegated: true, shared: true, enableDirs: []string{userGroup, userGroup + "/app.slice"}, unavailable: []string{IO},
		},
		"user with a child of its own in a hand-made group": {
			fake: fake{cgroup: "0::/mine\n", files: tree2(group("cg/mine", "4242\n4300\n", ctrl, "")), writable: []string{"cg/mine"}, euid: 1000},
			why:  "has other processes", remedy: "start nucleus itself",
		},
		"user with a shell in a hand-made group": {
			fake: fake{cgroup: "0::/mine\n", files: tree2(group("cg/mine", "900\n4242\n", ctrl, "")), writable: []string{"cg/mine"}, euid: 1000},
			why:  "has other processes", remedy: "start nucleus itself",
		},
		"user's cgroup.procs of the ancestor is root's": {
			fake: fake{cgroup: "0::/mine/init\n", files: tree2(group("cg/mine", "", ctrl, ctrl), group("cg/mine/init", "900\n4242\n", ctrl, "")), writable: []string{"cg/mine/init"}, euid: 1000},
			why:  "has other processes", remedy: "start nucleus itself",
		},
		"threaded groups cannot hold us": {
			fake: fake{cgroup: "0::/mine\n", files: tree2(group("cg/mine", self, ctrl, ""), map[string]string{"cg/mine/cgroup.type": "threaded\n"}), writable: []string{"cg/mine"}, euid: 1000},
			why:  "threaded",
		},
		"read-only mount": {
			fake: fake{cgroup: "0::/\n", files: tree2(), readOnly: true}, why: "read-only", remedy: "mount cgroup2 read-write",
		},
		"operator's choice": {
			fake:           fake{cgroup: "0::/\n", files: tree2(group("cg/boxes", "", ctrl, ctrl)), writable: all, systemd: true},
			parentOverride: "/boxes", parent: "cg/boxes", delegated: true, enableDirs: []string{"cg", "cg/boxes"},
		},
		"operator's choice has processes": {
			fake:           fake{cgroup: "0::/\n", files: tree2(group("cg/boxes", "5\n", ctrl, "")), writable: all},
			parentOverride: "/boxes", why: `cgroup_parent "/boxes" cannot be used: it has processes`, remedy: "choose a group",
		},
		"operator's choice does not exist": {
			fake:           fake{cgroup: "0::/\n", files: tree2(), writable: all},
			parentOverride: "/boxes", why: "no such file", remedy: "choose a group",
		},
		"group removed under us": {
			fake: fake{cgroup: "0::/gone (deleted)\n", files: tree2(), writable: all}, why: "was removed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.mounts = mountV2
			h, root := c.host(t)
			f, err := h.detect(c.parentOverride)
			if err != nil {
				t.Fatal(err)
			}
			abs := func(p string) string {
				if p == "" {
					return ""
				}
				return filepath.Join(root, p)
			}
			if f.Layout != V2 {
				t.Errorf("layout %s", f.Layout)
			}
			if !strings.Contains(f.Why, c.why) || !strings.Contains(f.Remedy, c.remedy) || (f.Why == "") != (c.why == "") {
				t.Fatalf("why %q, remedy %q; want %q, %q", f.Why, f.Remedy, c.why, c.remedy)
			}
			if c.why != "" {
				if f.Usable() {
					t.Error("usable")
				}
				return
			}
			if f.Parents[unified] != abs(c.parent) || f.Leaf != abs(c.leaf) || f.Delegated != c.delegated || f.Shared != c.shared {
				t.Errorf("parent %q leaf %q delegated %v shared %v\nwant   %q leaf %q delegated %v shared %v",
					f.Parents[unified], f.Leaf, f.Delegated, f.Shared, abs(c.parent), abs(c.leaf), c.delegated, c.shared)
			}
			var enable []string
			for _, dir := range c.enableDirs {
				enable = append(enable, abs(dir))
			}
			if !slices.Equal(f.Enable, enable) {
				t.Errorf("enable %v, want %v", f.Enable, enable)
			}
			for _, ctl := range []string{Memory, CPU, Pids, IO} {
				want := Available
				if slices.Contains(c.unavailable, ctl) {
					want = Unavailable
				}
				ft := f.Controllers[ctl]
				if ft.State != want || want == Unavailable && (ft.Why == "" || ft.Remedy == "") {
					t.Errorf("%s: %+v, want %s", ctl, ft, want)
				}
			}
		})
	}
}

func v1Mounts(names ...string) string {
	var b strings.Builder
	b.WriteString("1 0 8:1 / / rw - ext4 /dev/x rw\n")
	for i, n := range names {
		fmt.Fprintf(&b, "%d 1 0:%d / %%s/cg/%s rw - cgroup cgroup rw,%s\n", 30+i, 30+i, n, n)
	}
	return b.String()
}

func TestDetectOnV1(t *testing.T) {
	files := map[string]string{
		"cg/memory/job/7/memory.memsw.limit_in_bytes": "", "cg/pids/": "", "cg/freezer/": "", "cg/cpu,cpuacct/svc/": "", "cg/blkio/": "",
	}
	own := "6:memory:/job/7\n5:pids:/\n4:freezer:/\n3:cpu,cpuacct:/svc\n2:blkio:/\n1:name=systemd:/x\n"
	names := []string{"memory", "pids", "freezer", "cpu,cpuacct", "blkio"}
	check := func(t *testing.T, k fake, parent string) (Facts, string) {
		t.Helper()
		h, root := k.host(t)
		f, err := h.detect(parent)
		if err != nil {
			t.Fatal(err)
		}
		return f, root
	}
	t.Run("each hierarchy below our own group", func(t *testing.T) {
		f, root := check(t, fake{cgroup: own, mounts: v1Mounts(names...), files: files, writable: []string{""}}, "")
		want := map[string]string{"memory": "memory/job/7", "pids": "pids", "freezer": "freezer", "cpu": "cpu,cpuacct/svc", "cpuacct": "cpu,cpuacct/svc", "blkio": "blkio"}
		for name, dir := range want {
			if got := f.Parents[name]; got != filepath.Join(root, "cg", dir) {
				t.Errorf("%s: %q, want %q", name, got, dir)
			}
		}
		if f.Layout != V1 || len(f.Parents) != len(want) {
			t.Errorf("%s %v", f.Layout, f.Parents)
		}
		for _, c := range Controllers() {
			if f.Controllers[c].State != Available {
				t.Errorf("%s: %+v", c, f.Controllers[c])
			}
		}
		g, err := New(f, Spec{Name: Prefix + "a"})
		if err != nil {
			t.Fatal(err)
		}
		if dirs := g.dirs(); len(dirs) != 4 { // no blkio without an io limit; cpu comes with cpuacct
			t.Errorf("dirs %v", dirs)
		}
	})
	t.Run("hybrid", func(t *testing.T) {
		f, _ := check(t, fake{cgroup: own + "0::/svc\n", mounts: v1Mounts(names...) + mountV2, files: files, writable: []string{""}}, "")
		if _, ok := f.Parents[unified]; f.Layout != Hybrid || ok {
			t.Errorf("%s %v, want the v2 hierarchy left alone", f.Layout, f.Parents)
		}
	})
	t.Run("ordinary user", func(t *testing.T) {
		f, _ := check(t, fake{cgroup: own, mounts: v1Mounts(names...), files: files, euid: 1000}, "")
		if f.Usable() || !strings.Contains(f.Remedy, "chown -R 1000") {
			t.Errorf("%+v", f)
		}
	})
	t.Run("user with one hierarchy", func(t *testing.T) {
		f, _ := check(t, fake{cgroup: own, mounts: v1Mounts(names...), files: files, euid: 1000, writable: []string{"cg/memory/job"}}, "")
		if !f.Usable() || f.Controllers[Memory].State != Available || f.Controllers[Pids].State != Unavailable || f.Controllers[Pids].Remedy == "" {
			t.Errorf("%+v", f)
		}
		if _, err := New(f, Spec{Name: Prefix + "a", Resources: pidsLimit(50)}); err == nil {
			t.Error("a pids limit without a pids hierarchy was accepted")
		}
	})
	t.Run("no swap accounting", func(t *testing.T) {
		k := fake{cgroup: own, mounts: v1Mounts(names...), files: maps.Clone(files), writable: []string{""}}
		delete(k.files, "cg/memory/job/7/memory.memsw.limit_in_bytes")
		k.files["cg/memory/job/7/"] = ""
		f, _ := check(t, k, "")
		if f.Controllers[Swap].State != Unavailable || f.Controllers[Memory].State != Available {
			t.Errorf("%+v", f.Controllers)
		}
		r := memoryLimit(64 << 20)
		if _, err := New(f, Spec{Name: Prefix + "a", Resources: r}); err != nil {
			t.Errorf("without swap asked for: %v", err)
		}
		r.Memory.Swap = ptr(int64(64 << 20))
		var ue *UnsupportedError
		if _, err := New(f, Spec{Name: Prefix + "a", Resources: r}); !errors.As(err, &ue) || ue.Controller != Swap || ue.Remedy == "" {
			t.Errorf("with swap asked for: %v", err)
		}
	})
	for name, c := range map[string]struct {
		proc   []string // what is in /proc
		noSwap bool
	}{
		"a kernel without swap":          {[]string{"proc/meminfo"}, true},
		"a kernel that has swap":         {[]string{"proc/meminfo", "proc/swaps"}, false},
		"a /proc that shows neither":     {[]string{"proc/"}, false},
		"and an account of it (no loss)": {[]string{"proc/meminfo", "cg/memory/job/7/memory.memsw.limit_in_bytes"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			k := fake{cgroup: own, mounts: v1Mounts(names...), files: maps.Clone(files), writable: []string{""}}
			delete(k.files, "cg/memory/job/7/memory.memsw.limit_in_bytes")
			k.files["cg/memory/job/7/"] = ""
			for _, f := range c.proc {
				k.files[f] = ""
			}
			if f, _ := check(t, k, ""); f.SwapAbsent != c.noSwap {
				t.Errorf("%+v", f)
			}
		})
	}
	t.Run("operator's choice", func(t *testing.T) {
		k := fake{cgroup: own, mounts: v1Mounts(names...), files: maps.Clone(files), writable: []string{""}}
		k.files["cg/memory/boxes/"], k.files["cg/pids/boxes/"] = "", ""
		f, root := check(t, k, "/boxes")
		if f.Parents[Memory] != filepath.Join(root, "cg/memory/boxes") || !strings.Contains(f.Controllers[CPU].Remedy, "mkdir -p") {
			t.Errorf("%+v", f)
		}
	})
	t.Run("mounted together with cpuset", func(t *testing.T) {
		k := fake{cgroup: "1:cpu,cpuset:/\n2:memory:/\n", mounts: v1Mounts("cpu,cpuset", "memory"), files: map[string]string{"cg/cpu,cpuset/": "", "cg/memory/": ""}, writable: []string{""}}
		f, _ := check(t, k, "")
		if f.Controllers[CPU].State != Unavailable {
			t.Errorf("%+v", f.Controllers[CPU])
		}
	})
}

// TestSwapOnV2: a group without limits of memory around it, and no child yet, is told of
// swap by any other group, as the kernel has the file in all of them or in none.
func TestSwapOnV2(t *testing.T) {
	for name, c := range map[string]struct {
		files  []string
		want   State
		absent bool
	}{
		"a neighbour of the parent has it":   {[]string{"cg/other/memory.max", "cg/other/memory.swap.max"}, Available, false},
		"a neighbour of the parent lacks it": {[]string{"cg/other/memory.max", "proc/meminfo", "proc/swaps"}, Unavailable, false},
		"a child lacks it, without swap":     {[]string{"cg/boxes/a/memory.max", "proc/meminfo"}, Unavailable, true},
		"the parent has it":                  {[]string{"cg/boxes/memory.max", "cg/boxes/memory.swap.max"}, Available, false},
		"no group has limits of memory":      {[]string{"cg/other/pids.max", "proc/meminfo", "proc/swaps"}, Unknown, false},
	} {
		t.Run(name, func(t *testing.T) {
			k := fake{cgroup: "0::/svc\n", mounts: mountV2, files: tree2(group("cg/svc", self, ctrl, ""), group("cg/boxes", "", ctrl, ctrl)), writable: []string{""}}
			for _, f := range c.files {
				k.files[f] = ""
			}
			h, _ := k.host(t)
			f, err := h.detect("/boxes")
			if err != nil {
				t.Fatal(err)
			}
			if got := f.Controllers[Swap].State; got != c.want || f.SwapAbsent != c.absent {
				t.Errorf("%s, absent %v: want %s, %v\n%+v", got, f.SwapAbsent, c.want, c.absent, f)
			}
		})
	}
}

// TestSwapAsBooted: where no group on v2 has limits of memory, a kernel's version and its
// command line tell, and a limit that nobody asked for is not set in vain.
func TestSwapAsBooted(t *testing.T) {
	for name, c := range map[string]struct {
		release, cmdline string
		proc             []string // beside these
		want             State
		absent           bool
	}{
		"always accounted for":       {release: "6.1.0-28-amd64\n", want: Available},
		"whatever was asked for":     {release: "6.12.5\n", cmdline: "swapaccount=0\n", want: Available},
		"switched off":               {release: "5.15.0-91-generic\n", cmdline: "ro quiet swapaccount=0\n", want: Unavailable},
		"as it comes":                {release: "5.13.0\n", cmdline: "ro quiet\n", want: Available},
		"the last word counts":       {release: "6.0.3\n", cmdline: "swapaccount=0 swapaccount=1\n", want: Available},
		"and in quotes":              {release: "6.0.3\n", cmdline: `swapaccount=1 swapaccount="0"` + "\n", want: Unavailable},
		"a word of init's":           {release: "5.15.0\n", cmdline: "ro -- swapaccount=0\n", want: Available},
		"another word":               {release: "5.15.0\n", cmdline: "xswapaccount=0 swapaccount=00\n", want: Available},
		"by a choice of its builder": {release: "5.4.0\n", cmdline: "ro\n", want: Unknown},
		"no command line to see":     {release: "5.15.0\n", want: Unknown},
		"a kernel without swap":      {release: "5.15.0\n", cmdline: "ro\n", proc: []string{"proc/meminfo"}, want: Unavailable, absent: true},
	} {
		t.Run(name, func(t *testing.T) {
			k := fake{cgroup: "0::/svc\n", mounts: mountV2, files: tree2(group("cg/svc", self, ctrl, ""), group("cg/boxes", "", ctrl, ctrl)), writable: []string{""}}
			if c.proc == nil {
				c.proc = []string{"proc/meminfo", "proc/swaps"}
			}
			for _, f := range c.proc {
				k.files[f] = ""
			}
			k.files["proc/sys/kernel/osrelease"] = c.release
			if c.cmdline != "" {
				k.files["proc/cmdline"] = c.cmdline
			}
			h, _ := k.host(t)
			f, err := h.detect("/boxes")
			if err != nil {
				t.Fatal(err)
			}
			got := f.Controllers[Swap]
			if got.State != c.want || f.SwapAbsent != c.absent || (got.Why == "") != (c.want == Available) {
				t.Errorf("%+v, absent %v: want %s, %v", got, f.SwapAbsent, c.want, c.absent)
			}
		})
	}
}

func TestDetectElsewhere(t *testing.T) {
	for name, c := range map[string]struct {
		fake
		layout Layout
		why    string
		parent string
	}{
		"nothing mounted":            {fake: fake{cgroup: "0::/\n", mounts: "1 0 8:1 / / rw - ext4 /dev/x rw\n"}, layout: None, why: "no cgroup file system"},
		"bind mount of our own part": {fake: fake{cgroup: "0::/docker/x/sub\n", mounts: "30 1 0:26 /docker/x %s/cg rw - cgroup2 c rw\n", files: tree2(group("cg", "", ctrl, ctrl), group("cg/sub", self, ctrl, "")), writable: []string{""}, euid: 7}, layout: V2, parent: "cg"},
		"mount of another part":      {fake: fake{cgroup: "0::/docker/x\n", mounts: "30 1 0:26 /docker/y %s/cg rw - cgroup2 c rw\n", files: tree2(), writable: []string{""}}, layout: V2, why: "shows only"},
		"mount from outside the namespace, then the right one": {
			fake:   fake{cgroup: "0::/\n", mounts: "30 1 0:26 /.. %s/odd rw - cgroup2 c rw\n31 1 0:26 / %s/cg rw - cgroup2 c rw\n", files: tree2(), writable: []string{""}},
			layout: V2, parent: "cg",
		},
		"our group is outside the namespace": {
			fake: fake{cgroup: "0::/../other\n", mounts: mountV2, files: tree2(), writable: []string{""}}, layout: V2, why: "outside this cgroup namespace",
		},
		"named v1 hierarchy beside v2": {
			fake:   fake{cgroup: "1:name=systemd:/\n0::/\n", mounts: "29 1 0:25 / %s/sd rw - cgroup c rw,name=systemd\n" + mountV2, files: tree2(), writable: []string{""}},
			layout: V2, parent: "cg",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, root := c.host(t)
			f, err := h.detect("")
			if err != nil {
				t.Fatal(err)
			}
			if f.Layout != c.layout || !strings.Contains(f.Why, c.why) || (c.why == "") != f.Usable() {
				t.Errorf("%s %q", f.Layout, f.Why)
			}
			if c.parent != "" && f.Parents[unified] != filepath.Join(root, c.parent) {
				t.Errorf("parent %q", f.Parents[unified])
			}
		})
	}
	h, _ := fake{cgroup: "0::/\n", mounts: mountV2, files: tree2()}.host(t)
	for _, bad := range []string{"relative", "/a/../b", "/a/"} {
		if _, err := h.detect(bad); err == nil {
			t.Errorf("parent %q accepted", bad)
		}
	}
	h.cgroupFile = filepath.Join(t.TempDir(), "none")
	if f, err := h.detect(""); err != nil || f.Usable() || f.Why == "" {
		t.Errorf("kernel without cgroups: %+v, %v", f, err)
	}
}
