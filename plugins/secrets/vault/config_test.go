package vault

import (
	"errors"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
)

func TestConfigurationsAreChecked(t *testing.T) {
	good := func() Config { return Config{Address: "https://vault:8200", Token: &Token{File: "/t"}} }
	for _, address := range []string{"https://vault:8200", "https://vault/prefix", "http://127.0.0.1:8200", "http://[::1]:8200", "http://localhost"} {
		c := good()
		c.Address = address
		if _, err := New(c); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	for _, c := range []struct {
		attr string
		with func(c *Config)
	}{
		{"address", func(c *Config) { c.Address = "" }},
		{"address", func(c *Config) { c.Address = "vault:8200" }},
		{"address", func(c *Config) { c.Address = "http://vault:8200" }},
		{"address", func(c *Config) { c.Address = "http://127.0.0.1.example.com" }},
		{"address", func(c *Config) { c.Address = "https://me:s3cret@vault" }},
		{"namespace", func(c *Config) { c.Namespace = "a/../b" }},
		{"allow[1]", func(c *Config) { c.Allow = []string{"secret/app/*", "secret/*/x"} }},
		{"tls.cert_file", func(c *Config) { c.TLS = &TLS{KeyFile: "/k"} }},
		{"tls.ca_file", func(c *Config) { c.TLS = &TLS{CAFile: "ca"} }},
		{"token.file", func(c *Config) { c.Token.File = "t" }},
		{"", func(c *Config) { c.Token = nil }},
		{"", func(c *Config) { c.JWT = &JWT{} }},
		{"approle.role_id", func(c *Config) { c.Token, c.AppRole = nil, &AppRole{SecretIDFile: "/s"} }},
		{"approle.mount", func(c *Config) { c.Token, c.AppRole = nil, &AppRole{Mount: "../x", RoleID: "r", SecretIDFile: "/s"} }},
		{"approle.secret_id_file", func(c *Config) { c.Token, c.AppRole = nil, &AppRole{RoleID: "r"} }},
		{"jwt.mount", func(c *Config) { c.Token, c.JWT = nil, &JWT{Mount: "/x", File: "/j"} }},
		{"jwt.file", func(c *Config) { c.Token, c.JWT = nil, &JWT{} }},
	} {
		conf := good()
		c.with(&conf)
		_, err := New(conf)
		var fe *fault.Error
		if !errors.As(err, &fe) || fe.Code != fault.InvalidArgument || fe.Attr != c.attr {
			t.Errorf("%s: %v", c.attr, err)
		}
	}
}

func TestJobsStayWhereTheyMayRead(t *testing.T) {
	p := provider(t, Config{Address: "https://vault", Token: &Token{File: "/t"}, Allow: []string{"secret/app/*", "secret/one", "team/kv/*"}})
	free := provider(t, Config{Address: "https://vault", Token: &Token{File: "/t"}})
	for _, i := range []Instance{{Path: "app/db"}, {Path: "app/auth/sys"}, {Path: "one"}, {Engine: kv1, Mount: "kv", Path: "x", Namespace: "team"}} {
		if err := p.Configure("i", i); err != nil {
			t.Errorf("%+v: %v", i, err)
		}
	}
	for _, i := range []Instance{{Path: "app"}, {Path: "apps/db"}, {Path: "one/two"}, {Path: "app/db", Namespace: "team"}, {Engine: kv1, Mount: "kv", Path: "x"}} {
		if err := p.Configure("i", i); fault.Of(err) != fault.PermissionDenied {
			t.Errorf("%+v: %v", i, err)
		}
	}
	for _, c := range []struct {
		attr string
		i    Instance
	}{
		{"path", Instance{}},
		{"path", Instance{Path: "../../auth/token/lookup-self"}},
		{"path", Instance{Path: "a//b"}},
		{"path", Instance{Path: "a/./b"}},
		{"path", Instance{Path: "/a"}},
		{"path", Instance{Path: "a\n"}},
		{"path", Instance{Engine: dynamic, Mount: "team", Path: "auth/token/lookup-self"}},
		{"path", Instance{Engine: kv1, Mount: "team", Path: "sys/raw/x"}},
		{"mount", Instance{Engine: dynamic, Mount: "auth/token", Path: "lookup-self"}},
		{"mount", Instance{Mount: "cubbyhole", Path: "x"}},
		{"mount", Instance{Mount: "..", Path: "x"}},
		{"engine", Instance{Engine: "kv3", Path: "x"}},
		{"namespace", Instance{Namespace: "..", Path: "x"}},
		{"version", Instance{Version: -1, Path: "x"}},
		{"version", Instance{Engine: kv1, Version: 1, Path: "x"}},
	} {
		err := free.Configure("i", c.i)
		var fe *fault.Error
		if !errors.As(err, &fe) || fe.Code != fault.InvalidArgument || fe.Attr != c.attr {
			t.Errorf("%+v: %v", c.i, err)
		}
	}
}
