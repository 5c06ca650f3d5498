package fs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// tree makes a directory of "path/", "path" and "path -> target" entries.
func makeTree(t testing.TB, entries ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, e := range entries {
		path, target, link := strings.Cut(e, " -> ")
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch {
		case link:
			err = os.Symlink(target, full)
		case strings.HasSuffix(path, "/"):
			err = os.MkdirAll(full, 0o755)
		case strings.HasSuffix(path, "|"):
			err = unix.Mkfifo(strings.TrimSuffix(full, "|"), 0o644)
		default:
			err = os.WriteFile(full, []byte(path), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// listing is everything that could change about a tree.
func listing(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime().UnixNano())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func rootfsPlan(root, kind string, mounts []string, files ...plan.File) *plan.Plan {
	p := &plan.Plan{Root: plan.Root{Kind: kind, Path: root, Size: 1 << 20}, IDs: plan.IDs{Kind: "none"}, Files: files}
	for _, dest := range mounts {
		p.Mounts = append(p.Mounts, plan.Mount{Mount: specs.Mount{Destination: dest, Type: "tmpfs", Options: []string{"nosuid"}}, Kind: plan.MountFS})
	}
	return p
}

// shape tells what the root is composed of, in order.
func shape(ops []initproto.Op) []string {
	var out []string
	for _, o := range ops {
		switch {
		case strings.HasPrefix(o.Target, staging) && o.Code != initproto.OpOverlay:
			continue
		case o.Code == initproto.OpMkdir:
			out = append(out, fmt.Sprintf("dir %s", o.Target))
		case o.Code == initproto.OpSymlink:
			out = append(out, "link "+o.Target+" -> "+o.Source)
		case o.Code == initproto.OpBind && o.Flags&initproto.FlagFile != 0:
			out = append(out, "file "+o.Target+" = "+strings.TrimPrefix(o.Source, lowerDir))
		case o.Code == initproto.OpBind:
			out = append(out, "bind "+o.Target)
		case o.Code == initproto.OpFile:
			out = append(out, "write "+o.Target)
		case o.Code == initproto.OpMount:
			out = append(out, "mount "+o.Target)
		}
	}
	return out
}

func TestRootfsIsComposed(t *testing.T) {
	hosts := plan.File{Path: "/etc/hosts", Content: "own", Mode: 0o644}
	passwd := plan.File{Path: "/etc/passwd", Content: "own", Mode: 0o644, Keep: true}
	for _, c := range []struct {
		name   string
		tree   []string
		mounts []string
		files  []plan.File
		want   []string
	}{
		{"whole directories", []string{"bin/sh", "etc/hosts"}, nil, nil, []string{"bind /bin", "bind /etc"}},
		{"an empty one", nil, []string{"/proc"}, nil, []string{"mount /proc"}},
		{"links stay links, wherever they lead", []string{"usr/bin/", "bin -> usr/bin", "evil -> /etc", "up -> ../../.."}, nil, nil, []string{"link /bin -> usr/bin", "link /evil -> /etc", "link /up -> ../../..", "bind /usr"}},
		{"files at the top", []string{"readme"}, nil, nil, []string{"file /readme = /readme"}},
		{"pipes and such mean nothing inside", []string{"fifo|", "bin/"}, nil, nil, []string{"bind /bin"}},
		{"the sandbox's own directories are not the rootfs's", []string{"proc/x", "dev/null", "bin/"}, []string{"/dev", "/proc"}, nil, []string{"bind /bin", "mount /dev", "mount /proc"}},
		{"a mount point that is there", []string{"srv/data/", "srv/other"}, []string{"/srv/data"}, nil, []string{"bind /srv", "mount /srv/data"}},
		{"a mount point that is missing", []string{"srv/other", "srv/dir/"}, []string{"/srv/data"}, nil, []string{"dir /srv", "bind /srv/dir", "file /srv/other = /srv/other", "mount /srv/data"}},
		{"one deep below", []string{"a/b/c/x", "a/y"}, []string{"/a/b/d/e"}, nil, []string{"dir /a", "dir /a/b", "bind /a/b/c", "file /a/y = /a/y", "mount /a/b/d/e"}},
		{"one whose top is missing", []string{"bin/"}, []string{"/srv/data"}, nil, []string{"bind /bin", "mount /srv/data"}},
		{"a link where a mount point is to be", []string{"srv/data -> /etc", "srv/x"}, []string{"/srv/data"}, nil, []string{"dir /srv", "file /srv/x = /srv/x", "mount /srv/data"}},
		{"a file of ours that is there is bound over it", []string{"etc/hosts", "etc/x"}, nil, []plan.File{hosts}, []string{"bind /etc", "file /etc/hosts = " + staging + "/file0"}},
		{"a file of ours that is missing", []string{"etc/x"}, nil, []plan.File{hosts}, []string{"dir /etc", "file /etc/x = /etc/x", "write /etc/hosts"}},
		{"a file of ours over a link to the host's", []string{"etc/hosts -> /etc/hosts", "etc/x"}, nil, []plan.File{hosts}, []string{"dir /etc", "file /etc/x = /etc/x", "write /etc/hosts"}},
		{"a file that the rootfs may keep", []string{"etc/passwd"}, nil, []plan.File{passwd}, []string{"bind /etc"}},
		{"and one that it has not", []string{"etc/x"}, nil, []plan.File{passwd}, []string{"dir /etc", "file /etc/x = /etc/x", "write /etc/passwd"}},
		{"and one that is a link", []string{"etc/passwd -> /etc/shadow"}, nil, []plan.File{passwd}, []string{"dir /etc", "write /etc/passwd"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := makeTree(t, c.tree...)
			before := listing(t, root)
			p, err := Prepare(t.Context(), rootfsPlan(root, plan.RootRootfs, c.mounts, c.files...), Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			got := shape(p.Ops)
			if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(c.want, "\n  "))
			}
			if after := listing(t, root); after != before {
				t.Errorf("the host's tree is changed:\n%s\n%s", before, after)
			}
			for _, o := range p.Ops {
				if o.Code == initproto.OpBind && strings.HasPrefix(o.Source, lowerDir) && o.Set&(ro|nosuid|nodev) != ro|nosuid|nodev {
					t.Errorf("%s is bound with %s", o.Target, attrNames(o.Set))
				}
			}
			if len(p.Ops) != len(p.Origins) {
				t.Errorf("%d operations, %d origins", len(p.Ops), len(p.Origins))
			}
		})
	}
}

func TestAMountPointBehindALinkIsRefused(t *testing.T) {
	for _, tree := range [][]string{{"srv -> /etc"}, {"srv -> real", "real/"}, {"a/srv -> ../../../../etc", "a/x"}} {
		root := makeTree(t, tree...)
		dest := "/srv/data"
		if strings.HasPrefix(tree[0], "a/") {
			dest = "/a/srv/data"
		}
		p, err := Prepare(t.Context(), rootfsPlan(root, plan.RootRootfs, []string{dest}), Options{})
		var fe *Error
		if !errors.As(err, &fe) || !strings.Contains(err.Error(), "is a symbolic link") || fe.Origin != "rootfs.path" || fe.Hint == "" {
			t.Errorf("%v: %v", tree, err)
		}
		if p != nil {
			p.Close()
		}
	}
}

func TestDirectoriesWithManyEntries(t *testing.T) {
	names := make([]string, 0, maxEntries+1)
	for i := range maxEntries {
		names = append(names, fmt.Sprintf("big/%05d", i))
	}
	root := makeTree(t, names...)
	prepare := func(mounts ...string) (int, error) {
		p, err := Prepare(t.Context(), rootfsPlan(root, plan.RootRootfs, mounts), Options{})
		if err != nil {
			return 0, err
		}
		defer p.Close()
		return len(shape(p.Ops)), nil
	}
	if n, err := prepare("/big/missing"); err != nil || n != maxEntries+2 {
		t.Errorf("%d entries: %d operations, %v", maxEntries, n, err)
	}
	if err := os.WriteFile(filepath.Join(root, "big/one-more"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := prepare("/big"); err != nil || n != 1 {
		t.Errorf("a directory that is covered: %d operations, %v", n, err)
	}
	if n, err := prepare("/big/00000"); err != nil || n != 2 {
		t.Errorf("a directory that needs not be taken apart: %d operations, %v", n, err)
	}
	_, err := prepare("/big/missing")
	var fe *Error
	if !errors.As(err, &fe) || !strings.Contains(err.Error(), `"/big" of the rootfs lacks a mount point and has more than 4096 entries`) || fe.Hint == "" {
		t.Errorf("one entry more: %v", err)
	}
}

func TestRootfsErrors(t *testing.T) {
	dir := makeTree(t, "file", "tree/x")
	for path, want := range map[string]string{"missing": "no such file", "file": "not a directory", "": "is refused: it contains files of Nucleus"} {
		_, err := Prepare(t.Context(), rootfsPlan(filepath.Join(dir, path), plan.RootRootfs, nil), Options{Refused: []string{filepath.Join(dir, "tree")}})
		var fe *Error
		if !errors.As(err, &fe) || !strings.Contains(err.Error(), want) || fe.Origin != "rootfs.path" || fe.Hint == "" {
			t.Errorf("%q: %v", path, err)
		}
	}
	pl := rootfsPlan(dir, plan.RootRootfs, nil)
	pl.Root.Digest = "sha256:" + strings.Repeat("0", 64)
	_, err := Prepare(t.Context(), pl, Options{})
	var fe *Error
	if !errors.As(err, &fe) || fe.Origin != "rootfs.digest" || fe.Hint != "nucleus rootfs digest "+dir {
		t.Errorf("another digest: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Prepare(ctx, pl, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestEntriesForLandlock(t *testing.T) {
	root := makeTree(t, "bin/", "dev/", "etc/", "proc/", "sys/", "run/", "tmp/", "lib -> usr/lib", "out -> /proc/self/fd/3", "writable -> tmp")
	p, err := Prepare(t.Context(), rootfsPlan(root, plan.RootRootfs, nil), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if got := strings.Join(p.Entries, " "); got != "/bin /etc" { // a link is no grant for where it leads
		t.Error(got)
	}
}

func TestOverlayRootKeepsItsLayersOutOfReach(t *testing.T) {
	root := makeTree(t, "bin/sh")
	before := listing(t, root)
	p, err := Prepare(t.Context(), rootfsPlan(root, plan.RootOverlay, []string{"/proc"}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	i := slices.IndexFunc(p.Ops, func(o initproto.Op) bool { return o.Code == initproto.OpOverlay })
	if i < 0 || p.Ops[i].Target != "/" || p.Ops[i].Set != nosuid|nodev {
		t.Fatalf("no overlay root: %v", shape(p.Ops))
	}
	for _, layer := range strings.Split(p.Ops[i].Data, "\x00") {
		if !strings.HasPrefix(layer, staging+"/") {
			t.Errorf("layer %q", layer)
		}
	}
	if listing(t, root) != before {
		t.Error("the host's tree is changed")
	}
}

// TestPrepareLeaksNothing: with every error the descriptors that were opened are
// closed again.
func TestPrepareLeaksNothing(t *testing.T) {
	root := makeTree(t, "srv -> /etc")
	same := testutil.Descriptors(t)
	for range 20 {
		if _, err := Prepare(t.Context(), rootfsPlan(root, plan.RootRootfs, []string{"/srv/data"}), Options{}); err == nil {
			t.Fatal("no error")
		}
		p, err := Prepare(t.Context(), rootfsPlan(root, plan.RootRootfs, nil), Options{})
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
	}
	same()
}

// TestPathsOfARootfsFollowNoLink: what is looked at is in the rootfs, wherever
// its links lead.
func TestPathsOfARootfsFollowNoLink(t *testing.T) {
	root := makeTree(t, "etc/x", "host -> /etc", "up -> ..", "inner -> etc", "a/host -> /etc", "a/x")
	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	fd := int(dir.Fd())
	for _, path := range []string{"/host/passwd", "/up", "/up/x", "/inner/x", "/host", "/../etc", "/etc/../../etc"} {
		if kind, err := typeOf(fd, path); err == nil {
			t.Errorf("%s is looked at: %o", path, kind)
		}
		if d, err := openDir(fd, path); err == nil {
			t.Errorf("%s is opened", path)
			_ = d.Close()
		}
	}
	if kind, err := typeOf(fd, "/etc/x"); err != nil || kind != unix.S_IFREG {
		t.Errorf("/etc/x: %o, %v", kind, err)
	}
	if to, err := readlinkat(fd, "/a/host"); err != nil || to != "/etc" {
		t.Errorf("%q, %v", to, err)
	}
	if _, err := readlinkat(fd, "/host/mtab"); err == nil {
		t.Error("a link of the host's is read")
	}
	// A mount point that exists behind a link exists on the host, not here.
	p, err := Prepare(t.Context(), rootfsPlan(root, plan.RootRootfs, []string{"/a/host/passwd"}), Options{})
	if err == nil || !strings.Contains(err.Error(), `"/a/host" is a symbolic link`) {
		t.Error(err)
	}
	if p != nil {
		p.Close()
	}
}
