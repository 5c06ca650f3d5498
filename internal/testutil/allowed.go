package testutil

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// allowedSkip is one line of test/allowed-skips.txt.
type allowedSkip struct {
	pkg, test, requirement, why string
}

type allowedSkips []allowedSkip

func (l allowedSkips) has(pkg, test, requirement string) bool {
	for _, a := range l {
		if matches(a.pkg, pkg) && matches(a.test, test) && matches(a.requirement, requirement) {
			return true
		}
	}
	return false
}

// matches lets a pattern cover what is below it too: subtests, subpackages.
func matches(pattern, name string) bool {
	for {
		if ok, _ := path.Match(pattern, name); ok {
			return true
		}
		slash := strings.LastIndexByte(name, '/')
		if slash < 0 {
			return false
		}
		name = name[:slash]
	}
}

// parseAllowedSkips reads lines of "package test requirement why...", the
// first three path.Match patterns; blank lines and # comments are ignored. A
// line without a reason is an error: the list exists for the reasons.
func parseAllowedSkips(r io.Reader) (allowedSkips, error) {
	var list allowedSkips
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 4 {
			return nil, fmt.Errorf("line %d: want \"package test requirement why\", got %q", n, line)
		}
		for _, pattern := range fields[:3] {
			if _, err := path.Match(pattern, ""); err != nil {
				return nil, fmt.Errorf("line %d: pattern %q: %w", n, pattern, err)
			}
		}
		list = append(list, allowedSkip{fields[0], fields[1], fields[2], strings.Join(fields[3:], " ")})
	}
	return list, lines.Err()
}

func loadAllowedSkips() (allowedSkips, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(root, "test", "allowed-skips.txt"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := parseAllowedSkips(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	return list, nil
}

// moduleRoot finds the module by walking up: a test starts in its package's
// directory, in the checkout or in a copy of it.
func moduleRoot() (string, error) {
	dir, err := filepath.Abs(".")
	if err != nil {
		return "", err
	}
	for {
		_, err := os.Stat(filepath.Join(dir, "go.mod"))
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = parent
	}
}
