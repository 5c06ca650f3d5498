package host

import (
	"bytes"
	"encoding/binary"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/internal/pathname"
)

// toolEntry is a host path that a sandbox without a rootfs sees, read-only. A
// path may end in "*" to match a prefix of the last element.
type toolEntry struct{ path, reason string }

// toolchainTable is the whole host toolchain root, in mount order. The rule for
// /etc: a program of the distribution fails or misbehaves without it, and no
// site keeps a password, token, key or the machine's identity in it. So not
// here, on purpose: shadow, gshadow, ssh, sudoers, ssl/private, pki/tls/private,
// krb5.keytab, machine-id, environment, profile.d, gitconfig, npmrc, pip.conf,
// wgetrc, curlrc (index URLs and proxies carry passwords), php, nginx, redis and
// postgresql server configuration, apt (auth.conf), docker, ld.so.preload (would
// load the host's agents into every sandbox). passwd, group, hosts, hostname and
// resolv.conf are the sandbox's own.
var toolchainTable = [...]toolEntry{
	{"/usr", "programs, libraries and data of the distribution"},
	{"/bin", "programs; a link to usr/bin on merged layouts"},
	{"/sbin", "programs; a link to usr/sbin on merged layouts"},
	{"/lib", "libraries and the dynamic loader"},
	{"/lib32", "32-bit libraries (Debian multilib)"},
	{"/lib64", "the dynamic loader that every 64-bit ELF names"},
	{"/libx32", "x32 libraries (Debian multilib)"},
	{"/libexec", "helper programs of layouts that keep it at the top"},
	{"/opt", "vendor software"},
	{"/nix/store", "NixOS and Nix: every program and library"},
	{"/nix/var/nix/profiles", "NixOS and Nix: links that make the installed set; not the daemon's socket beside it"},
	{"/gnu/store", "Guix: every program and library"},
	{"/var/guix/profiles", "Guix: links that make the installed set"},
	{"/run/current-system", "NixOS, Guix System: link to the running system's programs"},

	{"/etc/static", "NixOS, Guix System: where the links in /etc lead"},
	{"/etc/alternatives", "Debian, Fedora: targets of the links in /usr/bin (cc, java, editor)"},
	{"/etc/ca-certificates", "Arch, Debian: trust anchors and hooks of the CA bundle"},
	{"/etc/ca-certificates.conf", "Debian: which CAs are trusted"},
	{"/etc/chromium.d/default-flags", "Debian: chromium is a script that does not start without a file here; apikeys beside it stays out"},
	{"/etc/chromium.d/dev-shm", "the same: moves shared memory to /tmp where /dev/shm is small"},
	{"/etc/crypto-policies", "Fedora: included by openssl.cnf, gnutls and java.security"},
	{"/etc/debian_version", "build scripts tell the distribution by it"},
	{"/etc/fonts", "fontconfig: headless browsers render nothing without it"},
	{"/etc/gai.conf", "glibc: order of addresses in getaddrinfo"},
	{"/etc/host.conf", "glibc resolver: honours several addresses in hosts"},
	{"/etc/inputrc", "readline key bindings"},
	{"/etc/java*", "java.security and friends: the JDK does not start without"},
	{"/etc/ld-musl-*", "musl: library search path of the dynamic loader"},
	{"/etc/ld.so.cache", "glibc: library lookup; without it libraries outside the default path are not found"},
	{"/etc/ld.so.conf", "glibc: library search path, read by ldconfig and linkers"},
	{"/etc/ld.so.conf.d", "the same, in parts"},
	{"/etc/locale.alias", "glibc: short names of locales"},
	{"/etc/locale.conf", "systemd: the system's locale"},
	{"/etc/localtime", "time zone; a link into /usr/share/zoneinfo"},
	{"/etc/lsb-release", "build scripts tell the distribution by it"},
	{"/etc/magic", "file(1): local additions"},
	{"/etc/magic.mime", "file(1): local additions"},
	{"/etc/man_db.conf", "Fedora, openSUSE: where man looks; it does not start without"},
	{"/etc/manpath.config", "Debian: the same"},
	{"/etc/maven/logging", "Debian: /usr/share/maven links here; mvn does not start without"},
	{"/etc/maven/m2.conf", "the same; settings.xml beside it may hold passwords and stays out"},
	{"/etc/mime.types", "content types by extension (python, web servers)"},
	{"/etc/netconfig", "libtirpc: transports; RPC clients fail without it"},
	{"/etc/nginx/mime.types", "nginx: included by nearly every configuration; the rest of /etc/nginx stays out"},
	{"/etc/nsswitch.conf", "glibc: files before dns"},
	{"/etc/os-release", "which distribution this is; a link into /usr/lib"},
	{"/etc/perl", "perl: in @INC, and configuration of its libraries"},
	{"/etc/pki/ca-trust/extracted", "Fedora: the CA bundles"},
	{"/etc/pki/java", "Fedora: the JDK's CA bundle"},
	{"/etc/pki/tls/cert.pem", "Fedora: the CA bundle that openssl opens"},
	{"/etc/pki/tls/certs", "Fedora: CA certificates; the private directory beside it stays out"},
	{"/etc/pki/tls/openssl.cnf", "Fedora: openssl does not start some commands without"},
	{"/etc/protocols", "names of IP protocols"},
	{"/etc/python*", "python: sitecustomize and package configuration of the distribution"},
	{"/etc/R", "R: Renviron; R does not start without"},
	{"/etc/redhat-release", "build scripts tell the distribution by it"},
	{"/etc/alpine-release", "build scripts tell the distribution by it"},
	{"/etc/rpc", "names of RPC programs"},
	{"/etc/services", "names of ports"},
	{"/etc/sgml", "catalogues for documentation builds"},
	{"/etc/ssl/ca-bundle.pem", "openSUSE: the CA bundle"},
	{"/etc/ssl/cert.pem", "Alpine, Arch: the CA bundle"},
	{"/etc/ssl/certs", "CA certificates; the private directory beside it stays out"},
	{"/etc/ssl/openssl.cnf", "openssl does not start some commands without"},
	{"/etc/system-release", "build scripts tell the distribution by it"},
	{"/etc/terminfo", "local terminal descriptions (tmux, editors)"},
	{"/etc/timezone", "Debian: name of the time zone, read by java and ruby"},
	{"/etc/xattr.conf", "which extended attributes cp and tar carry over"},
	{"/etc/xml", "catalogues for documentation builds"},
}

