// Package procstatus takes /proc/PID/status apart (proc_pid_status(5)), in which the
// kernel tells the credentials of a process, and what confines it.
package procstatus

import "bytes"

// Text is that of the file.
type Text []byte

// Get gives the value of a line, "" if there is none.
func (t Text) Get(key string) string {
	for line := range bytes.Lines(t) {
		if k, v, ok := bytes.Cut(line, []byte(":")); ok && string(k) == key {
			return string(bytes.TrimSpace(v))
		}
	}
	return ""
}
