package job

import (
	"fmt"
	"strings"

	"github.com/hashicorp/hcl/v2"
)

// commandLine is the file name of what came from arguments.
const commandLine = "command line"

// Range returns where the field with the given path came from, or else the
// block that would hold it.
func (j *Job) Range(path string) (hcl.Range, bool) {
	for {
		if r, ok := j.Ranges[path]; ok {
			return r, true
		}
		// `volume["a.b"].source` -> `volume["a.b"]` -> "job"
		i := strings.LastIndexAny(path, ".[")
		if q := strings.LastIndexByte(path, '"'); i >= 0 && i < q {
			i = strings.LastIndexByte(path, '[')
		}
		if i < 0 {
			break
		}
		path = path[:i]
	}
	r, ok := j.Ranges["job"]
	return r, ok
}

// Where says in one word where the field with the given path came from:
// "job.hcl:12,5", or "command line".
func (j *Job) Where(path string) string {
	r, ok := j.Range(path)
	if !ok || r.Filename == commandLine {
		return commandLine
	}
	return fmt.Sprintf("%s:%d,%d", r.Filename, r.Start.Line, r.Start.Column)
}
