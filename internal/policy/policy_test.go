package policy

import (
	"bufio"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

const moduleRoot = "../.."

func goList(t *testing.T, args ...string) []string {
	t.Helper()
	testutil.Needs(t, testutil.Program("go"))
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = moduleRoot
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%s: %v\n%s", cmd, err, exit.Stderr)
		}
		t.Fatalf("%s: %v", cmd, err)
	}
	return strings.Fields(string(out))
}

// among returns the packages that are one of the banned ones or below it.
func among(packages, banned []string) []string {
	var found []string
	for _, pkg := range packages {
		for _, ban := range banned {
			if pkg == ban || strings.HasPrefix(pkg, ban+"/") {
				found = append(found, pkg)
			}
		}
	}
	return found
}

// A job that names no plugin must not pay for the machinery of plugins, which
// costs milliseconds of package initialisation at every start; init must stay
// a program that can be read in an afternoon. A dependency of a dependency
// brings such things in unseen, so the whole graph is looked at.
func TestBinariesLinkNoMoreThanTheyShould(t *testing.T) {
	for command, banned := range map[string][]string{
		"nucleus": {
			"google.golang.org/grpc", "google.golang.org/protobuf", "github.com/hashicorp/go-plugin",
			"net/http", "crypto/tls",
			"github.com/seccomp/libseccomp-golang", "github.com/google/go-cmp",
			"github.com/hashicorp/hcl/v2/gohcl", "github.com/hashicorp/hcl/v2/hclwrite", "testing",
		},
		"nucleus-init": {
			"google.golang.org/grpc", "google.golang.org/protobuf", "github.com/hashicorp", "github.com/zclconf",
			"github.com/spf13", "github.com/opencontainers/cgroups", "github.com/sirupsen/logrus",
			"github.com/seccomp/libseccomp-golang", "net", "os/exec", "os/user", "text/template", "testing",
			"github.com/nucleus-runtime/nucleus/core/job", "github.com/nucleus-runtime/nucleus/core/plan",
		},
		"nucleus-seccomp": {
			"google.golang.org/grpc", "github.com/hashicorp", "github.com/spf13", "net", "testing",
		},
	} {
		deps := goList(t, "-deps", "./cmd/"+command)
		if len(deps) < 10 {
			t.Errorf("%s: only %d packages listed: %q", command, len(deps), deps)
		}
		for _, pkg := range among(deps, banned) {
			t.Errorf("%s links %s", command, pkg)
		}
	}
}

func TestAmongTellsPackagesFromPrefixes(t *testing.T) {
	got := among([]string{"net/netip", "netlink", "net", "os/execute"}, []string{"net", "os/exec"})
	if strings.Join(got, " ") != "net/netip net" {
		t.Errorf("got %q", got)
	}
}

// maxLines is where a file is asked whether it holds two nouns.
const maxLines = 600

var generated = regexp.MustCompile(`^// Code generated .* DO NOT EDIT\.$`)

func TestFilesStayShort(t *testing.T) {
	count := 0
	err := filepath.WalkDir(moduleRoot, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name := entry.Name(); name == "bin" || name == "testdata" || len(name) > 2 && name[0] == '.' {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		count++
		lines, byHand, err := measure(path)
		if byHand && lines > maxLines {
			t.Errorf("%s has %d lines, more than %d: does it hold two nouns?", path, lines, maxLines)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if count < 10 {
		t.Errorf("only %d Go files found", count)
	}
}

func measure(path string) (lines int, byHand bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	byHand = true
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 16<<20) // generated tables have long lines
	for scanner.Scan() {
		lines++
		if generated.Match(scanner.Bytes()) {
			byHand = false
		}
	}
	return lines, byHand, scanner.Err()
}

// Each module that our code imports has a line that says what for and why this one.
func TestDependenciesAreAccountedFor(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(moduleRoot, "docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	imports := goList(t, "-f", `{{join .Imports "\n"}}
{{join .TestImports "\n"}}
{{join .XTestImports "\n"}}`, "./...")
	foreign := map[string]bool{}
	for _, pkg := range imports {
		host, _, _ := strings.Cut(pkg, "/")
		if strings.Contains(host, ".") && !strings.HasPrefix(pkg, "github.com/nucleus-runtime/") {
			foreign[pkg] = true
		}
	}
	for _, module := range goList(t, append([]string{"-f", "{{.Module.Path}}"}, slices.Sorted(maps.Keys(foreign))...)...) {
		if !strings.Contains(string(doc), "`"+module+"`") {
			t.Errorf("docs/dependencies.md does not mention %s", module)
		}
	}
}

// The map has each room: a package that nobody finds there is looked for, or written again.
func TestEveryRoomIsOnTheMap(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(moduleRoot, "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, wing := range []string{"cmd", "core", "internal", "plugins"} {
		rooms, err := os.ReadDir(filepath.Join(moduleRoot, wing))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rooms {
			room := wing + "/" + r.Name() + "/"
			if r.IsDir() && !regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(room)+` `).Match(doc) {
				t.Errorf("docs/architecture.md does not say what %s owns", room)
			}
		}
	}
}
