package pluginhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/core/trusted"
)

// Prefix of a plugin's file name: plugin "x" is nucleus-plugin-x unless the host
// configuration names another file.
const Prefix = "nucleus-plugin-"

// Error is a plugin that cannot be used. Parts of it may be the plugin's own words;
// they are fit to show.
type Error struct {
	Plugin string
	Err    error
	Hint   string
}

func (e *Error) Error() string { return fmt.Sprintf("plugin %q: %s", e.Plugin, shown(e.Err.Error())) }
func (e *Error) Unwrap() error { return e.Err }

// Remedy is what to do about it, "" if that is not known.
func (e *Error) Remedy() string { return e.Hint }

// Program is a plugin's file, open and verified: what is executed is this
// descriptor, whatever becomes of the path.
type Program struct {
	Name   string
	Path   string
	File   *os.File
	Digest string // of the content: 64 hexadecimal digits
	Pinned bool   // the host configuration names the digest
	Host   hostconfig.Plugin
}

// Close closes the file.
func (p *Program) Close() error { return p.File.Close() }

// Finder looks for plugins.
type Finder struct {
	Dirs    []string // in their order
	Host    *hostconfig.Config
	Digests *DigestCache
	// PinnedOnly refuses a plugin whose digest the host configuration does not name.
	PinnedOnly bool
}

// Find opens and verifies the program of a plugin. It looks in the plugin
// directories and nowhere else: not in PATH, not in the working directory.
func (f *Finder) Find(name string) (*Program, error) {
	host, listed := f.Host.Plugin(name)
	if host.Caps == nil && os.Geteuid() == 0 {
		host.Caps = given[name]
	}
	file := host.Path
	if file == "" {
		file = Prefix + name
	}
	if err := f.pinned(name, f.PinnedOnly); err != nil {
		return nil, err
	}
	for _, dir := range f.Dirs {
		p, err := f.open(dir, file, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, describe(name, err)
		}
		p.Host = host
		if err := p.verify(f.Digests, listed && len(host.SHA256) > 0); err != nil {
			_ = p.Close()
			return nil, err
		}
		return p, nil
	}
	hint := "install it there, or name its directory in the host configuration: plugin_dirs"
	if all, err := f.List(); err == nil {
		if all = slices.DeleteFunc(all, func(n string) bool { return n == name }); len(all) > 0 {
			hint += fmt.Sprintf("; those that are there: %s", shown(strings.Join(all, " ")))
		}
	}
	return nil, &Error{name, fmt.Errorf("no %s in %s", file, strings.Join(f.Dirs, ", ")), hint}
}

// given are the capabilities that a plugin of this project is there for, where its
// operator says nothing of them: the directory that it is found in is his.
var given = map[string][]string{"netbridge": {"CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"}}

// pinned refuses a plugin that must have a pin and has none.
func (f *Finder) pinned(name string, must bool) error {
	if host, _ := f.Host.Plugin(name); must && len(host.SHA256) == 0 {
		return &Error{name, errors.New("the mode wants its digest in the host configuration"), "nucleus plugin pin " + name}
	}
	return nil
}

func (f *Finder) open(dir, file, name string) (*Program, error) {
	d, err := trusted.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	program, err := d.Executable(file)
	if err != nil {
		return nil, err
	}
	return &Program{Name: name, Path: filepath.Join(dir, file), File: program}, nil
}

func describe(name string, err error) error {
	e := &Error{Plugin: name, Err: err}
	var te *trusted.Error
	if errors.As(err, &te) {
		e.Hint = te.Remedy()
	}
	return e
}

// verify hashes what is open and compares it with the pins.
func (p *Program) verify(cache *DigestCache, pinned bool) error {
	digest, err := cache.Of(p.File)
	if err != nil {
		return &Error{p.Name, fmt.Errorf("hashing %s: %w", p.Path, err), ""}
	}
	p.Digest, p.Pinned = digest, pinned
	if pinned && !slices.Contains(p.Host.SHA256, digest) {
		return &Error{
			p.Name, fmt.Errorf("%s has the SHA-256 %s, the host configuration wants %s", p.Path, digest, strings.Join(p.Host.SHA256, " or ")),
			"if you changed it on purpose: nucleus plugin pin " + p.Name,
		}
	}
	return nil
}

// DigestOf gives the digest of a plugin that need not have the pinned one.
func (f *Finder) DigestOf(name string) (string, error) {
	free := *f
	host := *f.Host
	host.Plugins = slices.Clone(f.Host.Plugins)
	for i := range host.Plugins {
		host.Plugins[i].SHA256 = nil
	}
	free.Host, free.PinnedOnly = &host, false
	p, err := free.Find(name)
	if err != nil {
		return "", err
	}
	return p.Digest, p.Close()
}

// List gives the names of all plugins that the directories hold, by their file
// names, and of those that the host configuration names. That one is listed does
// not mean that it is good.
func (f *Finder) List() ([]string, error) {
	var names []string
	var errs []error
	for _, dir := range f.Dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
			continue
		}
		for _, e := range entries {
			if name, ok := strings.CutPrefix(e.Name(), Prefix); ok && name != "" {
				names = append(names, name)
			}
		}
	}
	for _, p := range f.Host.Plugins {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return slices.Compact(names), errors.Join(errs...)
}
