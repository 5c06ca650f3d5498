package fs

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

func planWithSecrets() *plan.Plan {
	return &plan.Plan{
		Root: plan.Root{Kind: plan.RootToolchain, Size: 1 << 20}, IDs: plan.IDs{Kind: "none"},
		Mounts: []plan.Mount{{
			Mount: specs.Mount{Destination: "/run/secrets", Type: "ramfs", Source: "secrets", Options: []string{"ro", "nosuid", "nodev", "noexec", "mode=0755"}},
			Kind:  plan.MountSecrets, Origin: `secret["a"]`, Mode: 0o755,
		}},
		Secrets: []plan.Secret{
			{Name: "a", Target: "/run/secrets/a", Mode: 0o400, UID: 7, GID: 8, Origin: `secret["a"]`},
			{Name: "v", Env: "V", UID: 7, GID: 8, Origin: `secret["v"]`},
			{Name: "b", Target: "/run/secrets/d/b", Mode: 0o440, UID: 7, GID: 8, Origin: `secret["b"]`},
		},
	}
}

// TestSecretsAreWrittenBeforeTheirMountIsReadOnly, none of them with a value in
// its operation, and each with its own line of the job.
func TestSecretsAreWrittenBeforeTheirMountIsReadOnly(t *testing.T) {
	p, err := Prepare(t.Context(), planWithSecrets(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(p.Ops, func(o initproto.Op) bool { return o.Target == "/run/secrets" })
	ops, origins := p.Ops[at:at+5], p.Origins[at:at+5]
	flags := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)
	want := []initproto.Op{
		{Code: initproto.OpMount, FD: -1, Set: flags, Target: "/run/secrets", FSType: "ramfs", Data: "mode=0755"},
		{Code: initproto.OpOwner, FD: -1, Mode: 0o755, Target: "/run/secrets"},
		{Code: initproto.OpSecret, FD: -1, Mode: 0o400, UID: 7, GID: 8, Target: "/run/secrets/a"},
		{Code: initproto.OpSecret, FD: -1, Mode: 0o440, UID: 7, GID: 8, Target: "/run/secrets/d/b"},
		{Code: initproto.OpAttr, FD: -1, Set: flags | unix.MOUNT_ATTR_RDONLY, Target: "/run/secrets"},
	}
	if !slices.Equal(ops, want) {
		t.Errorf("%+v", ops)
	}
	if got := strings.Join(origins, " "); got != `secret["a"] secret["a"] secret["a"] secret["b"] secret["a"]` {
		t.Error(got)
	}
	if len(p.SecretOps) != 2 || p.SecretOps["a"] != at+2 || p.SecretOps["b"] != at+3 {
		t.Errorf("%v, operations from %d", p.SecretOps, at)
	}
}

// TestTheAuditSeesSecretsThatAreLessProtected than planned.
func TestTheAuditSeesSecretsThatAreLessProtected(t *testing.T) {
	p, err := Prepare(t.Context(), planWithSecrets(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	const root = "/ ro,nosuid,nodev,relatime tmpfs"
	for line, want := range map[string]string{
		"/run/secrets ro,nosuid,nodev,noexec,relatime ramfs":                                     "",
		"/run/secrets rw,nosuid,nodev,noexec ramfs":                                              "/run/secrets: mounted rw,nosuid,nodev,noexec, want ro,nosuid,nodev,noexec",
		"/run/secrets ro,nosuid,nodev ramfs":                                                     "/run/secrets: mounted ro,nosuid,nodev, want ro,nosuid,nodev,noexec",
		"/run/secrets ro,nosuid,noexec ramfs":                                                    "/run/secrets: mounted ro,nosuid,noexec, want ro,nosuid,nodev,noexec",
		"/run/secrets ro,nodev,noexec ramfs":                                                     "/run/secrets: mounted ro,nodev,noexec, want ro,nosuid,nodev,noexec",
		"/run/secrets ro,nosuid,nodev,noexec tmpfs":                                              "/run/secrets: file system tmpfs, want ramfs",
		"/run/secret ro,nosuid,nodev,noexec ramfs":                                               "/run/secrets: no mount; /run/secret: a mount that nobody asked for (ramfs)",
		"/run/secrets ro,nosuid,nodev,noexec ramfs\n/run/secrets/a ro,nosuid,nodev,noexec tmpfs": "/run/secrets/a: a mount that nobody asked for (tmpfs)",
	} {
		bad, err := p.Audit(strings.NewReader(mountTable(append([]string{root}, strings.Split(line, "\n")...)...)))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(bad, "; "); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", line, got, want)
		}
	}
}
