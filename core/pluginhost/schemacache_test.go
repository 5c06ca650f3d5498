package pluginhost

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

func cached(t *testing.T) (c *SchemaCache, file string) {
	t.Helper()
	c = &SchemaCache{Dir: filepath.Join(t.TempDir(), "schema")}
	c.write("key", someAnswers("x"))
	return c, filepath.Join(c.Dir, c.name("key"))
}

func someAnswers(name string) *answers {
	a := &answers{}
	a.info.Name = name
	a.info.Services = []*pluginv1.ServiceVersion{{Service: pluginv1.Service_SERVICE_SECRETS, Version: "1.0"}}
	a.schema.InstanceConfig = map[string]*pluginv1.Block{"secrets": {Attrs: []*pluginv1.Attr{{Name: "path", TypeJson: `"string"`, Required: true}}}}
	return a
}

func TestSchemaCacheRemembers(t *testing.T) {
	c, file := cached(t)
	a := c.read("key")
	if a == nil {
		t.Fatal("it forgot")
	}
	d, err := a.describe(t.Context())
	if err != nil || d.Info.Name != "x" || !d.Serves(manifest.Secrets) || len(d.Schema.Instance["secrets"].Attrs) != 1 {
		t.Errorf("%+v, %v", d, err)
	}
	if c.read("another key") != nil {
		t.Error("it knows what it never heard")
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want a private file", st, err)
	}
	(*SchemaCache)(nil).write("key", someAnswers("x"))
	(&SchemaCache{}).write("key", someAnswers("x"))
	if (*SchemaCache)(nil).read("key") != nil || (&SchemaCache{}).read("key") != nil {
		t.Error("no cache remembers")
	}
}

// A file that is not as it was written is no answer, and the next answer replaces it.
func TestSchemaCacheBelievesNothingElse(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, c *SchemaCache, file string, b []byte){
		"a flipped bit": func(t *testing.T, _ *SchemaCache, file string, b []byte) {
			b[len(b)-3] ^= 1
			write(t, file, string(b), 0o600)
		},
		"half of it":      func(t *testing.T, _ *SchemaCache, file string, b []byte) { write(t, file, string(b[:len(b)/2]), 0o600) },
		"less than a sum": func(t *testing.T, _ *SchemaCache, file string, b []byte) { write(t, file, string(b[:7]), 0o600) },
		"nothing":         func(t *testing.T, _ *SchemaCache, file string, _ []byte) { write(t, file, "", 0o600) },
		"more of it":      func(t *testing.T, _ *SchemaCache, file string, b []byte) { write(t, file, string(b)+"x", 0o600) },
		"far too much": func(t *testing.T, _ *SchemaCache, file string, _ []byte) {
			content := bytes.Repeat([]byte{0}, 2*maxDescription)
			write(t, file, string(sealOf("key", content))+string(content), 0o600)
		},
		"a wrong length": func(t *testing.T, _ *SchemaCache, file string, b []byte) {
			content := append([]byte{0xff, 0x7f}, b[33:]...)
			write(t, file, string(sealOf("key", content))+string(content), 0o600)
		},
		"a schema without an end": func(t *testing.T, c *SchemaCache, _ string, _ []byte) {
			a := someAnswers("x")
			a.schema.PluginConfig = &pluginv1.Block{Attrs: []*pluginv1.Attr{{Name: "deep", TypeJson: strings.Repeat(`["list",`, 100)}}}
			c.write("key", a)
		},
		"another's": func(t *testing.T, c *SchemaCache, file string, _ []byte) {
			c.write("another", someAnswers("y"))
			if err := os.Rename(filepath.Join(c.Dir, c.name("another")), file); err != nil {
				t.Fatal(err)
			}
		},
		"a directory": func(t *testing.T, _ *SchemaCache, file string, _ []byte) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(file, 0o700); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, file := cached(t)
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			spoil(t, c, file, b)
			if c.read("key") != nil {
				t.Error("it was believed")
			}
			if name == "a directory" {
				return
			}
			c.write("key", someAnswers("x"))
			if c.read("key") == nil {
				t.Error("it was not replaced")
			}
		})
	}
}

