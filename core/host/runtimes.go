package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/trusted"
)

// RuntimeVerdict says whether a runtime plugin of this project could work here.
type RuntimeVerdict struct {
	Plugin  string
	State   fact.State
	Missing []string // features, and files by their names
	Unsure  []string
	// Program is what would run the sandboxes, "" if there is none that may.
	Program string
	// Why and Remedy are of a file that is missing.
	Why, Remedy string
}

// runscPlaces are where gVisor's plugin looks for its program; a job's config block
// may name another.
var runscPlaces = []string{"/usr/local/libexec/nucleus/runsc", "/usr/local/bin/runsc", "/usr/bin/runsc"}

// Runtimes judges the runtime plugins by what they need of the kernel and by the
// files that they are. plugins are the paths that gVisor's may have, in their order.
func Runtimes(features []fact.Feature, plugins []string) []RuntimeVerdict {
	return []RuntimeVerdict{judgeGVisor(features, plugins, runscPlaces, os.Geteuid() == 0)}
}

// judgeGVisor is told whether the plugin, which root runs as a user without rights,
// sees less than we do.
func judgeGVisor(features []fact.Feature, plugins, places []string, confined bool) RuntimeVerdict {
	state := make(map[string]fact.State, len(features))
	for _, f := range features {
		state[f.Name] = f.State
	}
	v := judgeMode("", []string{featUserNS, featMountNS, featPIDNS, featSeccomp}, state)
	out := RuntimeVerdict{Plugin: "gvisor", State: v.State, Missing: v.Missing, Unsure: v.Unsure}
	lacks := func(name string, err error, remedy string) {
		out.State, out.Missing = fact.Unavailable, append(out.Missing, name)
		out.Why, out.Remedy = err.Error(), remedy
		var te *trusted.Error
		if errors.As(err, &te) {
			out.Remedy = te.Remedy()
		}
	}
	plugin, err := firstProgram(plugins, false)
	if err != nil {
		lacks("nucleus-plugin-gvisor", err, "make install, or name its directory in the host configuration: plugin_dirs")
		return out
	}
	places = append([]string{filepath.Join(filepath.Dir(plugin), "..", "tools", "runsc")}, places...)
	if out.Program, err = firstProgram(places, confined); err != nil {
		lacks("runsc", err, "https://gvisor.dev/docs/user_guide/install/ has releases; a copy in /usr/local/bin is found")
	}
	return out
}

// firstProgram gives the first path that is there. That it may not be used is an
// error: what comes after it would not be looked at either.
func firstProgram(paths []string, confined bool) (string, error) {
	hidden := ""
	for _, p := range paths {
		if _, err := os.Stat(p); errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if confined && !reachedByAll(p) {
			hidden += fmt.Sprintf("; %s cannot be reached by the user that its plugin runs as", p)
			continue
		}
		f, err := trusted.Executable(p)
		if err != nil {
			return "", err
		}
		_ = f.Close()
		return p, nil
	}
	return "", fmt.Errorf("none of %s is there%s", strings.Join(paths, ", "), hidden)
}

// reachedByAll tells whether the directories above a file, and above what it leads to,
// let everybody through.
func reachedByAll(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	for _, p := range []string{path, real} {
		for dir := filepath.Dir(p); ; dir = filepath.Dir(dir) {
			if st, err := os.Stat(dir); err != nil || st.Mode()&0o001 == 0 {
				return false
			}
			if dir == "/" {
				break
			}
		}
	}
	return true
}
