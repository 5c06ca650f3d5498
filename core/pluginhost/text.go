package pluginhost

import (
	"fmt"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/audit"
)

// maxText is how much of a plugin's words is shown at once, in bytes. A stack or a
// page of HTML helps nobody in one line.
const maxText = 1000

// shown makes a plugin's words fit to show: they may come from whoever the plugin
// talks to, and must not drive a terminal, forge lines or fill it.
func shown(s string) string {
	s = strings.TrimSpace(s)
	rest := len(s) - maxText
	if rest > 0 {
		s = s[:maxText]
	}
	s = strings.TrimSpace(audit.Clean(s))
	if rest > 0 {
		s += fmt.Sprintf("… (%d bytes more)", rest)
	}
	return s
}

// lastLine is where most programs say what was wrong; one of Go that panics says it
// first, and then shows its stack.
func lastLine(s string) string {
	s = strings.TrimSpace(s)
	for line := range strings.Lines(s) {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			return shown(line)
		}
	}
	return shown(s[strings.LastIndexByte(s, '\n')+1:])
}
