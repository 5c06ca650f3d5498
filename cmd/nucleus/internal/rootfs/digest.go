// Package rootfs owns the verbs of "nucleus rootfs". It prints what core/tree
// finds out and decides nothing.
package rootfs

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/tree"
)

// reportVersion is that of the JSON form; it changes when a field changes its
// meaning or goes.
const reportVersion = 1

// report is the JSON form of a digest.
type report struct {
	Version int     `json:"version"`
	Path    string  `json:"path"`
	Digest  string  `json:"digest"`
	Files   int64   `json:"files"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// Digest prints the digest of the tree at path: the line that a job file's
// rootfs block takes, or as JSON with what was counted.
func Digest(w io.Writer, path string, asJSON bool) error {
	start := time.Now()
	// The path is the operator's own and may lead through links; below it, none
	// is followed. O_DIRECTORY also keeps the open of a FIFO from blocking.
	root, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("opening root file system: %w", err)
	}
	defer root.Close()
	s, err := tree.Attest(context.Background(), root, 0)
	if err != nil {
		return fmt.Errorf("reading root file system %q: %w", path, err)
	}
	if !asJSON {
		_, err = fmt.Fprintln(w, s.Digest)
		return err
	}
	out, err := json.MarshalIndent(report{
		reportVersion, path, s.Digest, s.Files, s.Bytes, time.Since(start).Seconds(),
	}, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(out, '\n'))
	return err
}