// Toolchain looks which host paths a sandbox without a rootfs sees.
func Toolchain(o Options) []fact.HostPath { return toolchain(root(o.Root)) }

// toolchain looks which entries exist. Contents are never read: it costs one
// listing of /etc, whose entries tell their type, and an lstat for each entry
// elsewhere or deeper.
func toolchain(r root) []fact.HostPath {
	out := make([]fact.HostPath, 0, len(toolchainTable))
	var found etcListing
	found.read(r)
	for i, e := range toolchainTable {
		kind := found.kinds[i]
		switch {
		case strings.HasSuffix(e.path, "*"):
			for _, p := range found.matches {
				if strings.HasPrefix(p, strings.TrimSuffix(e.path, "*")) {
					out = appendPath(out, r, p, unix.DT_UNKNOWN)
				}
			}
		case inEtc(e.path) && found.listed:
			if kind != absent {
				out = appendPath(out, r, e.path, kind)
			}
		default:
			out = appendPath(out, r, e.path, unix.DT_UNKNOWN)
		}
	}
	return out
}

// inEtc: p is an entry of /etc itself.
func inEtc(p string) bool {
	name, ok := strings.CutPrefix(p, "/etc/")
	return ok && !strings.Contains(name, "/")
}

// absent is the kind of an entry that was not listed; DT_* are below.
const absent = 0xff

// etcListing is what one pass over /etc found of the table.
type etcListing struct {
	listed  bool
	kinds   [len(toolchainTable)]uint8 // DT_* by entry, absent
	matches []string                   // sorted paths that a pattern matches
}

