package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/changes"
	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// tellChanges writes what an overlay has changed to descriptor 1. It is all that this
// process is for: no sandbox's, but one in the user namespace of one, where it may read what
// belongs to any id that the sandbox has.
func tellChanges(args []string) error {
	for fd := initproto.ChangesUpper; fd <= initproto.ChangesLower; fd++ {
		unix.CloseOnExec(fd)
	}
	if len(args) < 3 {
		return fmt.Errorf("%w: %d arguments", initproto.ErrMessage, len(args))
	}
	o := changes.Options{Target: args[0], Content: args[1] == initproto.ChangesContent, Own: map[string]bool{}, Whole: map[string]bool{}}
	var err error
	if o.Since, err = strconv.ParseInt(args[2], 10, 64); err != nil {
		return fmt.Errorf("%w: %w", initproto.ErrMessage, err)
	}
	for _, path := range args[3:] {
		if whole, ok := strings.CutSuffix(path, "/"); ok {
			o.Whole[whole] = true
		} else {
			o.Own[path] = true
		}
	}
	return changes.Write(os.Stdout, initproto.ChangesUpper, initproto.ChangesLower, o)
}
