package chaos

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// What the caller's shell or service manager left open in the supervisor is
// held by no process of the sandbox: not by init either, whose descriptors a
// workload could otherwise reach if it ever became able to trace it.
func TestInheritedDescriptorsAreHeldByNobody(t *testing.T) {
	sites(t, func(s *site) {
		for name, args := range s.jobs("sleep 20") {
			secret, err := os.Open("/etc/passwd")
			if err != nil {
				s.t.Fatal(err)
			}
			defer secret.Close()
			r := running{s.command("nucleus", args...), new(bytes.Buffer)}
			for range 300 { // beyond one read of the directory
				r.cmd.ExtraFiles = append(r.cmd.ExtraFiles, secret)
			}
			if err := r.cmd.Start(); err != nil {
				s.t.Fatal(err)
			}
			init, work := s.workload(r)
			for who, pid := range map[string]int{"init": init, "the workload": work} {
				dir := fmt.Sprintf("/proc/%d/fd", pid)
				entries, err := os.ReadDir(dir)
				if err != nil {
					s.t.Fatal(err)
				}
				for _, e := range entries {
					to, err := os.Readlink(filepath.Join(dir, e.Name()))
					if err != nil {
						continue // closed meanwhile
					}
					if n, err := strconv.Atoi(e.Name()); err != nil || n > 2 && strings.HasPrefix(to, "/") && !ownFile(to) {
						s.t.Errorf("%s: %s holds %s as %s", name, who, to, e.Name())
					}
				}
			}
			_ = r.cmd.Process.Kill()
			_ = s.wait(r)
			s.gc(name)
		}
	})
}

// ownFile: the Go runtime reads the CPU limit of its control group.
func ownFile(path string) bool {
	return strings.HasPrefix(path, "/sys/fs/cgroup/") && strings.HasPrefix(filepath.Base(path), "cpu.")
}
