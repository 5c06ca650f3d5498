// Package procid tells a process from another that has got its number: a pid together
// with the time of its start belongs to one process of one boot.
package procid

import (
	"fmt"
	"strings"

	"github.com/nucleus-runtime/nucleus/internal/plainfile"
)

// Start is when a process was started, in clock ticks since boot (field 22 of
// proc_pid_stat(5)).
func Start(pid int) (string, error) {
	b, err := plainfile.Read(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field is a name in parentheses that may hold anything.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return "", fmt.Errorf("/proc/%d/stat: too few fields", pid)
	}
	return f[19], nil
}

// Boot is the id of this boot.
func Boot() (string, error) {
	b, err := plainfile.Read("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}
