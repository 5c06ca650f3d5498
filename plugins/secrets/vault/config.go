// Package vault gives secrets that a Vault server keeps: of its key-value engines,
// and of those that make credentials on demand and lease them.
package vault

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/safefile"
)

// Config is the operator's part. Nothing is taken from variables such as VAULT_ADDR:
// one of them turns the check of certificates off.
type Config struct {
	Address   string   `hcl:"address" desc:"URL of the server; https, but for a loopback address"`
	Namespace string   `hcl:"namespace,optional" desc:"namespace to log in to (Vault Enterprise, OpenBao)"`
	Allow     []string `hcl:"allow,optional" desc:"paths that jobs may read, as MOUNT/PATH below the namespace; a * at the end stands for anything; default: whatever the token's policies allow"`
	TLS       *TLS     `hcl:"tls,block" desc:"how the server is known, and how it knows us"`
	Token     *Token   `hcl:"token,block" desc:"log in with a token that somebody else keeps alive"`
	AppRole   *AppRole `hcl:"approle,block" desc:"log in with a role's id and secret id"`
	JWT       *JWT     `hcl:"jwt,block" desc:"log in with a JSON Web Token"`
}

// TLS says how the server is known, and how it knows us.
type TLS struct {
	CAFile     string `hcl:"ca_file,optional" desc:"PEM file of the authorities to trust instead of the host's"`
	CertFile   string `hcl:"cert_file,optional" desc:"PEM file of the client's certificate"`
	KeyFile    string `hcl:"key_file,optional" desc:"PEM file of the client's key, private"`
	ServerName string `hcl:"server_name,optional" desc:"name in the server's certificate, if it is not the address's"`
}

// Token is a login that has happened elsewhere. Such a token is not revoked.
type Token struct {
	File string `hcl:"file" desc:"private file with the token, read again at each fetch"`
}

// AppRole is a login of a machine.
type AppRole struct {
	Mount        string `hcl:"mount,optional" desc:"where the method is mounted below auth/; default: approle"`
	RoleID       string `hcl:"role_id" desc:"the role's id"`
	SecretIDFile string `hcl:"secret_id_file" desc:"private file with the role's secret id, read at each login"`
}

// JWT is a login by somebody else's word.
type JWT struct {
	Mount string `hcl:"mount,optional" desc:"where the method is mounted below auth/; default: jwt"`
	Role  string `hcl:"role" desc:"the role"`
	File  string `hcl:"file" desc:"private file with the token, read at each login"`
}

// Instance is one secret.
type Instance struct {
	Engine    string `hcl:"engine,optional" desc:"kv2, kv1, or dynamic for what is leased; default: kv2"`
	Mount     string `hcl:"mount,optional" desc:"where the engine is mounted; default: secret"`
	Path      string `hcl:"path" desc:"path below the mount, without the data/ of kv2"`
	Field     string `hcl:"field,optional" desc:"field of what is there; default: value"`
	Version   int    `hcl:"version,optional" desc:"version of a kv2 secret; default: the newest"`
	Namespace string `hcl:"namespace,optional" desc:"namespace below the operator's"`
}

// The engines.
const (
	kv1     = "kv1"
	kv2     = "kv2"
	dynamic = "dynamic"
)

func (c Config) check() error {
	u, err := url.Parse(c.Address)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Scheme != "https" && u.Scheme != "http") {
		return fault.Config("address", "write it as in \"https://vault.example.com:8200\"", "it is no URL of a server")
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		return fault.Config("address", "write https: anybody on the way could read the secrets", "%q is not encrypted", c.Address)
	}
	if err := checkPath("namespace", c.Namespace, true); err != nil {
		return err
	}
	for i, pattern := range c.Allow {
		if err := checkPath(fmt.Sprintf("allow[%d]", i), strings.TrimRight(pattern, "/*"), true); err != nil || strings.Contains(strings.TrimSuffix(pattern, "*"), "*") {
			return fault.Config(fmt.Sprintf("allow[%d]", i), "write MOUNT/PATH, or MOUNT/PREFIX*", "%q is no path", pattern)
		}
	}
	if err := c.checkTLS(); err != nil {
		return err
	}
	return c.checkAuth()
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

