// Package changetar owns the archive of what a sandbox has changed: a layer as the OCI image
// specification has it.
package changetar

import (
	"archive/tar"
	"io"
	"path"
	"strings"
	"time"

	"github.com/nucleus-runtime/nucleus/core/changes"
)

// Writer writes one.
type Writer struct {
	t *tar.Writer
	// Left counts what an archive does not have: devices, sockets, FIFOs, and what is
	// named as a deletion would be.
	Left int
}

// New begins an archive.
func New(w io.Writer) *Writer { return &Writer{t: tar.NewWriter(w)} }

// permissions are what an archive has of a mode: no set-user-ID and no set-group-ID bit
// comes out of a sandbox.
const permissions = 0o1777

// Add adds an entry, with the content of a file.
func (w *Writer) Add(e *changes.Entry, content io.Reader) error {
	name := strings.TrimPrefix(e.Path, "/")
	h := &tar.Header{
		Name: name, Mode: int64(e.Mode & permissions), Uid: int(e.UID), Gid: int(e.GID), ModTime: time.Unix(e.Sec, 0), Format: tar.FormatPAX,
	}
	switch {
	case e.Change == changes.Deleted && e.Type == changes.Other:
		w.Left++
		return nil
	case e.Change == changes.Deleted:
		return w.mark(path.Dir(name), changes.Whiteout+path.Base(name))
	case e.Type == changes.File:
		h.Typeflag, h.Size = tar.TypeReg, int64(e.Size)
	case e.Type == changes.Directory:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case e.Type == changes.Symlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Target
	case e.Type == changes.Hardlink:
		h.Typeflag, h.Linkname = tar.TypeLink, strings.TrimPrefix(e.Target, "/")
	default:
		w.Left++
		return nil
	}
	if err := w.t.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeReg {
		_, err := io.Copy(w.t, content)
		return err
	}
	if h.Typeflag == tar.TypeDir && e.Replaced {
		return w.mark(name, changes.Opaque)
	}
	return nil
}

// mark adds an empty file whose name is what it says.
func (w *Writer) mark(dir, name string) error {
	return w.t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(dir, name), Mode: 0o600, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

// Close ends the archive.
func (w *Writer) Close() error { return w.t.Close() }
