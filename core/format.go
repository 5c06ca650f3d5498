package core

import (
	"bytes"
	"fmt"
	"os/exec"
)

// FormatJob rewrites a job file in the canonical style. It runs nucleus-fmt
// (see there for why the formatter is not linked in).
func FormatJob(src []byte) ([]byte, error) {
	formatter, err := Program("nucleus-fmt")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(formatter)
	cmd.Env = []string{}
	cmd.Stdin = bytes.NewReader(src)
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("formatting: %w %s", err, bytes.TrimSpace(text.Bytes()))
	}
	return out.Bytes(), nil
}
