package pluginhost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
)

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func digestOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func finder(t *testing.T, host string, dirs ...string) *Finder {
	t.Helper()
	c, diags := hostconfig.Parse("nucleus.hcl", []byte(host))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return &Finder{Dirs: dirs, Host: c, Digests: &DigestCache{Dir: filepath.Join(t.TempDir(), "digests")}}
}

func TestFind(t *testing.T) {
	first, second, open := t.TempDir(), t.TempDir(), t.TempDir()
	write(t, filepath.Join(first, "nucleus-plugin-both"), "1", 0o755)
	write(t, filepath.Join(second, "nucleus-plugin-both"), "2", 0o755)
	write(t, filepath.Join(second, "nucleus-plugin-second"), "2", 0o755)
	write(t, filepath.Join(second, "other-name"), "o", 0o755)
	write(t, filepath.Join(first, "nucleus-plugin-shut"), "s", 0o644)
	write(t, filepath.Join(first, "nucleus-plugin-loose"), "l", 0o775)
	write(t, filepath.Join(open, "nucleus-plugin-planted"), "p", 0o755)
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(second, "other-name"), filepath.Join(first, "nucleus-plugin-link")); err != nil {
		t.Fatal(err)
	}
	host := `plugin "named" { path = "other-name" }
plugin "pinned" {
  path = "other-name"
  sha256 = ["` + digestOf("x") + `", "` + digestOf("o") + `"]
}
plugin "changed" {
  path = "other-name"
  sha256 = "` + digestOf("x") + `"
}
`
	f := finder(t, host, filepath.Join(first, "absent"), first, second)
	for name, want := range map[string]string{
		"both": filepath.Join(first, "nucleus-plugin-both"), "second": filepath.Join(second, "nucleus-plugin-second"),
		"named": filepath.Join(second, "other-name"), "pinned": filepath.Join(second, "other-name"),
	} {
		p, err := f.Find(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.Path != want || p.Pinned != (name == "pinned") {
			t.Errorf("%s: %s, pinned %v; want %s", name, p.Path, p.Pinned, want)
		}
		_ = p.Close()
	}
	for name, want := range map[string]string{
		"absent": "no nucleus-plugin-absent in ", "shut": "permission denied", "loose": "others can write to it (mode 0775)",
		"link": "not a regular file", "changed": "has the SHA-256 " + digestOf("o") + ", the host configuration wants " + digestOf("x"),
	} {
		var pe *Error
		if _, err := f.Find(name); !errors.As(err, &pe) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", name, err, want)
		}
	}
	f.Dirs = append([]string{open}, f.Dirs...)
	if _, err := f.Find("planted"); err == nil || !strings.Contains(err.Error(), "others can write to it (mode 0777)") {
		t.Errorf("in a directory that all may write to: error %v", err)
	}
	f.Dirs = f.Dirs[1:]
	f.PinnedOnly = true
	if _, err := f.Find("both"); err == nil || !strings.Contains(err.Error(), "wants its digest") {
		t.Errorf("not pinned: error %v", err)
	}
	names, err := f.List()
	if want := []string{"both", "changed", "link", "loose", "named", "pinned", "second", "shut"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("names %q, %v; want %q", names, err, want)
	}
}

// The working directory and PATH are no plugin directories.
func TestFindLooksNowhereElse(t *testing.T) {
	here := t.TempDir()
	write(t, filepath.Join(here, "nucleus-plugin-planted"), "p", 0o755)
	t.Chdir(here)
	t.Setenv("PATH", here)
	if p, err := finder(t, "", t.TempDir()).Find("planted"); err == nil {
		t.Errorf("found %s", p.Path)
	}
}

// What no file has any more is not remembered for ever.
func TestDigestCacheIsPruned(t *testing.T) {
	c := &DigestCache{Dir: filepath.Join(t.TempDir(), "digests")}
	digest := strings.Repeat("a", 64)
	c.write("old", digest)
	old := time.Now().Add(-maxAge - time.Hour)
	if err := os.Chtimes(c.path("old"), old, old); err != nil {
		t.Fatal(err)
	}
	for i := range maxDigests + 9 {
		key := fmt.Sprint(i)
		c.write(key, digest)
		at := time.Now().Add(time.Duration(i-maxDigests-9) * time.Minute)
		if err := os.Chtimes(c.path(key), at, at); err != nil {
			t.Fatal(err)
		}
	}
	c.write("last", digest)
	entries, err := os.ReadDir(c.Dir)
	if err != nil || len(entries) != maxDigests {
		t.Errorf("%d files, %v; want %d", len(entries), err, maxDigests)
	}
	if c.read("old") != "" || c.read("0") != "" || c.read("last") != digest || c.read(fmt.Sprint(maxDigests)) != digest {
		t.Error("the wrong ones are gone")
	}
	d := &DigestCache{Dir: filepath.Join(t.TempDir(), "digests")}
	d.write("old", digest)
	if err := os.Chtimes(d.path("old"), old, old); err != nil {
		t.Fatal(err)
	}
	if d.write("new", digest); d.read("old") != "" || d.read("new") != digest {
		t.Error("a digest of more than ninety days is remembered, or one of today is not")
	}
}

func TestDigestCache(t *testing.T) {
	c := &DigestCache{Dir: filepath.Join(t.TempDir(), "digests")}
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "one", 0o755)
	of := func() string {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d, err := c.Of(f)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for range 2 { // the second time from the cache
		if got := of(); got != digestOf("one") {
			t.Errorf("digest %s", got)
		}
	}
	// It is the cache that answers the second time: a lie in it is believed.
	entries, err := os.ReadDir(c.Dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d entries, %v; want 1", len(entries), err)
	}
	entry := filepath.Join(c.Dir, entries[0].Name())
	b, err := os.ReadFile(entry)
	if err != nil {
		t.Fatal(err)
	}
	lie := strings.Repeat("0", 64)
	write(t, entry, lie+string(b[64:]), 0o600)
	if of() != lie {
		t.Error("the cache was not asked")
	}
	// But not if others could have written it.
	if err := os.Chmod(c.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if of() != digestOf("one") {
		t.Error("a cache that is open to others was believed")
	}
	if err := os.Chmod(c.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	// Same name, size and mtime: the ctime gives the change away.
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, "two", 0o755)
	if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	if of() != digestOf("two") {
		t.Error("a changed file has its old digest")
	}
}
