package seccomp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// helper is the test binary under the helper's name.
func helper(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), helperName)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "helper.sh")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func profile(t testing.TB, text string) *seccomp.Profile {
	t.Helper()
	p, err := seccomp.ParseProfile("web.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// missing is a helper that must not be needed.
const missing = "/nonexistent/nucleus-seccomp"

func TestDefaultPolicyNeedsNoHelper(t *testing.T) {
	for name, r := range map[string]seccomp.Request{
		"nothing asked":            {},
		"nothing opened":           {Allow: []string{"read", "statx"}},
		"capability without calls": {Caps: []string{"NET_BIND_SERVICE"}},
	} {
		for _, c := range []seccomp.Compiler{{}, {Helper: missing, CacheDir: filepath.Join(t.TempDir(), "cache")}} {
			filter, err := c.Compile(t.Context(), r)
			if err != nil || filter.Digest != seccomp.Default().Digest {
				t.Errorf("%s: %v, digest %s", name, err, filter.Digest)
			}
			own, err := c.CompileInit(t.Context(), r)
			if err != nil || own.Digest != seccomp.InitFilter().Digest {
				t.Errorf("%s: init: %v, digest %s", name, err, own.Digest)
			}
			if c.CacheDir != "" {
				if _, err := os.Stat(c.CacheDir); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s: touches the cache: %v", name, err)
				}
			}
		}
	}
}

func TestCompiledFiltersTakeEffect(t *testing.T) {
	c := seccomp.Compiler{Helper: helper(t)}
	unshare := call{unix.SYS_SETNS, [6]uintptr{bad, 0}}
	keyctl := call{unix.SYS_KEYCTL, [6]uintptr{bad}}
	getpid := call{unix.SYS_PERSONALITY, [6]uintptr{0xffffffff}}

	opened, err := c.Compile(t.Context(), seccomp.Request{Allow: []string{"keyctl"}})
	if err != nil {
		t.Fatal(err)
	}
	own, err := c.CompileInit(t.Context(), seccomp.Request{Allow: []string{"keyctl"}})
	if err != nil {
		t.Fatal(err)
	}
	free := errnos(t, nil, []call{keyctl})
	if got := errnos(t, [][]byte{own.BPF, opened.BPF}, []call{unshare, keyctl}); got[0] != unix.EPERM || got[1] != free[0] {
		t.Errorf("keyctl allowed: setns %v, keyctl %v (without a filter %v)", got[0], got[1], free[0])
	}

	custom, err := c.Compile(t.Context(), seccomp.Request{Profile: profile(t, `{
		"defaultAction": "SCMP_ACT_ALLOW",
		"architectures": ["SCMP_ARCH_PPC"],
		"syscalls": [
			{"names": ["setns"], "action": "SCMP_ACT_ERRNO", "errnoRet": 62},
			{"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errno": "EXDEV", "args": [{"index": 0, "value": 4294967295, "op": "SCMP_CMP_EQ"}]}
		]}`)})
	if err != nil {
		t.Fatal(err)
	}
	if custom.Name != "web.json" || len(custom.Ignored) != 1 || custom.Instructions*8 != len(custom.BPF) {
		t.Errorf("%q ignored %v, %d instructions", custom.Name, custom.Ignored, custom.Instructions)
	}
	if got := errnos(t, [][]byte{custom.BPF}, []call{unshare, getpid, keyctl}); got[0] != 62 || got[1] != unix.EXDEV || got[2] != free[0] {
		t.Errorf("profile: %v", got)
	}
}

func TestHelperFailuresComeWithARemedy(t *testing.T) {
	big := script(t, "head -c 100000 /dev/zero")
	wrong := filepath.Join(t.TempDir(), "wrong.bpf")
	if err := os.WriteFile(wrong, seccomp.Default().BPF, 0o600); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		helper, want, remedy string
	}{
		"none configured": {"", "no helper", "make install"},
		"missing":         {missing, "no such file", "make install"},
		"not executable":  {plain, "permission denied", "make install"},
		"no libseccomp":   {script(t, `echo "error while loading shared libraries: libseccomp.so.2: cannot open" >&2; exit 127`), "libseccomp.so.2", "libseccomp2"},
		"its own error":   {script(t, `printf 'no\033[31m good\n' >&2; exit 1`), "no [31m good", ""},
		"silent failure":  {script(t, "exit 3"), "exit status 3", "make install"},
		"too much output": {big, "longer than", "fewer rules"},
		"rubbish":         {script(t, "echo hello, world, this is"), "cut off", "of this release"},
		"nothing":         {script(t, "true"), "empty", "of this release"},
		"another policy":  {script(t, "cat "+wrong), "filter says", "of this release"},
	} {
		t.Run(name, func(t *testing.T) {
			cacheDir := filepath.Join(t.TempDir(), "cache")
			c := seccomp.Compiler{Helper: tc.helper, CacheDir: cacheDir}
			_, err := c.Compile(t.Context(), seccomp.Request{Allow: []string{"keyctl"}})
			var failed *seccomp.HelperError
			if !errors.As(err, &failed) {
				t.Fatalf("error %v", err)
			}
			if !strings.Contains(err.Error(), tc.want) || !strings.Contains(failed.Remedy, tc.remedy) {
				t.Errorf("error %q, remedy %q; want %q and %q", err, failed.Remedy, tc.want, tc.remedy)
			}
			if entries, _ := os.ReadDir(cacheDir); len(entries) != 0 {
				t.Errorf("a failure left %v in the cache", entries)
			}
		})
	}
}

func TestHelperIsStoppedWithTheContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := seccomp.Compiler{Helper: script(t, "exec sleep 30")}.Compile(ctx, seccomp.Request{Allow: []string{"keyctl"}})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

func TestHelperGetsACleanEnvironment(t *testing.T) {
	t.Setenv("LD_PRELOAD_CANARY", "leaked")
	report := script(t, `echo "cwd=$PWD canary=$LD_PRELOAD_CANARY variables=$(tr -d -c '\0' < /proc/$$/environ | wc -c)" >&2; exit 1`)
	_, err := seccomp.Compiler{Helper: report}.Compile(t.Context(), seccomp.Request{Allow: []string{"keyctl"}})
	if err == nil || !strings.Contains(err.Error(), "cwd=/ canary= variables=0") {
		t.Errorf("error %v", err)
	}
}

func TestCacheServesWhatWasCompiledOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "cache")
	r := seccomp.Request{Allow: []string{"keyctl"}}
	first, err := seccomp.Compiler{Helper: helper(t), CacheDir: dir}.Compile(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	second, err := seccomp.Compiler{Helper: missing, CacheDir: dir}.Compile(t.Context(), r)
	if err != nil || !bytes.Equal(first.BPF, second.BPF) || first.Digest != second.Digest || second.Name != "default+allow" {
		t.Fatalf("second time: %v, %q", err, second.Name)
	}
	if _, err := (seccomp.Compiler{Helper: missing, CacheDir: dir}).Compile(t.Context(), seccomp.Request{Allow: []string{"add_key"}}); err == nil {
		t.Error("another request is served from the cache")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("cache holds %v (%v)", entries, err)
	}
	info, err := entries[0].Info()
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("entry has mode %v (%v)", info.Mode(), err)
	}
}

