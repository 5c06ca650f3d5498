package testutil

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is what /proc tells about one process.
type process struct {
	pid, parent int
	state       byte
	// started, in ticks since boot, tells a process from a later one with its pid.
	started      string
	name         string
	exe          string
	pidNS, netNS string
}

// countProcesses finds the live descendants of this process, those whose
// executable is ours wherever they hang, and, alone on the host, all in a
// foreign pid namespace. Zombies are done: only their parent may reap them.
func countProcesses(scope Scope) (map[string]string, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	self := os.Getpid()
	own := all[self]
	found := map[string]string{}
	for pid, p := range all {
		if pid == self || p.state == 'Z' || p.state == 'X' {
			continue
		}
		foreign := scope.Alone && p.pidNS != "" && p.pidNS != own.pidNS
		if foreign || descends(all, p, self) || within(p.exe, scope.Binaries) {
			found[fmt.Sprintf("%d@%s", pid, p.started)] = fmt.Sprintf("%d (%s, parent %d)", pid, p.name, p.parent)
		}
	}
	return found, nil
}

func descends(all map[int]process, p process, ancestor int) bool {
	for range len(all) { // bounded: the snapshot may hold a cycle of reused pids
		if p.parent == ancestor {
			return true
		}
		parent, ok := all[p.parent]
		if !ok {
			return false
		}
		p = parent
	}
	return false
}

func within(path string, dirs []string) bool {
	for _, dir := range dirs {
		if strings.HasPrefix(path, filepath.Clean(dir)+"/") {
			return true
		}
	}
	return false
}

// countNetworkNamespaces finds those that are pinned by a mount, and, alone on
// the host, those that a process lives in.
func countNetworkNamespaces(scope Scope) (map[string]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, m := range parseMountinfo(string(table)) {
		if m.fsType == "nsfs" {
			found[m.point] = "pinned at " + m.point
		}
	}
	if !scope.Alone {
		return found, nil
	}
	all, err := processes()
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if p.netNS != "" {
			found[p.netNS] = fmt.Sprintf("%s of process %d (%s)", p.netNS, p.pid, p.name)
		}
	}
	return found, nil
}

func processes() (map[int]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := map[int]process{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		p, err := readProcess(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all[pid] = p
	}
	return all, nil
}

func readProcess(pid int) (process, error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return process{}, err
	}
	p, err := parseStat(string(stat))
	if err != nil {
		return process{}, fmt.Errorf("%s/stat: %w", dir, err)
	}
	// These may be closed to us, for another user's or a kernel process: then
	// they are no sandbox of ours.
	p.exe, _ = os.Readlink(dir + "/exe")
	p.exe = strings.TrimSuffix(p.exe, " (deleted)")
	p.pidNS, _ = os.Readlink(dir + "/ns/pid")
	p.netNS, _ = os.Readlink(dir + "/ns/net")
	return p, nil
}

// parseStat reads "pid (name) state ppid ... starttime ..."; the name may hold
// anything, so it ends at the last parenthesis.
func parseStat(stat string) (process, error) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 1 || end < open {
		return process{}, fmt.Errorf("malformed: %q", stat)
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 20 {
		return process{}, fmt.Errorf("too few fields: %q", stat)
	}
	pid, err1 := strconv.Atoi(strings.TrimSpace(stat[:open]))
	parent, err2 := strconv.Atoi(fields[1])
	if err := errors.Join(err1, err2); err != nil {
		return process{}, err
	}
	return process{pid: pid, parent: parent, state: fields[0][0], started: fields[19], name: stat[open+1 : end]}, nil
}
