// Command client runs in a sandbox: it reads a list of probes from the file that its one
// argument names, and prints a result a line, in JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("want one argument, have %d", len(os.Args)-1)
	}
	data, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	var probes []probe.Probe
	if err := json.Unmarshal(data, &probes); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	var failed error
	probe.Run(context.Background(), probes, func(r probe.Result) {
		if err := out.Encode(r); err != nil {
			failed = err
		}
	})
	return failed
}