// Whatever is wrong with an entry, it is not used; a compilation replaces it.
func TestBadCacheEntriesAreNotUsed(t *testing.T) {
	r := seccomp.Request{Allow: []string{"keyctl"}}
	other := seccomp.Request{Allow: []string{"keyctl", "add_key"}}
	for name, spoil := range map[string]func(t *testing.T, entry, otherEntry string){
		"changed byte": func(t *testing.T, entry, _ string) {
			content := read(t, entry)
			content[len(content)-2] ^= 1
			write(t, entry, content)
		},
		"cut off":        func(t *testing.T, entry, _ string) { write(t, entry, read(t, entry)[:200]) },
		"empty":          func(t *testing.T, entry, _ string) { write(t, entry, nil) },
		"raw filter":     func(t *testing.T, entry, _ string) { write(t, entry, seccomp.Default().BPF) },
		"another policy": func(t *testing.T, entry, otherEntry string) { write(t, entry, read(t, otherEntry)) },
		"writable":       func(t *testing.T, entry, _ string) { check(t, os.Chmod(entry, 0o666)) },
		"hard link":      func(t *testing.T, entry, _ string) { check(t, os.Link(entry, entry+".link")) },
		"symlink": func(t *testing.T, entry, _ string) {
			check(t, os.Rename(entry, entry+".moved"))
			check(t, os.Symlink(entry+".moved", entry))
		},
		"fifo": func(t *testing.T, entry, _ string) {
			check(t, os.Remove(entry))
			check(t, unix.Mkfifo(entry, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cache")
			c := seccomp.Compiler{Helper: helper(t), CacheDir: dir}
			want, err := c.Compile(t.Context(), r)
			check(t, err)
			entry := only(t, dir, "")
			_, err = c.Compile(t.Context(), other)
			check(t, err)
			spoil(t, entry, only(t, dir, entry))

			if _, err := (seccomp.Compiler{Helper: missing, CacheDir: dir}).Compile(t.Context(), r); err == nil {
				t.Error("the entry is used")
			}
			got, err := c.Compile(t.Context(), r)
			if err != nil || got.Digest != want.Digest {
				t.Errorf("compiling again: %v", err)
			}
			if name == "hard link" {
				return // replaced by rename: the link keeps the old file
			}
			if _, err := (seccomp.Compiler{Helper: missing, CacheDir: dir}).Compile(t.Context(), r); err != nil {
				t.Errorf("the entry is not replaced: %v", err)
			}
		})
	}
}

func TestCacheDirectoryMustBeOurs(t *testing.T) {
	r := seccomp.Request{Allow: []string{"keyctl"}}
	for name, make := range map[string]func(t *testing.T, dir string){
		"open to others": func(t *testing.T, dir string) { check(t, os.Mkdir(dir, 0o755)) },
		"symlink":        func(t *testing.T, dir string) { check(t, os.Symlink(t.TempDir(), dir)) },
		"file":           func(t *testing.T, dir string) { write(t, dir, nil) },
		"of another user": func(t *testing.T, dir string) {
			testutil.Needs(t, testutil.Root)
			check(t, os.Mkdir(dir, 0o700))
			check(t, os.Chown(dir, 65534, 65534))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cache")
			make(t, dir)
			_, err := seccomp.Compiler{Helper: helper(t), CacheDir: dir}.Compile(t.Context(), r)
			var untrusted *seccomp.CacheError
			if !errors.As(err, &untrusted) || untrusted.Remedy == "" {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestUnwritableCacheDoesNotFailTheStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	c := seccomp.Compiler{Helper: helper(t), CacheDir: dir}
	r := seccomp.Request{Allow: []string{"keyctl"}}
	_, err := c.Compile(t.Context(), r)
	check(t, err)
	// A directory in the entry's place fails the rename, for root too.
	entry := only(t, dir, "")
	check(t, os.Remove(entry))
	check(t, os.Mkdir(entry, 0o700))
	if _, err := c.Compile(t.Context(), r); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("half an entry is left: %v %v", entries, err)
	}
}

// What nobody has asked for in a month goes; what was asked for since stays, and so does what is
// not the cache's own.
func TestPruneRemovesWhatIsUnused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	check(t, seccomp.Prune(dir, time.Now())) // there is none
	c := seccomp.Compiler{Helper: helper(t), CacheDir: dir}
	r, unused := seccomp.Request{Allow: []string{"keyctl"}}, seccomp.Request{Allow: []string{"add_key"}}
	_, err := c.Compile(t.Context(), r)
	check(t, err)
	used := only(t, dir, "")
	_, err = c.Compile(t.Context(), unused)
	check(t, err)
	old := only(t, dir, used)
	half, foreign := strings.TrimSuffix(used, "bpf")+"ABC", filepath.Join(dir, "README.bpf")
	write(t, half, nil)
	write(t, foreign, nil)
	left := func(want ...string) {
		t.Helper()
		entries, err := filepath.Glob(filepath.Join(dir, "*"))
		check(t, err)
		if slices.Sort(want); !slices.Equal(entries, want) {
			t.Errorf("cache holds %q, want %q", entries, want)
		}
	}
	now := time.Now()
	check(t, seccomp.Prune(dir, now))
	left(used, old, half, foreign)
	month := now.Add(-seccomp.Unused - time.Hour)
	for _, path := range []string{used, old, half, foreign} {
		check(t, os.Chtimes(path, month, month))
	}
	_, err = seccomp.Compiler{Helper: missing, CacheDir: dir}.Compile(t.Context(), r)
	check(t, err)
	check(t, seccomp.Prune(dir, now))
	left(used, foreign)
	check(t, os.Chmod(dir, 0o755))
	var untrusted *seccomp.CacheError
	if err := seccomp.Prune(dir, now.Add(2*seccomp.Unused)); !errors.As(err, &untrusted) {
		t.Errorf("a directory that others can write: %v", err)
	}
	left(used, foreign)
}

func only(t *testing.T, dir, except string) string {
	t.Helper()
	entries, err := filepath.Glob(filepath.Join(dir, "*.bpf"))
	check(t, err)
	entries = slices.DeleteFunc(entries, func(e string) bool { return e == except })
	if len(entries) != 1 {
		t.Fatalf("cache holds %v", entries)
	}
	return entries[0]
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	check(t, err)
	return content
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	check(t, os.WriteFile(path, content, 0o600))
}

func BenchmarkCompileDefault(b *testing.B) {
	for b.Loop() {
		if _, err := (seccomp.Compiler{}).Compile(b.Context(), seccomp.Request{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompileByHelper(b *testing.B) {
	c := seccomp.Compiler{Helper: helper(b)}
	benchmark(b, c)
}

func BenchmarkCompileFromCache(b *testing.B) {
	c := seccomp.Compiler{Helper: helper(b), CacheDir: filepath.Join(b.TempDir(), "cache")}
	if _, err := c.Compile(b.Context(), seccomp.Request{Allow: []string{"keyctl"}}); err != nil {
		b.Fatal(err)
	}
	benchmark(b, c)
}

func benchmark(b *testing.B, c seccomp.Compiler) {
	for b.Loop() {
		if _, err := c.Compile(b.Context(), seccomp.Request{Allow: []string{"keyctl"}}); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleCompiler_Compile() {
	// The default policy is built in: no helper, no cache.
	filter, err := seccomp.Compiler{}.Compile(context.Background(), seccomp.Request{})
	if err != nil {
		fmt.Fprintln(io.Discard, err)
		return
	}
	fmt.Println(filter.Name, filter.Instructions > 0)
	// Output: default true
}
