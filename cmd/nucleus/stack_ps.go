package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

// stackJob is one line of ps of a stack.
type stackJob struct {
	Job     string `json:"job"`
	Sandbox string `json:"sandbox"`
	InFile  bool   `json:"in_file"`
	Status  string `json:"status"`
	// Record is null for a job that was not started.
	Record *supervisor.Record `json:"record"`
}

const statusNotStarted = "not started"

func (a *app) psStack(ctx context.Context, f *stackFlags, asJSON bool) error {
	m, err := a.stack(f)
	if err != nil {
		return err
	}
	var names []string
	if f.config != "" {
		file, src, err := a.readJob(f.config)
		if err != nil {
			return err
		}
		found, diags := job.Names(file, src)
		if err := a.diagnostics(map[string][]byte{file: src}, diags); err != nil {
			return err
		}
		names = found
	}
	if err := m.look(ctx); err != nil {
		return err
	}
	if f.config == "" && len(m.of) == 0 {
		return &hintedError{err: fmt.Errorf("no stack %q", m.name), hint: "nucleus ps -a lists all sandboxes; a stack of which nothing is there is known by its file alone: nucleus ps -config FILE"}
	}
	list := []stackJob{}
	for _, name := range names {
		list = append(list, m.job(ctx, name, true))
		delete(m.of, name)
	}
	for _, name := range slices.Sorted(maps.Keys(m.of)) {
		list = append(list, m.job(ctx, name, f.config == ""))
	}
	if asJSON {
		return a.printJSON(struct {
			Version int        `json:"version"`
			Stack   string     `json:"stack"`
			Jobs    []stackJob `json:"jobs"`
		}{1, m.name, list})
	}
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "JOB\tSANDBOX\tSTATUS\tREADY\tPID\tAGE")
	for _, j := range list {
		st, ready, pid, age := j.Status, "-", "-", "-"
		if r := j.Record; r != nil {
			st = status(*r)
			if r.Pid != 0 {
				pid, ready = fmt.Sprint(r.Pid), "no"
				if r.Ready {
					ready = "yes"
				}
			}
			if !r.Created.IsZero() {
				age = time.Since(r.Created).Round(time.Second).String()
			}
		}
		if !j.InFile {
			st += ", not in the file"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", printable(j.Job), printable(j.Sandbox), st, ready, pid, age)
	}
	return t.Flush()
}

// job tells of one job of the stack.
func (m *members) job(ctx context.Context, name string, inFile bool) stackJob {
	j := stackJob{Job: name, Sandbox: m.sandbox(name), InFile: inFile, Status: statusNotStarted}
	k, ok := m.of[name]
	if !ok {
		return j
	}
	j.Record = &k.record
	if k.alive { // only its supervisor knows whether it is ready
		if r, err := m.record(ctx, m.root, k.ref); err == nil {
			j.Record = r
		}
	}
	j.Status = string(j.Record.Status)
	return j
}
