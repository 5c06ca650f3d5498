package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/nucleus-runtime/nucleus/cmd/nucleus/internal/changetar"
	"github.com/nucleus-runtime/nucleus/core/changes"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

func (a *app) diffCommand() *cobra.Command {
	var asJSON bool
	var archive string
	var limit time.Duration
	c := &cobra.Command{
		Use: "diff NAME [-json | -tar FILE|-]", Short: "Print what a sandbox has changed in its overlay, or keep it",
		Long: `Print what a sandbox with workspace { mode = "overlay" } or rootfs { writable = "overlay" }
has changed over the host's directory, one path a line as the sandbox sees it, in order:

  A  was added
  M  was modified: its content, its owner or its mode
  D  was deleted

What was replaced by something of another kind is deleted and then added. The overlay is
discarded with the sandbox: keep it before that, with -tar.

-tar writes an archive of the changes, a layer as OCI images have them: what was deleted is
an empty file .wh.NAME, and a directory that hides the host's has one .wh..wh..opq. Owners
are numbered as the sandbox numbers them. No device, socket or FIFO is in it, no
set-user-ID or set-group-ID bit, and no file of the sandbox's that is named .wh.…; how many
were left out is said. FILE must not exist.

A sandbox that goes on writes meanwhile: pause it before for one moment's state.`,
		Example: `  nucleus diff build
  nucleus diff -json build
  nucleus pause build && nucleus diff build -tar changes.tar; nucleus resume build`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			tarred := c.Flags().Changed("tar")
			switch {
			case tarred && asJSON:
				return &usageError{err: errors.New("-json and -tar are two answers"), hint: "leave out one of them"}
			case tarred && archive == "":
				return &usageError{err: errors.New("-tar: the file to make is missing"), hint: "nucleus diff NAME -tar FILE, or - for standard output"}
			case limit <= 0:
				return &usageError{err: errors.New("-timeout: it must be more than 0"), hint: "-timeout 5m"}
			}
			ctx, cancel := context.WithTimeoutCause(c.Context(), limit, &hintedError{
				err:  fmt.Errorf("the changes could not be read within %s", limit),
				hint: "nucleus pause " + args[0] + ", or give a longer -timeout",
			})
			defer cancel()
			if tarred {
				return a.diffTar(ctx, args[0], archive)
			}
			return a.diffList(ctx, args[0], asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON, a line for each path")
	c.Flags().StringVar(&archive, "tar", "", "write an archive of the changes to FILE, or to standard output (-)")
	c.Flags().DurationVar(&limit, "timeout", 5*time.Minute, "how long it may take")
	return c
}

// printedChange is a line of -json.
type printedChange struct {
	Version int    `json:"version"`
	Change  string `json:"change"`
	Path    string `json:"path"`
	// Bytes is the path where JSON cannot say it, for it is not UTF-8.
	Bytes    []byte  `json:"path_bytes,omitempty"`
	Type     string  `json:"type,omitempty"`
	Replaced bool    `json:"replaced,omitempty"`
	Mode     string  `json:"mode,omitempty"`
	UID      *uint32 `json:"uid,omitempty"`
	GID      *uint32 `json:"gid,omitempty"`
	Size     *uint64 `json:"size,omitempty"`
	Target   string  `json:"target,omitempty"`
}

var typeNames = map[changes.Type]string{changes.File: "file", changes.Directory: "directory", changes.Symlink: "symlink", changes.Other: "other"}

func printedOf(e *changes.Entry) *printedChange {
	p := &printedChange{Version: 1, Change: string(rune(e.Change)), Path: e.Path, Type: typeNames[e.Type], Replaced: e.Replaced, Target: e.Target}
	if !utf8.ValidString(e.Path) {
		p.Bytes = []byte(e.Path)
	}
	if e.Change != changes.Deleted {
		p.Mode, p.UID, p.GID = fmt.Sprintf("%04o", e.Mode), &e.UID, &e.GID
	}
	if e.Type == changes.File {
		p.Size = &e.Size
	}
	return p
}

func (a *app) diffList(ctx context.Context, ref string, asJSON bool) error {
	return a.readChanges(ctx, ref, false, func(e *changes.Entry, _ io.Reader) error {
		if asJSON {
			b, err := json.Marshal(printedOf(e))
			if err != nil {
				return err
			}
			_, err = a.out.Write(append(b, '\n'))
			return err
		}
		if e.Replaced {
			if _, err := fmt.Fprintf(a.out, "%c %s\n", changes.Deleted, printable(e.Path)); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintf(a.out, "%c %s\n", e.Change, printable(e.Path))
		return err
	})
}

// diffTar leaves no archive that is not whole.
func (a *app) diffTar(ctx context.Context, ref, file string) error {
	if file == "-" {
		return a.writeTar(ctx, ref, a.out)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return &hintedError{err: err, hint: "name a file that does not exist"}
	}
	if err != nil {
		return err
	}
	err = a.writeTar(ctx, ref, f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		if rerr := os.Remove(file); rerr != nil {
			a.problem("warning", rerr.Error(), "")
		}
	}
	return err
}

func (a *app) writeTar(ctx context.Context, ref string, to io.Writer) error {
	w := changetar.New(to)
	if err := a.readChanges(ctx, ref, true, w.Add); err != nil {
		return err
	}
	if w.Left > 0 {
		a.problem("warning", fmt.Sprintf("%d paths are not in the archive: devices, sockets, FIFOs, or named %s…", w.Left, changes.Whiteout), "")
	}
	return w.Close()
}

// readChanges asks for what a sandbox has changed, and hands on what comes.
func (a *app) readChanges(ctx context.Context, ref string, content bool, take func(*changes.Entry, io.Reader) error) error {
	c, x, err := a.dial(ctx, ref)
	if err != nil {
		return err
	}
	defer c.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	asked := make(chan error, 1)
	go func() {
		err := c.Call(ctx, supervisor.VerbDiff, supervisor.DiffRequest{Content: content}, nil, w)
		_ = w.Close() // the reader sees the end by it, if the supervisor has none any more
		asked <- err
	}()
	defer context.AfterFunc(ctx, func() { _ = r.Close() })() // whoever else has the other end
	taken := takeAll(changes.NewReader(r, content), take)
	_ = r.Close()
	here := taken != nil && !errors.Is(taken, changes.ErrStream) && ctx.Err() == nil
	if here {
		cancel()
	}
	if err := <-asked; err != nil && !here {
		var he *hintedError
		if errors.As(context.Cause(ctx), &he) {
			return he
		}
		return controlError(x, err)
	}
	return taken
}

func takeAll(r *changes.Reader, take func(*changes.Entry, io.Reader) error) error {
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = take(e, r)
		}
		if err != nil {
			return err
		}
	}
}
