package testutil

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func output(t *testing.T, a *Account, name string, args ...string) string {
	t.Helper()
	out, err := a.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q as %s: %v\n%s", name, args, a.Name, err, out)
	}
	return strings.TrimSpace(string(out))
}

// stubBinaries stands in for the project's own binaries: an account's tests do not build them.
func stubBinaries(t *testing.T) {
	t.Helper()
	bin := t.TempDir() // 0700 above: the originals are out of the user's reach
	if err := os.MkdirAll(filepath.Join(bin, "plugins"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nucleus", "plugins/nucleus-plugin-x"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho "+name+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("NUCLEUS_BIN", bin)
}

func TestUserIsOrdinary(t *testing.T) {
	stubBinaries(t)
	u := User(t)
	if os.Geteuid() == 0 && u.UID == 0 {
		t.Fatal("the test user is root")
	}
	if got := output(t, u, "id", "-u"); got != strconv.Itoa(u.UID) {
		t.Errorf("runs as uid %s, want %d", got, u.UID)
	}
	status := output(t, u, "cat", "/proc/self/status")
	for _, line := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapInh:\t0000000000000000"} {
		if !strings.Contains(status, line) {
			t.Errorf("status lacks %q:\n%s", line, status)
		}
	}
	if _, count, err := subordinateRange("/etc/subuid", u.Name, u.UID); err != nil || count == 0 {
		t.Errorf("no subordinate uids: %d, %v", count, err)
	}
}

func TestPlainUserHasNoSubordinateIDs(t *testing.T) {
	stubBinaries(t)
	u := PlainUser(t)
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		if _, count, err := subordinateRange(file, u.Name, u.UID); err != nil || count != 0 {
			t.Errorf("%s gives %s %d ids, %v", file, u.Name, count, err)
		}
	}
}

func TestAccountDirectoriesArePrivateAndUsable(t *testing.T) {
	stubBinaries(t)
	for _, a := range []*Account{Self(t), User(t)} {
		t.Setenv("LEAKS_FROM_THE_TEST", "yes")
		got := output(t, a, "sh", "-c", `pwd; stat -c %a "$HOME" "$XDG_RUNTIME_DIR"; echo x >"$XDG_RUNTIME_DIR/f"; echo "${LEAKS_FROM_THE_TEST-clean}"`)
		if want := a.Home + "\n700\n700\nclean"; got != want {
			t.Errorf("as %s: %q, want %q", a.Name, got, want)
		}
	}
}

func TestAccountReachesItsBinaries(t *testing.T) {
	stubBinaries(t)
	u := User(t)
	if got := output(t, u, "nucleus"); got != "nucleus" {
		t.Errorf("nucleus printed %q", got)
	}
	if got := output(t, u, filepath.Join(u.Bin, "plugins/nucleus-plugin-x")); got != "plugins/nucleus-plugin-x" {
		t.Errorf("the plugin printed %q", got)
	}
}

func TestOwnGivesTheTreeAndNotItsTargets(t *testing.T) {
	Needs(t, Root)
	stubBinaries(t)
	u := User(t)
	tree := filepath.Join(u.Dir, "tree")
	outside := filepath.Join(u.Dir, "outside")
	for _, dir := range []string{filepath.Join(tree, "sub"), outside} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	u.Own(t, tree)
	got := output(t, u, "stat", "-c", "%u", tree, tree+"/sub", tree+"/link", outside)
	id := strconv.Itoa(u.UID)
	if want := strings.Join([]string{id, id, id, "0"}, "\n"); got != want {
		t.Errorf("owners %q, want %q", got, want)
	}
}

func TestSubordinateRange(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subuid")
	if err := os.WriteFile(file, []byte("a:100000:65536\n7:300000:10\nb:200000:65536\na:900000:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name         string
		uid          int
		first, count int
	}{
		{"a", 1, 100000, 65536}, {"by-number", 7, 300000, 10}, {"nobody", 9, 0, 0},
	} {
		first, count, err := subordinateRange(file, test.name, test.uid)
		if err != nil || first != test.first || count != test.count {
			t.Errorf("range of %s: %d+%d, %v", test.name, first, count, err)
		}
	}
	if free, err := firstFreeSubordinate(file); err != nil || free != 900001 {
		t.Errorf("first free id %d, %v", free, err)
	}
	if err := os.WriteFile(file, []byte("a:x:65536\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := subordinateRange(file, "a", 1); err == nil {
		t.Error("a malformed range is no error")
	}
}
