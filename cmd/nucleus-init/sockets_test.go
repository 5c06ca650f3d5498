package main

import (
	"bytes"
	"testing"
)

func TestWritePid(t *testing.T) {
	for pid, want := range map[uintptr]string{1: "1", 9: "9", 10: "10", 99: "99", 100: "100", 4194304: "4194304", 4294967295: maxPid} {
		p := prepared{pidVar: append([]byte(pidVar), maxPid+"\x00"...), pidAt: len(pidVar)}
		writePid(&p, pid)
		if got, _, _ := bytes.Cut(p.pidVar, []byte{0}); string(got) != pidVar+want {
			t.Errorf("%d: %s", pid, got)
		}
	}
}
