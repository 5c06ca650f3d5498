// Command nucleus-fmt rewrites HCL on its standard input in the canonical
// style. It is what `nucleus fmt` runs: the formatter's package initialisation
// alone would cost every start of a sandbox most of a millisecond
// (docs/adr/0003-fmt-helper.md).
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/nucleus-runtime/nucleus/core/job/format"
)

func main() {
	src, err := io.ReadAll(os.Stdin)
	if err == nil {
		_, err = os.Stdout.Write(format.Source(src))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nucleus-fmt: error:", err)
		os.Exit(125)
	}
}
