package host

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// fakeRoot makes a host from path -> content; a content that starts with
// "->" is a symbolic link, one that is "/" a directory.
func fakeRoot(t *testing.T, files map[string]string) root {
	t.Helper()
	dir := t.TempDir()
	for p, content := range files {
		full := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, full)
		} else if content == "/" {
			err = os.MkdirAll(full, 0o755)
		} else {
			err = os.WriteFile(full, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root(dir)
}

func TestLoginName(t *testing.T) {
	passwd := "root:x:0:0::/root:/bin/sh\n+nis:x:1000:1::\n# alice:x:1000:1\nbroken:1000\nalice:x:1000:1000:A:/home/alice:/bin/sh\nbob:x:1000:1000\nlast:x:7:7::"
	for _, tc := range []struct {
		name string
		uid  int
		want string
	}{
		{"root is the first line", 0, "root"},
		{"first of two names, after NIS and comment lines", 1000, "alice"},
		{"a file without a final newline", 7, "last"},
		{"a uid is no prefix of another", 100, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := loginName(fakeRoot(t, map[string]string{"/etc/passwd": passwd}), tc.uid); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	if got := loginName(fakeRoot(t, nil), 0); got != "" {
		t.Errorf("without a passwd file: got %q", got)
	}
	huge := fakeRoot(t, map[string]string{"/etc/passwd": passwd + strings.Repeat("x", maxAccounts)})
	if got := loginName(huge, 0); got != "" {
		t.Errorf("a passwd file above the bound was believed: %q", got)
	}
}

const wholeMap = "         0          0 4294967295\n"

func TestSubordinateIDs(t *testing.T) {
	type want struct {
		sub   []fact.IDRange
		free  fact.IDRange
		state fact.State
	}
	r := func(start, count uint32) fact.IDRange { return fact.IDRange{Start: start, Count: count} }
	for _, tc := range []struct {
		name           string
		subuid, subgid string
		user           string
		uid            int
		privileged     bool
		uidMap         string
		want           want
	}{
		{
			name: "by login name, free block after the last", subuid: "alice:100000:65536\n", subgid: "alice:100000:65536\n", user: "alice", uid: 1000,
			want: want{[]fact.IDRange{r(100000, 65536)}, r(165536, 65536), fact.Unknown},
		},
		{
			name: "by numeric uid where the name has no line", subuid: "1000:200000:10\n", subgid: "1000:200000:10\n", user: "alice", uid: 1000,
			want: want{[]fact.IDRange{r(200000, 10)}, r(100000, 65536), fact.Unknown},
		},
		{
			name: "the name wins over the number", subuid: "1000:200000:10\nalice:300000:5\n", subgid: "alice:300000:5\n", user: "alice", uid: 1000,
			want: want{[]fact.IDRange{r(300000, 5)}, r(100000, 65536), fact.Unknown},
		},
		{
			name: "a line in one file alone takes a block", subuid: "alice:100000:1\n", subgid: "alice:165536:65536\n", user: "alice", uid: 1000,
			want: want{[]fact.IDRange{r(100000, 1)}, r(231072, 65536), fact.Unknown},
		},
		{
			name: "a range below reaches into the first block", subuid: "bob:50000:60000\nalice:231072:65536\n", subgid: "alice:231072:65536\n", user: "alice", uid: 1000,
			want: want{[]fact.IDRange{r(231072, 65536)}, r(165536, 65536), fact.Unknown},
		},
		{
			name: "malformed and empty lines count for nothing", subuid: "alice:x:1\n\n#alice:1:1\nalice:100000:0\nalice:4294967290:100\nalice:1\n", user: "alice", uid: 1000,
			want: want{nil, r(100000, 65536), fact.Unavailable},
		},
		{
			name: "no line for the group", subuid: "alice:100000:65536\n", user: "alice", uid: 1000,
			want: want{[]fact.IDRange{r(100000, 65536)}, r(165536, 65536), fact.Unavailable},
		},
		{
			name: "root needs no line", user: "root", privileged: true,
			want: want{nil, r(100000, 65536), fact.Unknown},
		},
		{
			name: "all ids taken", subuid: "bob:65536:4294901759\n", user: "root", privileged: true,
			want: want{nil, fact.IDRange{}, fact.Unavailable},
		},
		{
			name: "a container that has no such ids", user: "root", uidMap: "0 100000 65536\n",
			want: want{nil, fact.IDRange{}, fact.Unavailable},
		},
		{
			name: "a container that was given them", subuid: "root:1:1000\n", subgid: "root:1:1000\n", user: "root", uidMap: "0 1000 1\n1 100000 400000\n",
			want: want{[]fact.IDRange{r(1, 1000)}, r(100000, 65536), fact.Unknown},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.uidMap == "" {
				tc.uidMap = wholeMap
			}
			root := fakeRoot(t, map[string]string{
				"/etc/subuid": tc.subuid, "/etc/subgid": tc.subgid,
				"/proc/self/uid_map": tc.uidMap, "/proc/self/gid_map": tc.uidMap,
			})
			h := fact.Host{UserName: tc.user, EUID: tc.uid, Privileged: tc.privileged}
			f := readSubIDs(root, &h, readUserNS(root))
			if !reflect.DeepEqual(h.SubUID, tc.want.sub) {
				t.Errorf("SubUID %v, want %v", h.SubUID, tc.want.sub)
			}
			if h.FreeSubID != tc.want.free {
				t.Errorf("FreeSubID %v, want %v", h.FreeSubID, tc.want.free)
			}
			if f.State != tc.want.state {
				t.Errorf("state %q (%s), want %q", f.State, f.Why, tc.want.state)
			}
			if f.State == fact.Unavailable && (f.Why == "" || f.Remedy == "") {
				t.Errorf("no reason or remedy: %+v", f)
			}
		})
	}
}

func TestAnOversizedSubIDFileIsNotBelieved(t *testing.T) {
	r := fakeRoot(t, map[string]string{"/etc/subuid": "alice:100000:1\n" + strings.Repeat("\n", maxAccounts)})
	h := fact.Host{UserName: "alice", EUID: 1000}
	f := readSubIDs(r, &h, userNS{})
	if f.State != fact.Unavailable || h.FreeSubID.Count != 0 {
		t.Errorf("got %+v with free block %v", f, h.FreeSubID)
	}
}

func TestUserNamespaceOfOurOwn(t *testing.T) {
	for _, tc := range []struct {
		name, uidMap, link string
		known, initial     bool
	}{
		{"initial", wholeMap, "->user:[4026531837]", true, true},
		{"identity map of a child namespace", wholeMap, "->user:[4026532999]", true, false},
		{"mapped range", "0 100000 65536\n", "->user:[4026532999]", true, false},
		{"no link to read", wholeMap, "", true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := map[string]string{"/proc/self/uid_map": tc.uidMap, "/proc/self/gid_map": tc.uidMap}
			if tc.link != "" {
				files["/proc/self/ns/user"] = tc.link
			}
			ns := readUserNS(fakeRoot(t, files))
			if ns.known != tc.known || ns.initial != tc.initial {
				t.Errorf("known %v initial %v", ns.known, ns.initial)
			}
		})
	}
	if readUserNS(fakeRoot(t, nil)).known {
		t.Error("known without /proc")
	}
}

func TestMapHelper(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	for _, tc := range []struct {
		name string
		dir  string
		make func(path string) error
		why  string // "" if usable
	}{
		{"setuid root", "/usr/bin", func(p string) error { return unix.Chmod(p, 0o4755) }, ""},
		{"file capability", "/usr/bin", func(p string) error {
			// vfs_cap_data version 2, effective, CAP_SETUID permitted.
			data := make([]byte, 20)
			data[0], data[3], data[4] = 1, 2, 1<<unix.CAP_SETUID
			return unix.Setxattr(p, "security.capability", data, 0)
		}, ""},
		{"another capability", "/usr/bin", func(p string) error {
			data := make([]byte, 20)
			data[0], data[3], data[4] = 1, 2, 1<<unix.CAP_SETGID
			return unix.Setxattr(p, "security.capability", data, 0)
		}, "neither setuid"},
		{"plain", "/usr/bin", func(string) error { return nil }, "neither setuid"},
		{"of another user", "/usr/bin", func(p string) error {
			if err := unix.Chown(p, 1000, 0); err != nil {
				return err
			}
			return unix.Chmod(p, 0o4755)
		}, "uid 1000"},
		{"world-writable", "/usr/bin", func(p string) error { return unix.Chmod(p, 0o4757) }, "written by others"},
		{"where NixOS keeps it", "/run/wrappers/bin", func(p string) error { return unix.Chmod(p, 0o4755) }, ""},
		{"a directory that PATH might have", "/home/alice/bin", func(p string) error { return unix.Chmod(p, 0o4755) }, "not installed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := fakeRoot(t, map[string]string{tc.dir + "/newuidmap": "#!"})
			p := r.path(tc.dir + "/newuidmap")
			if err := unix.Chmod(p, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := tc.make(p); err != nil {
				t.Fatal(err)
			}
			got, why := findMapHelper(r, "newuidmap", unix.CAP_SETUID)
			if tc.why == "" && (got != tc.dir+"/newuidmap" || why != "") {
				t.Errorf("got %q, %q", got, why)
			}
			if tc.why != "" && (got != "" || !strings.Contains(why, tc.why)) {
				t.Errorf("got %q, %q; want a reason with %q", got, why, tc.why)
			}
		})
	}
}

func TestLockdown(t *testing.T) {
	for content, want := range map[string]fact.Feature{
		"[none] integrity confidentiality\n": {State: fact.Available, Detail: "none"},
		"none [integrity] confidentiality\n": {State: fact.Available, Detail: "integrity"},
		"none integrity [confidentiality]\n": {State: fact.Available, Detail: "confidentiality"},
		"none integrity confidentiality\n":   {State: fact.Unknown},
		"[total] integrity\n":                {State: fact.Unknown},
		"":                                   {State: fact.Unknown},
	} {
		got := readLockdown(fakeRoot(t, map[string]string{"/sys/kernel/security/lockdown": content}))
		if got.State != want.State || got.Detail != want.Detail {
			t.Errorf("%q: got %+v", content, got)
		}
	}
	if got := readLockdown(fakeRoot(t, nil)); got.State != fact.Unknown || got.Why == "" {
		t.Errorf("without the file: %+v", got)
	}
}

func TestLandlockFeaturesByABI(t *testing.T) {
	for _, tc := range []struct {
		abi   int
		errno unix.Errno
		want  [3]fact.State
	}{
		{0, unix.ENOSYS, [3]fact.State{fact.Unavailable, fact.Unavailable, fact.Unavailable}},
		{0, unix.EOPNOTSUPP, [3]fact.State{fact.Unavailable, fact.Unavailable, fact.Unavailable}},
		{0, unix.ENOMEM, [3]fact.State{}},
		{3, 0, [3]fact.State{fact.Available, fact.Unavailable, fact.Unavailable}},
		{4, 0, [3]fact.State{fact.Available, fact.Available, fact.Unavailable}},
		{6, 0, [3]fact.State{fact.Available, fact.Available, fact.Available}},
	} {
		for i, f := range landlockFeatures(tc.abi, tc.errno) {
			if f.State != tc.want[i] {
				t.Errorf("ABI %d %v: %s is %q", tc.abi, tc.errno, f.Name, f.State)
			}
			if f.State != fact.Available && f.Why == "" {
				t.Errorf("ABI %d %v: %s has no reason", tc.abi, tc.errno, f.Name)
			}
		}
	}
}

func TestSettingsThatForbidUserNamespaces(t *testing.T) {
	for _, tc := range []struct {
		name       string
		files      map[string]string
		privileged bool
		forbidden  bool
	}{
		{"nothing said", nil, false, false},
		{"limit 0", map[string]string{"/proc/sys/user/max_user_namespaces": "0\n"}, true, true},
		{"limit 10", map[string]string{"/proc/sys/user/max_user_namespaces": "10\n"}, false, false},
		{"Debian's switch, as a user", map[string]string{"/proc/sys/kernel/unprivileged_userns_clone": "0\n"}, false, true},
		{"Debian's switch, as root", map[string]string{"/proc/sys/kernel/unprivileged_userns_clone": "0\n"}, true, false},
	} {
		f, bad := userNSForbidden(fakeRoot(t, tc.files), tc.privileged)
		if bad != tc.forbidden {
			t.Errorf("%s: forbidden %v: %+v", tc.name, bad, f)
		}
		if bad && (f.State != fact.Unavailable || !strings.HasPrefix(f.Remedy, "sudo sysctl ")) {
			t.Errorf("%s: %+v", tc.name, f)
		}
	}
}

func TestQuickHere(t *testing.T) {
	h, err := Quick(Options{})
	if err != nil {
		t.Fatal(err)
	}
	if h.Kernel == "" || h.Arch == "" || h.CPUs < 1 || h.EUID != os.Geteuid() {
		t.Errorf("got %+v", h)
	}
	if tools := Toolchain(Options{}); len(tools) == 0 || tools[0].Path != "/usr" {
		t.Errorf("toolchain starts with %+v", tools)
	}
}

func TestQuickOnAnEmptyRootClaimsNothing(t *testing.T) {
	o := Options{Root: t.TempDir()}
	h, err := Quick(o)
	if err != nil {
		t.Fatal(err)
	}
	if h.Privileged || h.UserName != "" || h.NewUIDMap != "" || h.Lockdown != "" || len(Toolchain(o)) != 0 {
		t.Errorf("claimed without evidence: %+v", h)
	}
}
