package host

import (
	"path"
	"reflect"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

func TestToolchainLayouts(t *testing.T) {
	dir := func(p string) fact.HostPath { return fact.HostPath{Path: p, Dir: true} }
	file := func(p string) fact.HostPath { return fact.HostPath{Path: p} }
	link := func(p, to string) fact.HostPath { return fact.HostPath{Path: p, Link: to} }
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  []fact.HostPath
	}{
		{
			"merged usr",
			map[string]string{
				"/usr/bin": "/", "/bin": "->usr/bin", "/lib64": "->usr/lib64", "/opt": "/",
				"/etc/os-release": "->../usr/lib/os-release", "/etc/ld.so.cache": "x",
				"/etc/java-17-openjdk": "/", "/etc/python3": "/", "/etc/python3.11": "/",
			},
			[]fact.HostPath{
				dir("/usr"), link("/bin", "usr/bin"), link("/lib64", "usr/lib64"), dir("/opt"),
				dir("/etc/java-17-openjdk"), file("/etc/ld.so.cache"), link("/etc/os-release", "../usr/lib/os-release"),
				dir("/etc/python3"), dir("/etc/python3.11"),
			},
		},
		{
			"split usr",
			map[string]string{"/usr": "/", "/bin": "/", "/sbin": "/", "/lib": "/"},
			[]fact.HostPath{dir("/usr"), dir("/bin"), dir("/sbin"), dir("/lib")},
		},
		{
			"NixOS",
			map[string]string{
				"/usr/bin/env": "x", "/nix/store/abc-system/sw": "/", "/nix/var/nix/daemon-socket/socket": "x", "/nix/var/nix/profiles": "/",
				"/run/current-system": "->/nix/store/abc-system", "/etc/static": "->/nix/store/abc-etc", "/etc/ssl/certs": "->/etc/static/ssl/certs",
			},
			[]fact.HostPath{
				dir("/usr"), dir("/nix/store"), dir("/nix/var/nix/profiles"), link("/run/current-system", "/nix/store/abc-system"),
				link("/etc/static", "/nix/store/abc-etc"), link("/etc/ssl/certs", "/etc/static/ssl/certs"),
			},
		},
		{
			"Guix",
			map[string]string{"/gnu/store/abc": "/", "/var/guix/profiles": "/", "/run/current-system": "->/var/guix/profiles/system"},
			[]fact.HostPath{dir("/gnu/store"), dir("/var/guix/profiles"), link("/run/current-system", "/var/guix/profiles/system")},
		},
		{
			"a link that leaves the toolchain brings its content",
			map[string]string{"/usr": "/", "/opt": "->/data/opt", "/data/opt/tool": "x"},
			// The target is absolute, so under the fake root it dangles.
			[]fact.HostPath{dir("/usr")},
		},
		{
			"the same, relative",
			map[string]string{"/usr": "/", "/opt": "->data/opt", "/data/opt/tool": "x"},
			[]fact.HostPath{dir("/usr"), {Path: "/opt", Source: "/data/opt", Dir: true}},
		},
		{
			"a link to what must stay out is dropped",
			map[string]string{"/usr": "/", "/etc/magic": "->shadow", "/etc/shadow": "root:secret"},
			[]fact.HostPath{dir("/usr")},
		},
		{
			"a dangling link is dropped",
			map[string]string{"/usr": "/", "/opt": "->nowhere"},
			[]fact.HostPath{dir("/usr")},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := toolchain(fakeRoot(t, tc.files)); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

func TestToolchainNeverShowsSecrets(t *testing.T) {
	secrets := []string{
		"/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/ssh/ssh_host_ed25519_key", "/etc/sudoers", "/etc/sudoers.d/x",
		"/etc/ssl/private/key.pem", "/etc/pki/tls/private/key.pem", "/etc/machine-id", "/etc/krb5.keytab", "/etc/environment",
		"/etc/ld.so.preload", "/etc/npmrc", "/etc/pip.conf", "/etc/gitconfig", "/etc/maven/settings.xml", "/etc/nginx/htpasswd",
		"/etc/nginx/nginx.conf", "/etc/apt/auth.conf", "/etc/redis/redis.conf", "/etc/postgresql/15/main/pg_hba.conf",
		"/etc/security/opasswd", "/etc/wireguard/wg0.conf", "/etc/NetworkManager/system-connections/x",
		"/nix/var/nix/daemon-socket/socket", "/run/wrappers/bin/sudo", "/root/.ssh/id", "/home/a/.netrc",
		"/etc/passwd", "/etc/group", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf",
	}
	files := map[string]string{"/usr": "/", "/etc/ssl/certs": "/", "/etc/maven/m2.conf": "x", "/etc/nginx/mime.types": "x"}
	for _, s := range secrets {
		files[s] = "secret"
	}
	shown := toolchain(fakeRoot(t, files))
	for _, hp := range shown {
		for _, s := range secrets {
			if s == hp.Path || strings.HasPrefix(s, hp.Path+"/") {
				t.Errorf("%s shows %s", hp.Path, s)
			}
		}
	}
	if len(shown) != 4 {
		t.Errorf("shown: %+v", shown)
	}
}

func TestToolchainTable(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range toolchainTable {
		if e.reason == "" {
			t.Errorf("%s has no reason", e.path)
		}
		if seen[e.path] {
			t.Errorf("%s is there twice", e.path)
		}
		seen[e.path] = true
		// One listing of /etc serves all patterns.
		if strings.Contains(e.path, "*") && (path.Dir(e.path) != "/etc" || !strings.HasSuffix(e.path, "*")) {
			t.Errorf("pattern %s is not a prefix in /etc", e.path)
		}
	}
}
