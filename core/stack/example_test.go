package stack_test

import (
	"context"
	"fmt"

	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/stack"
)

func ExampleNew() {
	o := stack.New([]stack.Job{
		{Name: "web", Needs: []job.Dependency{{Job: "db", Condition: job.ConditionReady}}},
		{Name: "db"},
	})
	errs := o.Start(context.Background(), func(string) bool { return false }, func(_ context.Context, name string, reached func(job.Condition)) error {
		fmt.Println("start", name)
		reached(job.ConditionReady)
		return nil
	})
	fmt.Println(len(errs), "failed")
	o.Stop(context.Background(), func(_ context.Context, name string) error {
		fmt.Println("stop", name)
		return nil
	})
	// Output:
	// start db
	// start web
	// 0 failed
	// stop web
	// stop db
}
