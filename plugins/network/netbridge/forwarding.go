package netbridge

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/dump"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// everywhere stands for all interfaces in setOpened; no interface has such a name.
const everywhere = "all"

const sysctls = "/proc/sys/net"

// opening is what has to change for packets to go from a sandbox out and back.
type opening struct {
	family string // "4", "6"
	name   string // of the interface, or everywhere
	file   string
}

// openings finds them. IPv4 asks the interface by which a packet comes in, so that
// those with routes are enough. IPv6 asks one switch for all before Linux 6.17, which
// has force_forwarding for each.
func (h *host) openings(have links) ([]opening, error) {
	var out []opening
	for _, f := range []struct {
		suffix string
		family int
		dir    string
	}{{"4", netlink.FAMILY_V4, "ipv4"}, {"6", netlink.FAMILY_V6, "ipv6"}} {
		if f.suffix == "6" && !h.v6 {
			continue
		}
		all := filepath.Join(sysctls, f.dir, "conf/all/forwarding")
		if sysctl(all) == "1" {
			continue
		}
		file := "forwarding"
		if f.suffix == "6" {
			file = "force_forwarding"
			if _, err := os.Stat(filepath.Join(sysctls, "ipv6/conf/all", file)); errors.Is(err, fs.ErrNotExist) {
				out = append(out, opening{"6", everywhere, all})
				continue
			}
		}
		devs, err := h.routed(f.family, have)
		if err != nil {
			return nil, err
		}
		for name := range have.bridges {
			if f.suffix == "6" {
				devs = append(devs, name)
			}
		}
		for _, name := range devs {
			path := filepath.Join(sysctls, f.dir, "conf", name, file)
			if sysctl(path) == "0" {
				out = append(out, opening{f.suffix, name, path})
			}
		}
	}
	return out, nil
}

// routed are the names of interfaces by which there are routes.
func (h *host) routed(family int, have links) ([]string, error) {
	routes, err := dump.Whole(func() ([]netlink.Route, error) { return h.route.RouteList(nil, family) })
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	seen := make(map[int]bool)
	var out []string
	for _, r := range routes {
		for _, i := range append([]int{r.LinkIndex}, hops(r)...) {
			if name := have.others[i]; name != "" && !seen[i] {
				out = append(out, name)
			}
			seen[i] = true
		}
	}
	return out, nil
}

func hops(r netlink.Route) []int {
	var out []int
	for _, n := range r.MultiPath {
		out = append(out, n.LinkIndex)
	}
	return out
}

func sysctl(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}

func setSysctl(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// forward lets packets pass this host, as far as they do not yet. What is changed is
// noted in our tables first, so that whoever removes the last sandbox can undo it, and
// at the bridge: "flush ruleset" is how many hosts reload their own rules.
func (h *host) forward(c *change, have links, bridge int) error {
	todo, err := h.openings(have)
	if err != nil || len(todo) == 0 {
		return err
	}
	var advertised, notes []string
	note := func(set, name string) {
		c.elements(c.in(names(set)), nftables.SetElement{Key: ifname(name)})
		notes = append(notes, notePrefix+set+"-"+name)
	}
	for _, o := range todo {
		note(setOpened+o.family, o.name)
		if o.name != everywhere {
			continue
		}
		c.rule(c.inet, chainStrangers, inet6().only(), drop())
		// A router takes no advertisements, and the default route that came by one would
		// go at once, unless it is told to.
		for _, path := range glob("ipv6/conf/*/accept_ra") {
			if sysctl(path) == "1" {
				name := filepath.Base(filepath.Dir(path))
				advertised = append(advertised, path)
				note(setAsked, name)
			}
		}
	}
	if err := c.commit(); err != nil {
		return fmt.Errorf("noting which interfaces are to forward: %w", err)
	}
	for _, n := range notes {
		err := h.route.LinkAddAltName(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: bridge}}, n)
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EOPNOTSUPP) { // Linux 5.5
			return fmt.Errorf("noting which interfaces are to forward: %w", err)
		}
	}
	for _, path := range advertised {
		if err := setSysctl(path, "2"); err != nil {
			return cannotForward(path, err)
		}
	}
	for _, o := range todo {
		if err := setSysctl(o.file, "1"); err != nil {
			return cannotForward(o.file, err)
		}
	}
	return nil
}

// notePrefix begins the alternative names of a bridge that say what is in which set.
const notePrefix = "nucleus-"

// noted gives what is in a set, or was by what bridges say.
func (c *change) noted(set string, have links) []string {
	out := c.interfaces(set)
	for _, b := range have.bridges {
		for _, alt := range b.Attrs().AltNames {
			if name, ok := strings.CutPrefix(alt, notePrefix+set+"-"); ok && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

// passOn has another bridge say what this one says, which is about to go.
func (h *host) passOn(from netlink.Link, have links, used map[int]bool) error {
	for _, to := range have.bridges {
		if !used[to.Attrs().Index] {
			continue
		}
		for _, alt := range from.Attrs().AltNames {
			if !strings.HasPrefix(alt, notePrefix) {
				continue
			}
			// The kernel has each name once.
			if err := errors.Join(h.route.LinkDelAltName(from, alt), h.route.LinkAddAltName(to, alt)); err != nil {
				return fmt.Errorf("noting at %s which interfaces are to forward: %w", to.Attrs().Name, err)
			}
		}
		return nil
	}
	return nil
}

func glob(pattern string) []string {
	paths, err := filepath.Glob(filepath.Join(sysctls, pattern))
	if err != nil {
		return nil
	}
	return paths
}

func cannotForward(path string, err error) error {
	name := strings.ReplaceAll(strings.TrimPrefix(path, "/proc/sys/"), "/", ".")
	return errs.Preconditionf("this host does not forward packets, and the plugin may not change that: run sysctl -w %s=1: %w", name, err)
}

// closeAgain puts back what forward has changed. Who has changed it since meant it:
// what is not as forward left it stays.
func (c *change) closeAgain(have links) error {
	var failed []error
	restore := func(path, from, to string) {
		if sysctl(path) == from {
			if err := setSysctl(path, to); err != nil {
				failed = append(failed, err)
			}
		}
	}
	for _, name := range c.noted(setOpened+"4", have) {
		restore(filepath.Join(sysctls, "ipv4/conf", name, "forwarding"), "1", "0")
	}
	for _, name := range c.noted(setOpened+"6", have) {
		file := "force_forwarding"
		if name == everywhere {
			file = "forwarding"
		}
		restore(filepath.Join(sysctls, "ipv6/conf", name, file), "1", "0")
	}
	for _, name := range c.noted(setAsked, have) {
		restore(filepath.Join(sysctls, "ipv6/conf", name, "accept_ra"), "2", "1")
	}
	return errors.Join(failed...)
}

// interfaces reads a set of their names.
func (c *change) interfaces(set string) []string {
	elements, err := c.GetSetElements(c.in(names(set)))
	if err != nil {
		return nil
	}
	out := make([]string, 0, len(elements))
	for _, e := range elements {
		name, _, _ := bytes.Cut(e.Key, []byte{0})
		out = append(out, string(name))
	}
	return out
}
