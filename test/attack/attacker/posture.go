package attacker

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
)

func signalIgnore(s syscall.Signal) { signal.Ignore(s) }

// posture is everything that /proc tells of a process's confinement.
type posture struct {
	Status     map[string]string // of the main thread
	Threads    []string          // what differs in other threads, "" for nothing
	Namespaces map[string]string
	Mounts     []string // target, type, flags of the mount
	Files      map[string]string
	Limits     map[string]string
	Env        []string
	Cwd, Root  string
	Entries    []string // of /
	Devices    []string // of /dev
	Pids       int
	UIDMap     string
	GIDMap     string
	SetGroups  string
	Cgroup     string
	Keys       string
}

// confined are the lines of /proc/PID/status that tell of confinement.
var confined = []string{
	"Umask", "TracerPid", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "SigIgn", "SigBlk", "CoreDumping",
}

func readStatus(path string) map[string]string {
	b, _ := os.ReadFile(path)
	out := map[string]string{}
	for line := range strings.SplitSeq(string(b), "\n") {
		k, v, ok := strings.Cut(line, ":")
		if ok && slices.Contains(confined, k) {
			out[k] = strings.Join(strings.Fields(v), " ")
		}
	}
	return out
}

func printPosture([]string) {
	// Threads beside the main one, so that what they have is seen too.
	var wg, ready sync.WaitGroup
	stop := make(chan struct{})
	for range 8 {
		ready.Add(1)
		wg.Go(func() {
			runtime.LockOSThread()
			ready.Done()
			<-stop
		})
	}
	ready.Wait()
	p := posture{Status: readStatus(fmt.Sprintf("/proc/self/task/%d/status", os.Getpid())), Namespaces: map[string]string{}, Files: map[string]string{}, Limits: map[string]string{}}
	tasks, _ := filepath.Glob("/proc/self/task/*")
	for _, t := range tasks {
		other := readStatus(t + "/status")
		for _, k := range confined {
			// The Go runtime's own threads block signals for a moment at their start.
			if k != "SigBlk" && other[k] != p.Status[k] {
				p.Threads = append(p.Threads, fmt.Sprintf("%s: %s %q", t, k, other[k]))
			}
		}
	}
	if len(tasks) < 9 {
		p.Threads = append(p.Threads, fmt.Sprintf("only %d threads", len(tasks)))
	}
	close(stop)
	wg.Wait()
	for _, ns := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"} {
		p.Namespaces[ns], _ = os.Readlink("/proc/self/ns/" + ns)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.SplitSeq(strings.TrimSpace(string(mounts)), "\n") {
		left, right, _ := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) < 6 || len(r) < 1 {
			continue
		}
		// What comes after the options are propagation fields: none for private.
		p.Mounts = append(p.Mounts, strings.Join(append([]string{l[4], r[0], l[5]}, l[6:]...), " "))
	}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		t, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !ownDescriptor(t) {
			p.Files[e.Name()] = t
		}
	}
	limits, _ := os.ReadFile("/proc/self/limits")
	for line := range strings.SplitSeq(string(limits), "\n") {
		if len(line) > 26 && strings.HasPrefix(line, "Max ") {
			f := strings.Fields(line[26:])
			if len(f) >= 2 {
				p.Limits[strings.TrimSpace(line[:26])] = f[0] + ":" + f[1]
			}
		}
	}
	p.Env = os.Environ()
	p.Cwd, _ = os.Readlink("/proc/self/cwd")
	p.Root, _ = os.Readlink("/proc/self/root")
	p.Entries, p.Devices = list("/"), list("/dev")
	p.Pids = len(pids())
	p.UIDMap, p.GIDMap, p.SetGroups = words("/proc/self/uid_map"), words("/proc/self/gid_map"), words("/proc/self/setgroups")
	p.Cgroup = words("/proc/self/cgroup")
	p.Keys = words("/proc/keys")
	b, _ := json.Marshal(p)
	fmt.Printf("POSTURE %s\n", b)
}

func list(dir string) []string {
	var out []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func words(path string) string {
	b, _ := os.ReadFile(path)
	return strings.Join(strings.Fields(string(b)), " ")
}
