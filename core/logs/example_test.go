package logs_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nucleus-runtime/nucleus/core/logs"
)

// A stream is copied to a log, and its last line shown.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "nucleus-example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	now := func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }
	l, err := logs.Open(dir, logs.Options{MaxBytes: 1 << 20, Now: now})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	if err := l.Copy(logs.Out, strings.NewReader("one\ntwo\n")); err != nil {
		fmt.Println(err)
	}
	p := logs.Printer{W: os.Stdout, JSON: true}
	if err := logs.Read(context.Background(), dir, logs.Query{Tail: 1}, p.Show); err != nil {
		fmt.Println(err)
	}
	// Output:
	// {"v":1,"t":"2026-01-02T03:04:05.000000000Z","s":"out","m":"two"}
}
