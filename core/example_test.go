package core_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/secret"
)

// A program runs a job file.
func ExampleRuntime_Run() {
	rt, err := core.New(options)
	if err != nil {
		fmt.Println(err)
		return
	}
	j, diags := job.Parse("hello.hcl", []byte(`
job "hello" {
  command = ["/bin/echo", "hello from nucleus"]
}`), job.Options{Dir: "/"})
	if diags.HasErrors() {
		fmt.Println(diags)
		return
	}
	p, err := rt.Plan(j)
	if err != nil {
		fmt.Println(err)
		return
	}
	res, err := rt.Run(context.Background(), p, core.RunOptions{Streams: core.Streams{Out: os.Stdout, Err: os.Stderr}})
	fmt.Println(res.Cause, res.ExitCode, err)
	// Output:
	// hello from nucleus
	// exit 0 <nil>
}

// New looks at the host and changes nothing; what it found is what plans are
// made from. A job that this host cannot run is refused with the line that asks
// for too much, and with what helps.
func ExampleNew() {
	rt, err := core.New(options)
	if err != nil {
		fmt.Println(err)
		return
	}
	j, _ := job.Parse("job.hcl", []byte(`job "a" {
  command = ["/bin/true"]
  user    = "nobody-of-that-name:0"
}`), job.Options{Dir: "/"})
	_, err = rt.Plan(j)
	var refused plan.Errors
	if errors.As(err, &refused) {
		for _, e := range refused {
			fmt.Println(e.Error())
		}
	}
	// Output:
	// job.hcl:3: user "nobody-of-that-name" is not in the host's /etc/passwd
}

// Between Create and Start everything is enforced and verified, and the
// workload has not run. The events tell of each phase.
func ExampleRuntime_Create() {
	var events bytes.Buffer
	o := options
	o.Events = []io.Writer{&events}
	rt, err := core.New(o)
	if err != nil {
		fmt.Println(err)
		return
	}
	j, _ := job.FromOptions(job.Options{Command: []string{"/bin/sh", "-c", "exit 7"}, Name: "seven", Dir: "/"})
	p, err := rt.Plan(j)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	s, err := rt.Create(ctx, p, core.RunOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("created:", s.Name())
	if err := s.Start(ctx); err != nil {
		fmt.Println(err)
		return
	}
	res, err := s.Wait()
	fmt.Println("ended:", res.Cause, res.ExitCode, err)
	for lines := json.NewDecoder(&events); lines.More(); {
		var e struct{ Type string }
		if err := lines.Decode(&e); err != nil {
			fmt.Println(err)
			return
		}
		switch e.Type {
		case "posture.verified", "workload.started", "workload.exited", "sandbox.removed":
			fmt.Println(e.Type)
		}
	}
	// Output:
	// created: seven
	// ended: exit 7 <nil>
	// posture.verified
	// workload.started
	// workload.exited
	// sandbox.removed
}

// Between Start and Wait a program looks at a sandbox, runs further commands in it
// and sends its workload signals. If the program ends, the sandbox does.
func ExampleSandbox_exec() {
	rt, err := core.New(options)
	if err != nil {
		fmt.Println(err)
		return
	}
	j, _ := job.FromCommand("worker", []string{"/bin/sh", "-c", "trap 'exit 5' HUP; while :; do sleep 0.01; done"}, "/")
	p, err := rt.Plan(j)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	s, err := rt.Create(ctx, p, core.RunOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := s.Start(ctx); err != nil {
		fmt.Println(err)
		return
	}
	select {
	case <-s.Running():
	case <-s.Ended(): // before it ran
	}
	stats, err := s.Stats(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(stats.Name, stats.Status)

	r, w, err := os.Pipe()
	if err != nil {
		fmt.Println(err)
		return
	}
	command, err := s.Exec(ctx, lifecycle.Command{Args: []string{"cat", "/proc/1/comm"}, Stdio: [3]*os.File{nil, w, nil}})
	_ = w.Close()
	if err != nil {
		fmt.Println(err)
		return
	}
	said, _ := io.ReadAll(r)
	code, _, err := command.Wait()
	fmt.Printf("%q %d %v\n", said, code, err)

	s.Signal(unix.SIGHUP)
	res, err := s.Wait()
	fmt.Println(res.Cause, res.ExitCode, err)
	// Output:
	// worker running
	// "nucleus-init\n" 0 <nil>
	// exit 5 <nil>
}

// An embedding program that knows where its secrets are gives them itself. Their
// values are in sealed memory from then on, and in the sandbox as files.
func ExampleOptions_secrets() {
	o := options
	o.Secrets = secret.SourceFunc(func(_ context.Context, r secret.Request) (map[string]*secret.Value, error) {
		values := map[string]*secret.Value{}
		for _, g := range r.Groups {
			for _, ref := range g.Refs {
				v, err := secret.New([]byte("from " + g.Provider))
				if err != nil {
					return values, &secret.Error{Name: ref.Name, Err: err}
				}
				values[ref.Name] = v
			}
		}
		return values, nil
	})
	rt, err := core.New(o)
	if err != nil {
		fmt.Println(err)
		return
	}
	j, _ := job.Parse("job.hcl", []byte(`job "reader" {
  command = ["/bin/cat", "/run/secrets/db"]
  secret "db" { provider = "memory" }
}`), job.Options{Dir: "/"})
	p, err := rt.Plan(j)
	if err != nil {
		fmt.Println(err)
		return
	}
	res, err := rt.Run(context.Background(), p, core.RunOptions{Streams: core.Streams{Out: os.Stdout}})
	fmt.Println()
	fmt.Println(res.Cause, res.ExitCode, err)
	// Output:
	// from memory
	// exit 0 <nil>
}

// A sandbox that is not wanted any more is stopped as its job says.
func ExampleSandbox() {
	rt, err := core.New(options)
	if err != nil {
		fmt.Println(err)
		return
	}
	j, _ := job.Parse("job.hcl", []byte(`job "sleeper" {
  command = ["/bin/sleep", "600"]
  stop { signal = "SIGINT" }
}`), job.Options{Dir: "/"})
	p, err := rt.Plan(j)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	s, err := rt.Create(ctx, p, core.RunOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := s.Start(ctx); err != nil {
		fmt.Println(err)
		return
	}
	s.Stop()
	res, err := s.Wait()
	fmt.Println(res.Cause, res.ExitCode, err)
	// Output:
	// stopped 130 <nil>
}