// read parses the directory itself, as most of its names are of no interest
// and should not cost an allocation each.
func (l *etcListing) read(r root) {
	for i := range l.kinds {
		l.kinds[i] = absent
	}
	fd, err := openRetry(r.path("/etc"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		if n <= 0 {
			break
		}
		for rest := buf[:n]; len(rest) > direntName; {
			size := int(binary.NativeEndian.Uint16(rest[direntSize:]))
			if size <= direntName || size > len(rest) {
				return
			}
			name := rest[direntName:size]
			if end := bytes.IndexByte(name, 0); end > 0 {
				l.take(name[:end], rest[direntType])
			}
			rest = rest[size:]
		}
	}
	slices.Sort(l.matches)
	l.listed = true
}

func (l *etcListing) take(name []byte, kind uint8) {
	const dir = "/etc/"
	for i, e := range toolchainTable {
		if len(e.path) <= len(dir) || e.path[len(dir)] != name[0] || e.path[:len(dir)] != dir {
			continue
		}
		want := e.path[len(dir):]
		if want == string(name) {
			l.kinds[i] = kind
		} else if prefix, ok := strings.CutSuffix(want, "*"); ok && bytes.HasPrefix(name, []byte(prefix)) {
			l.matches = append(l.matches, dir+string(name))
		}
	}
}

// Offsets in struct linux_dirent64, getdents64(2).
const (
	direntSize = 16
	direntType = 18
	direntName = 19
)

// appendPath adds p, if it is something that can be shown: a directory, a
// regular file, or a link that ends at one. kind is a DT_* that is known
// already, or DT_UNKNOWN, as some file systems always say.
func appendPath(out []fact.HostPath, r root, p string, kind uint8) []fact.HostPath {
	if kind == unix.DT_UNKNOWN {
		var st unix.Stat_t
		if err := unix.Lstat(r.path(p), &st); err != nil {
			return out
		}
		kind = uint8(st.Mode & unix.S_IFMT >> 12) // DT_* are the type bits of a mode
	}
	switch kind {
	case unix.DT_DIR:
		return append(out, fact.HostPath{Path: p, Dir: true})
	case unix.DT_REG:
		return append(out, fact.HostPath{Path: p})
	case unix.DT_LNK:
		if hp, ok := linkPath(r, p); ok {
			return append(out, hp)
		}
	}
	return out
}

// linkPath keeps a link as a link if its target is part of the toolchain.
// Otherwise the link would dangle inside, so what it leads to takes its place.
func linkPath(r root, p string) (fact.HostPath, bool) {
	var buf [unix.PathMax]byte
	n, err := unix.Readlink(r.path(p), buf[:])
	if err != nil || n == len(buf) {
		return fact.HostPath{}, false
	}
	link := string(buf[:n])
	target := link
	if !path.IsAbs(target) {
		target = path.Join(path.Dir(p), target)
	}
	if inToolchain(path.Clean(target)) {
		return fact.HostPath{Path: p, Link: link}, true
	}
	source, err := filepath.EvalSymlinks(r.path(p))
	if err != nil {
		return fact.HostPath{}, false
	}
	var st unix.Stat_t
	if err := unix.Lstat(source, &st); err != nil {
		return fact.HostPath{}, false
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return fact.HostPath{}, false
	}
	source = strings.TrimPrefix(source, string(r))
	if secretSource(source) {
		return fact.HostPath{}, false
	}
	return fact.HostPath{Path: p, Source: source, Dir: kind == unix.S_IFDIR}, true
}

func inToolchain(p string) bool {
	for _, e := range toolchainTable {
		if prefix, pattern := strings.CutSuffix(e.path, "*"); pattern {
			if strings.HasPrefix(p, prefix) {
				return true
			}
		} else if pathname.Within(p, e.path) {
			return true
		}
	}
	return false
}

// secretSource refuses what no toolchain link has business to lead to: a
// mistaken link must not turn the table's promise around.
func secretSource(p string) bool {
	for _, dir := range [...]string{"/etc", "/root", "/home", "/proc", "/sys", "/dev", "/boot", "/run", "/tmp", "/var/tmp"} {
		if pathname.Within(p, dir) {
			return true
		}
	}
	return p == "/" || p == "/var" || p == "/var/lib"
}
