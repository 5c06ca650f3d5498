package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// place is a directory that nobody else may write to.
func place(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func begin(t *testing.T, path string) *Draft {
	t.Helper()
	d, err := Begin(path, func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func work(d *Draft, name string) string { return filepath.Join(d.dir(), workName, name) }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

var manifest = Manifest{Job: "j", Runtime: "box", Program: "p", Config: "c"}

func made(t *testing.T) string {
	t.Helper()
	path := filepath.Join(place(t), "img")
	d := begin(t, path)
	write(t, work(d, "b"), "pages")
	write(t, work(d, "a"), "")
	if err := d.Publish(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
	return path
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestADraftBecomesAnImage(t *testing.T) {
	path := made(t)
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Errorf("beside it there are %v", got)
	}
	im, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if len(im.Files) != 2 || im.Files[0] != (File{"a", 0}) || im.Files[1] != (File{"b", 5}) || im.Job != "j" || im.Version != Version {
		t.Errorf("%+v", im.Manifest)
	}
	for _, c := range []struct{ runtime, program, config, want string }{
		{"box", "p", "c", ""},
		{"crate", "p", "c", `of runtime "box", and the job has "crate"`},
		{"box", "q", "c", "made with another program"},
		{"box", "p", "d", "another configuration"},
	} {
		err := im.Fits(c.runtime, c.program, c.config)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// What a program has written that somebody has broken into is no image, and nothing that
// it leads to is touched.
func TestOnlyPlainFilesAreAnImage(t *testing.T) {
	for name, x := range map[string]struct {
		write func(dir, canary string) error
		want  string
	}{
		"nothing":     {func(string, string) error { return nil }, "no file"},
		"a link":      {func(dir, canary string) error { return os.Symlink(canary, dir+"/l") }, `"l", which the program has written`},
		"a directory": {func(dir, _ string) error { return os.Mkdir(dir+"/d", 0o700) }, "no regular file"},
		"a pipe":      {func(dir, _ string) error { return unix.Mkfifo(dir+"/p", 0o600) }, "no regular file"},
		"two names":   {func(dir, canary string) error { return os.Link(canary, dir+"/n") }, "with one name"},
		"too many": {func(dir, _ string) error {
			var errs []error
			for i := range maxFiles + 1 {
				errs = append(errs, os.WriteFile(filepath.Join(dir, strings.Repeat("x", i+1)), nil, 0o600))
			}
			return errors.Join(errs...)
		}, "more than 64 files"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := place(t)
			canary := filepath.Join(dir, "canary")
			write(t, canary, "CANARY")
			d := begin(t, filepath.Join(dir, "img"))
			if err := x.write(filepath.Join(d.dir(), workName), canary); err != nil {
				t.Fatal(err)
			}
			if err := d.Publish(t.Context(), manifest); err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%v, want %q", err, x.want)
			}
			if err := d.Discard(); err != nil {
				t.Error(err)
			}
			if got := names(t, dir); len(got) != 1 || got[0] != "canary" {
				t.Errorf("%v is left", got)
			}
			if st, err := os.Stat(canary); err != nil || st.Mode().Perm() != 0o644 || st.Size() != 6 {
				t.Errorf("%v, %v", st, err)
			}
		})
	}
}

// Who still has the directory of the program has nothing of the image.
func TestTheProgramsDirectoryIsNoneOfTheImages(t *testing.T) {
	path := filepath.Join(place(t), "img")
	d := begin(t, path)
	data, err := d.Data()
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	write(t, work(d, "a"), "x")
	if err := d.Publish(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Openat(int(data.Fd()), "more", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err == nil {
		_ = unix.Close(fd)
	}
	if !errors.Is(err, unix.ENOENT) {
		t.Errorf("a file was made: %v", err)
	}
}

func TestWhereAnImageCanBe(t *testing.T) {
	for name, x := range map[string]struct {
		make func(path string) error
		want string
	}{
		"nothing":            {func(string) error { return nil }, ""},
		"an empty directory": {func(path string) error { return os.Mkdir(path, 0o755) }, ""},
		"a full one":         {func(path string) error { return os.MkdirAll(path+"/x", 0o755) }, "not empty"},
		"a file":             {func(path string) error { return os.WriteFile(path, nil, 0o600) }, "no directory"},
		"a link":             {func(path string) error { return os.Symlink("/tmp", path) }, "no directory"},
		"with others":        {func(path string) error { return os.Chmod(filepath.Dir(path), 0o777) }, "img"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(place(t), "img")
			if err := x.make(path); err != nil {
				t.Fatal(err)
			}
			told := ""
			d, err := Begin(path, func(dir string) error { told = dir; return nil })
			if x.want != "" {
				var e *Error
				if !errors.As(err, &e) || e.Hint == "" || !strings.Contains(err.Error(), x.want) || told != "" {
					t.Errorf("%v, want %q with a hint; told of %q", err, x.want, told)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if _, err := os.Stat(told); err != nil {
				t.Errorf("what was told of before is not there: %v", err)
			}
			write(t, work(d, "a"), "x")
			if err := d.Publish(t.Context(), manifest); err != nil {
				t.Error(err)
			}
			if im, err := Open(path); err != nil {
				t.Error(err)
			} else {
				im.Close()
			}
		})
	}
	if _, err := Begin(filepath.Join(place(t), "img"), func(string) error { return errors.New("full disk") }); err == nil {
		t.Error("a draft was made that nobody would remove")
	}
}

func TestImagesThatAreNone(t *testing.T) {
	for name, x := range map[string]struct {
		change func(path string) error
		want   string
	}{
		"others may enter":   {func(p string) error { return os.Chmod(p, 0o755) }, "mode 0755"},
		"others may read":    {func(p string) error { return os.Chmod(p+"/image/b", 0o640) }, `"b": others have rights`},
		"and its manifest":   {func(p string) error { return os.Chmod(p+"/manifest.json", 0o604) }, "manifest.json: others"},
		"no manifest":        {func(p string) error { return os.Remove(p + "/manifest.json") }, "none that nucleus checkpoint has made"},
		"no JSON":            {func(p string) error { return os.WriteFile(p+"/manifest.json", []byte("{"), 0o600) }, "unexpected EOF"},
		"of another version": {func(p string) error { return os.WriteFile(p+"/manifest.json", []byte(`{"version":2}`), 0o600) }, "of version 2"},
		"names elsewhere": {func(p string) error {
			return os.WriteFile(p+"/manifest.json", []byte(`{"version":1,"files":[{"name":"../x"}]}`), 0o600)
		}, "no name of a file"},
		"a name that drives the terminal": {func(p string) error {
			return os.WriteFile(p+"/manifest.json", []byte(`{"version":1,"files":[{"name":"\u001b]0;x\u0007"}]}`), 0o600)
		}, `"\x1b]0;x\a": no such file`},
		"a file more":       {func(p string) error { return os.WriteFile(p+"/image/pages", []byte("others"), 0o666) }, `"pages" is not in manifest.json`},
		"a link more":       {func(p string) error { return os.Symlink("/etc/passwd", p+"/image/pages") }, `"pages" is not in manifest.json`},
		"a file is missing": {func(p string) error { return os.Remove(p + "/image/b") }, `"b": no such file`},
		"a file is cut off": {func(p string) error { return os.Truncate(p+"/image/b", 1) }, `"b" has 1 bytes, and had 5`},
		"a link to a file": {func(p string) error {
			return errors.Join(os.Rename(p+"/image/b", p+"/b"), os.Symlink("../b", p+"/image/b"))
		}, `"b": it is no file of the kind`},
		"a link to a directory": {func(p string) error {
			return errors.Join(os.Rename(p+"/image", p+"/i"), os.Symlink("i", p+"/image"))
		}, "image: not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			path := made(t)
			if err := x.change(path); err != nil {
				t.Fatal(err)
			}
			im, err := Open(path)
			if err == nil {
				im.Close()
			}
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%v, want %q", err, x.want)
			}
		})
	}
}

func TestOnlyDraftsAreRemoved(t *testing.T) {
	dir := place(t)
	d := begin(t, filepath.Join(dir, "img"))
	write(t, work(d, "a"), "x")
	if err := Remove(d.dir()); err != nil {
		t.Error(err)
	}
	if err := Remove(d.dir()); err != nil {
		t.Errorf("once more: %v", err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("%v is left", got)
	}
	if err := Remove(filepath.Join(dir, "gone", filepath.Base(d.dir()))); err != nil {
		t.Errorf("where nothing is: %v", err)
	}
	if err := Remove(made(t)); err == nil {
		t.Error("an image was removed")
	}
}
