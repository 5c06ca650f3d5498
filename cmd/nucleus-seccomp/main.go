// Command nucleus-seccomp compiles a seccomp policy. It reads one policy as JSON on standard input and writes the filter,
// an array of struct sock_filter, to standard output. It is a program of its own because libseccomp needs cgo: nucleus
// itself stays a static binary that starts fast, and runs this one only for policies that are neither built in nor cached.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp/compile"
)

const maxInput = 4 << 20

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "nucleus-seccomp: error: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 1 && (args[0] == "-version" || args[0] == "--version") {
		_, err := fmt.Fprintf(stdout, "libseccomp %s\n", compile.Version())
		return err
	}
	if len(args) != 0 {
		return errors.New("takes a policy on standard input and no arguments; it is run by nucleus")
	}
	input, err := io.ReadAll(io.LimitReader(stdin, maxInput+1))
	if err != nil {
		return fmt.Errorf("reading standard input: %w", err)
	}
	if len(input) > maxInput {
		return fmt.Errorf("policy is longer than %d bytes", maxInput)
	}
	filter, err := seccomp.ServeHelper(input, compile.Policy)
	if err != nil {
		return err
	}
	_, err = stdout.Write(filter)
	return err
}
