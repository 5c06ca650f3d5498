// Package procstatus takes /proc/PID/status apart (proc_pid_status(5)), in which the
// kernel tells the credentials of a process, and what confines it, and its other files
// of lines "NAME: value".
package procstatus

import (
	"bytes"
	"strconv"
)

// Text is that of the file.
type Text []byte

// Four is the value of Uid or Gid of a process whose real, effective, saved and file system
// id are all this one.
func Four(id uint32) string {
	d := strconv.FormatUint(uint64(id), 10)
	return d + "\t" + d + "\t" + d + "\t" + d
}

// Get gives the value of a line, "" if there is none.
func (t Text) Get(key string) string {
	for line := range bytes.Lines(t) {
		if k, v, ok := bytes.Cut(line, []byte(":")); ok && string(k) == key {
			return string(bytes.TrimSpace(v))
		}
	}
	return ""
}
