package testutil

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Scope says where a census looks for what sandboxes may leave behind.
type Scope struct {
	// Binaries are directories: a process whose executable lies in one is
	// ours. An Account's Bin makes the count blind to tests beside this one.
	Binaries []string
	// Files are state roots, or whatever else must end as it began.
	Files []string
	// Alone says that no other test runs sandboxes meanwhile, so that every
	// process in a foreign pid or network namespace counts as well.
	Alone bool
	// Wait bounds how long Settle waits for what ends by itself: a killed
	// supervisor's init dies of a signal, and namespaces go a moment after
	// their last process. Zero is five seconds, stretched by Patient.
	Wait time.Duration
}

// cgroupPrefix starts the name of every group that a sandbox gets.
const cgroupPrefix = "nucleus-"

// sharedPrefix starts that of a group which all supervisors of a user are in: it is there
// for the next one, and `nucleus gc` takes it. What is in it counts as processes.
const sharedPrefix = cgroupPrefix + "supervisors-"

// Census is what existed at one moment, by kind: processes, mounts, cgroups,
// network namespaces, links and files, each with a name to report.
type Census struct {
	kinds map[string]map[string]string
}

var censusKinds = []string{"process", "mount", "cgroup", "netns", "link", "file"}

// TakeCensus counts. It makes the test process a child subreaper, so that
// what a killed supervisor orphans stays a descendant and is seen.
func TakeCensus(t testing.TB, scope Scope) Census {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatalf("becoming a child subreaper: %v", err)
	}
	census := Census{kinds: map[string]map[string]string{}}
	for kind, count := range map[string]func(Scope) (map[string]string, error){
		"process": countProcesses,
		"mount":   countMounts,
		"cgroup":  countCgroups,
		"netns":   countNetworkNamespaces,
		"link":    countLinks,
		"file":    countFiles,
	} {
		found, err := count(scope)
		if err != nil {
			t.Fatalf("counting for the census, kind %s: %v", kind, err)
		}
		census.kinds[kind] = found
	}
	return census
}

// Diff lists what a later census has and this one had not.
func (c Census) Diff(later Census) []string {
	var left []string
	for _, kind := range censusKinds {
		for key, name := range later.kinds[kind] {
			if _, was := c.kinds[kind][key]; !was {
				left = append(left, kind+" "+name)
			}
		}
	}
	slices.Sort(left)
	return left
}

// Settle takes censuses until nothing new is left or the time is over, and
// returns what remains.
func (c Census) Settle(t testing.TB, scope Scope) []string {
	t.Helper()
	wait := scope.Wait
	if wait == 0 {
		wait = Patient(5 * time.Second)
	}
	for deadline := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		left := c.Diff(TakeCensus(t, scope))
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

// NoLeaks fails the test at its end if anything in scope is left that was not there now.
func NoLeaks(t testing.TB, scope Scope) {
	t.Helper()
	before := TakeCensus(t, scope)
	t.Cleanup(func() {
		if left := before.Settle(t, scope); len(left) > 0 {
			t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
		}
	})
}

// countMounts keys by mount id: a second mount on the same point is a leak too.
func countMounts(Scope) (map[string]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, m := range parseMountinfo(string(table)) {
		found[m.id+m.point] = fmt.Sprintf("%s (%s from %s)", m.point, m.fsType, m.source)
	}
	return found, nil
}

// countCgroups walks every hierarchy whole, since a sandbox's group may be
// below any parent.
func countCgroups(Scope) (map[string]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, hierarchy := range cgroupHierarchies(string(table)) {
		err := walkExisting(hierarchy.mountPoint, func(path string, entry fs.DirEntry) {
			if entry.IsDir() && strings.HasPrefix(entry.Name(), cgroupPrefix) && !strings.HasPrefix(entry.Name(), sharedPrefix) {
				found[path] = path
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

func countLinks(Scope) (map[string]string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, link := range links {
		found[link.Name] = link.Name
	}
	return found, nil
}

func countFiles(scope Scope) (map[string]string, error) {
	found := map[string]string{}
	for _, root := range scope.Files {
		err := walkExisting(root, func(path string, _ fs.DirEntry) {
			if path != root {
				found[path] = path
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// walkExisting visits a tree that others change meanwhile: what is gone when
// its turn comes is not there to be counted.
func walkExisting(root string, visit func(path string, entry fs.DirEntry)) error {
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		visit(path, entry)
		return nil
	})
}
