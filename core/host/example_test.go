package host_test

import (
	"context"
	"fmt"
	"log"

	"github.com/nucleus-runtime/nucleus/core/host"
	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// A program that probes calls host.MaybeChild first thing in its main.
func ExampleProbe() {
	h, err := host.Quick(host.Options{})
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range host.Probe(context.Background(), host.ProbeOptions{Host: h, Only: []string{"no-new-privs"}}) {
		fmt.Println(f.Name, f.State == fact.Available)
	}
	// Output: no-new-privs true
}
