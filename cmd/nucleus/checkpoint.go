package main

import (
	"errors"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

func (a *app) checkpointCommand() *cobra.Command {
	var r supervisor.CheckpointRequest
	c := &cobra.Command{
		Use:   "checkpoint NAME -image DIR [-leave-running]",
		Short: "Save the state of a sandbox to a directory, for nucleus run -restore",
		Long: `Save the state of a running sandbox, the memory and the processes of its workload, to
a new directory, and end the sandbox (exit code 0, cause "checkpointed"); with
-leave-running it goes on. The job has to say runtime "gvisor" { checkpoint = true }.
nucleus run -restore DIR with the same job goes on where it was.

The directory is there when all of it is on disk. An interrupt, or any error, leaves
none, and the sandbox goes on. It holds all that the workload has in memory: keep it as
you would keep the workload's secrets.`,
		Example: `  nucleus checkpoint web -image /var/lib/images/web
  nucleus run -config web.hcl -restore /var/lib/images/web`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if r.Image == "" {
				return &usageError{err: errors.New("-image: the directory that is to be made is missing"), hint: "nucleus checkpoint NAME -image DIR"}
			}
			// The supervisor has another working directory.
			var err error
			if r.Image, err = filepath.Abs(r.Image); err != nil {
				return err
			}
			return a.call(c.Context(), args[0], supervisor.VerbCheckpoint, r, nil)
		},
	}
	c.Flags().StringVar(&r.Image, "image", "", "the directory to make; it may be there if it is empty")
	c.Flags().BoolVar(&r.LeaveRunning, "leave-running", false, "let the sandbox go on")
	return c
}
