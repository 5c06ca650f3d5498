package probe_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nucleus-runtime/nucleus/core/probe"
)

func ExampleAwaitReady() {
	left := 2
	err := probe.AwaitReady(context.Background(), probe.Readiness{Interval: time.Millisecond, Timeout: time.Minute}, func(context.Context) error {
		if left--; left > 0 {
			return errors.New("connection refused")
		}
		return nil
	})
	fmt.Println(err)
	// Output: <nil>
}

func ExampleNewRestarts() {
	r := probe.NewRestarts("failure", 3, time.Second)
	for _, ran := range []time.Duration{time.Second, time.Second, time.Hour, 0, 0, 0} {
		wait, again := r.Next(true, ran)
		fmt.Println(ran, wait, again)
	}
	// Output:
	// 1s 1s true
	// 1s 2s true
	// 1h0m0s 1s true
	// 0s 2s true
	// 0s 4s true
	// 0s 0s false
}
