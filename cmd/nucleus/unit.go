package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/nucleus-runtime/nucleus/cmd/nucleus/internal/unit"
	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

type unitFlags struct {
	jobFlags
	user     bool
	watchdog time.Duration
}

func (a *app) unitCommand() *cobra.Command {
	var f unitFlags
	c := &cobra.Command{
		Use:   "unit FILE [flags]",
		Short: "Print a systemd unit that runs a job",
		Long: `Check a job file, and print a systemd unit that runs it. The unit names this program
and the file by their absolute paths, and takes over the flags; what the job says
stays in its file, so print the unit again when readiness, stop or hooks change.`,
		Example: `  nucleus unit web.hcl | sudo tee /etc/systemd/system/web.service
  nucleus unit web.hcl -user > ~/.config/systemd/user/web.service
  nucleus unit web.hcl -var port=8080 -name web -watchdog 30s`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "-" {
				return &usageError{err: errors.New("name the job file: a unit reads it at each start"), hint: "nucleus unit job.hcl"}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			f.config = args[0]
			return a.unit(&f)
		},
	}
	f.addVariables(c)
	f.addJob(c)
	f.addParent(c)
	c.Flags().StringVar(&f.name, "name", "", "name of the sandbox (default: the job's, made unique)")
	c.Flags().BoolVar(&f.user, "user", false, "for systemctl --user: a sandbox of an ordinary user")
	c.Flags().DurationVar(&f.watchdog, "watchdog", 0, "end and restart a workload that has not sent WATCHDOG=1 for this long; the job needs sd_notify = true")
	return c
}

func (a *app) unit(f *unitFlags) error {
	name := f.name
	f.name = ""
	j, err := a.load(&f.jobFlags, nil)
	if err != nil {
		return err
	}
	if err := core.Check(j); err != nil {
		return err
	}
	if i := j.Network.JobsRule(); i >= 0 {
		return plan.Errors{plan.ErrorAt(j, network.JobsOrigin(i), "nucleus up -config "+f.config, network.Alone)}
	}
	if f.watchdog < 0 || f.watchdog > 0 && !j.SDNotify {
		return &usageError{err: errors.New("-watchdog: the workload's WATCHDOG=1 is passed on for a job with sd_notify = true, and a positive time"), hint: "add to the job: sd_notify = true"}
	}
	o := unit.Options{Version: version, Job: j, User: f.user, Delegate: f.parent == "", Watchdog: f.watchdog}
	if o.Path, err = filepath.Abs(f.config); err == nil {
		o.Command, err = a.unitRun(f, o.Path, name)
	}
	if err != nil {
		return err
	}
	text, err := unit.Text(o)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(a.out, text)
	return err
}

// unitRun is the command of the unit.
func (a *app) unitRun(f *unitFlags, path, name string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	words := []string{self, "run"}
	for _, x := range []struct {
		flag, path string
	}{{"-state-root", a.stateRoot}, {"-host-config", a.hostConfigPath}} {
		if x.path == "" {
			continue
		}
		abs, err := filepath.Abs(x.path)
		if err != nil {
			return nil, err
		}
		words = append(words, x.flag, abs)
	}
	words = append(words, "-config", path)
	if f.job != "" {
		words = append(words, "-job", f.job)
	}
	for _, v := range f.vars {
		words = append(words, "-var", v)
	}
	for _, file := range f.varFiles {
		abs, err := filepath.Abs(file)
		if err != nil {
			return nil, err
		}
		words = append(words, "-var-file", abs)
	}
	if f.hostFuncs {
		words = append(words, "-allow-host-functions")
	}
	if f.parent != "" {
		words = append(words, "-cgroup-parent", f.parent)
	}
	if name != "" {
		words = append(words, "-name", name)
	}
	return words, nil
}