func (c Config) checkTLS() error {
	if c.TLS == nil {
		return nil
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		return fault.Config("tls.cert_file", "write both cert_file and key_file", "a certificate and its key belong together")
	}
	for attr, path := range map[string]string{"tls.ca_file": c.TLS.CAFile, "tls.cert_file": c.TLS.CertFile, "tls.key_file": c.TLS.KeyFile} {
		if path == "" {
			continue
		}
		if err := safefile.Path(attr, path); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) checkAuth() error {
	n := 0
	for _, is := range []bool{c.Token != nil, c.AppRole != nil, c.JWT != nil} {
		if is {
			n++
		}
	}
	switch {
	case n != 1:
		return fault.New(fault.InvalidArgument, "write one block of token, approle and jwt", "there are %d ways to log in", n)
	case c.Token != nil:
		return safefile.Path("token.file", c.Token.File)
	case c.AppRole != nil:
		if c.AppRole.RoleID == "" {
			return fault.Config("approle.role_id", "vault read auth/approle/role/NAME/role-id tells it", "it is empty")
		}
		if err := checkPath("approle.mount", c.AppRole.Mount, true); err != nil {
			return err
		}
		return safefile.Path("approle.secret_id_file", c.AppRole.SecretIDFile)
	}
	if err := checkPath("jwt.mount", c.JWT.Mount, true); err != nil {
		return err
	}
	return safefile.Path("jwt.file", c.JWT.File)
}

// checkPath refuses what the client would clean into another path.
func checkPath(attr, p string, optional bool) error {
	if p == "" && optional {
		return nil
	}
	bad := func(s string) bool {
		return s == "" || s == "." || s == ".." || strings.ContainsFunc(s, unicode.IsControl)
	}
	if slices.ContainsFunc(strings.Split(p, "/"), bad) {
		return fault.Config(attr, "write it as in \"app/db\": no slash at its ends, no . and ..", "%q is no path in Vault", p)
	}
	return nil
}

// reserved are mounts that Vault itself has. Jobs would read the provider's own token
// there, or what belongs to it (auth/token/lookup-self).
var reserved = []string{"auth", "sys", "identity", "cubbyhole"}

// target is an Instance that was looked through.
type target struct {
	at    location
	field string
}

// location is what one request reads: secrets that are fields of one answer come from
// the same version, and share their lease.
type location struct{ engine, namespace, path, version string }

func (c Config) target(i Instance) (target, error) {
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	i.Engine, i.Mount, i.Field = or(i.Engine, kv2), or(i.Mount, "secret"), or(i.Field, "value")
	if !slices.Contains([]string{kv1, kv2, dynamic}, i.Engine) {
		return target{}, fault.Config("engine", "write kv2, kv1 or dynamic", "there is no engine %q", i.Engine)
	}
	for attr, p := range map[string]string{"mount": i.Mount, "path": i.Path} {
		if err := checkPath(attr, p, false); err != nil {
			return target{}, err
		}
		// A namespace may stand in front of a path, so the first segment alone says
		// nothing. Below the data/ of kv2 any name is a secret's.
		for _, segment := range strings.Split(p, "/") {
			if slices.Contains(reserved, segment) && (attr == "mount" || i.Engine != kv2) {
				return target{}, fault.Config(attr, "keep the secret in an engine of its own, at another path", "%q: Vault's own %s holds no secrets of jobs", p, segment)
			}
		}
	}
	if err := checkPath("namespace", i.Namespace, true); err != nil {
		return target{}, err
	}
	if i.Version < 0 || i.Version > 0 && i.Engine != kv2 {
		return target{}, fault.Config("version", "leave it out, or name a version of a kv2 secret", "%d is none", i.Version)
	}
	t := target{field: i.Field, at: location{engine: i.Engine, namespace: i.Namespace, path: i.Mount + "/" + i.Path}}
	if named := strings.TrimPrefix(i.Namespace+"/"+t.at.path, "/"); !c.allows(named) {
		return target{}, &fault.Error{
			Code: fault.PermissionDenied, Attr: "path", Err: fmt.Errorf("%q is not allowed", named),
			Hint: fmt.Sprintf("the operator allows it with allow = [%q] in the host configuration", named),
		}
	}
	if i.Engine == kv2 {
		t.at.path = i.Mount + "/data/" + i.Path
	}
	if i.Version > 0 {
		t.at.version = strconv.Itoa(i.Version)
	}
	return t, nil
}

func (c Config) allows(path string) bool {
	return len(c.Allow) == 0 || slices.ContainsFunc(c.Allow, func(pattern string) bool {
		prefix, open := strings.CutSuffix(pattern, "*")
		return path == pattern || open && strings.HasPrefix(path, prefix)
	})
}