func TestSchemaCacheIsTheCallersAlone(t *testing.T) {
	c, _ := cached(t)
	for _, mode := range []os.FileMode{0o750, 0o701, 0o722} {
		if err := os.Chmod(c.Dir, mode); err != nil {
			t.Fatal(err)
		}
		c.write("new", someAnswers("x"))
		if c.read("key") != nil {
			t.Errorf("mode %o: it was believed", mode)
		}
	}
	if err := os.Chmod(c.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if c.read("new") != nil {
		t.Error("it wrote where others can")
	}
	link := c.Dir + "-link"
	if err := os.Symlink(c.Dir, link); err != nil {
		t.Fatal(err)
	}
	if (&SchemaCache{Dir: link}).read("key") != nil {
		t.Error("it followed a link")
	}
}

func TestSchemaCacheIsBounded(t *testing.T) {
	c := &SchemaCache{Dir: filepath.Join(t.TempDir(), "schema")}
	key := func(i int) string { return fmt.Sprint("key ", i) }
	for i := range maxRemembered + 9 {
		c.write(key(i), someAnswers("x"))
		at := time.Now().Add(time.Duration(i-1000) * time.Minute)
		if err := os.Chtimes(filepath.Join(c.Dir, c.name(key(i))), at, at); err != nil {
			t.Fatal(err)
		}
	}
	left, young := filepath.Join(c.Dir, ".new1"), filepath.Join(c.Dir, ".new2")
	write(t, left, "half", 0o600)
	write(t, young, "half", 0o600)
	if err := os.Chtimes(left, time.Now(), time.Now().Add(-2*forgotten)); err != nil {
		t.Fatal(err)
	}
	c.write("last", someAnswers("x"))
	entries, err := os.ReadDir(c.Dir)
	if err != nil || len(entries) != maxRemembered+1 {
		t.Errorf("%d files, %v; want %d and the one that is being written", len(entries), err, maxRemembered)
	}
	if c.read(key(0)) != nil || c.read(key(maxRemembered+8)) == nil || c.read("last") == nil {
		t.Error("the oldest is there, or the newest is not")
	}
	big := someAnswers("x")
	big.info.Description = strings.Repeat("x", maxDescription)
	c.write("big", big)
	if _, err := os.Stat(filepath.Join(c.Dir, c.name("big"))); err == nil {
		t.Error("it keeps what it would not read")
	}
}

// A plugin is asked what it is once, and again when it has changed.
func TestAPluginIsAskedOnce(t *testing.T) {
	r := newRig(t, nil)
	r.o.Schemas = &SchemaCache{Dir: filepath.Join(t.TempDir(), "schema")}
	if d, err := r.Remembered(t.Context(), "good"); d != nil || err != nil {
		t.Fatalf("before it ever ran: %+v", d)
	}
	var pe *Error
	if d, err := r.Remembered(t.Context(), "nowhere"); d != nil || !errors.As(err, &pe) || pe.Hint == "" {
		t.Errorf("one that is not there: %+v, %v, want the reason and a remedy", d, err)
	}
	first := described(t, r, false)
	again := described(t, r, true)
	without, err := r.Remembered(t.Context(), "good")
	if err != nil || without == nil || fmt.Sprint(first) != fmt.Sprint(again) || fmt.Sprint(first) != fmt.Sprint(without) {
		t.Errorf("asked %+v, remembered %+v, not started %+v", first, again, without)
	}
	// The same program by another name is another plugin.
	if d, err := r.Remembered(t.Context(), "crash-fetch"); d != nil || err != nil {
		t.Errorf("the plugin of another name: %+v", d)
	}
	// Another core may get another answer.
	r.o.Version = "2"
	if d, err := r.Remembered(t.Context(), "good"); d != nil || err != nil {
		t.Errorf("what it said to another version: %+v", d)
	}
	r.o.Version = "1"
	// What its operator does not allow is refused all the same.
	for i := range r.o.Finder.Host.Plugins {
		r.o.Finder.Host.Plugins[i].Allow = []string{"network"}
	}
	p, err := r.Start(t.Context(), "good")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := r.Describe(t.Context(), p); err == nil || !strings.Contains(err.Error(), "its operator does not allow") {
		t.Errorf("error %v", err)
	}
}

// described breaks the connection first if nothing is to be asked.
func described(t *testing.T, r *rig, deaf bool) *Description {
	t.Helper()
	p, err := r.Start(t.Context(), "good")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if deaf {
		_ = p.conn.Close()
	}
	d, err := r.Describe(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestCheckNamesTheLine(t *testing.T) {
	c, _ := cached(t)
	d, err := c.read("key").describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, diags := hclsyntax.ParseConfig([]byte("# first line\npath = \"/x\"\n  pth = true\n"), "job.hcl", hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	diags = d.Check(Part{Service: manifest.Secrets, Body: f.Body})
	if len(diags) != 1 || diags[0].Subject.String() != "job.hcl:3,3-6" || diags[0].Summary != "Unsupported argument" {
		t.Errorf("%v", diags)
	}
	at := hcl.Range{Filename: "job.hcl", Start: hcl.Pos{Line: 7, Column: 1}}
	diags = d.Check(Part{Service: manifest.Secrets, At: at})
	if len(diags) != 1 || *diags[0].Subject != at || !strings.Contains(diags[0].Detail, `Plugin "x" wants it in config { … } in its block of the job.`) {
		t.Errorf("no body: %v", diags)
	}
	if diags := d.Check(Part{}); len(diags) > 0 {
		t.Errorf("the operator's, of which it wants none: %v", diags)
	}
}
