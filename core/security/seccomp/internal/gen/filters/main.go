// Command filters compiles the built-in policies into the filters that package seccomp embeds. It runs on amd64.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp/compile"
)

func main() {
	if err := run("filters"); err != nil {
		fmt.Fprintln(os.Stderr, "filters:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	for _, goarch := range []string{"amd64", "arm64"} {
		def := seccomp.DefaultPolicy(goarch)
		trace := seccomp.TracePolicy(goarch)
		for name, policy := range map[string]seccomp.Policy{"trace": trace, "traceinit": seccomp.InitPolicy(trace), "default": def, "init": seccomp.InitPolicy(def), "setid": seccomp.SetIDPolicy(goarch), "local": seccomp.LocalPolicy(goarch), "tcp": seccomp.TCPPolicy(goarch), "runtime": seccomp.RuntimePolicy(goarch)} {
			raw, err := compile.Policy(policy)
			if err != nil {
				return fmt.Errorf("compiling %s for %s: %w", name, goarch, err)
			}
			file := filepath.Join(dir, name+"_"+goarch+".bpf")
			if err := os.WriteFile(file, raw, 0o644); err != nil {
				return err
			}
			fmt.Printf("%s: %d instructions\n", file, len(raw)/8)
		}
	}
	return nil
}
