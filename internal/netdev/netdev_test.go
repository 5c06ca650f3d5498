package netdev

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

const titles = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
`

func TestParse(t *testing.T) {
	got, err := Parse(strings.NewReader(titles + `    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9
  eth0: 18446744073709551615 2 3 4 0 0 0 8 9 10 11 12 0 0 0 0
a` + "\x1b\\\xff" + `:0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Interface{
		{Name: "eth0", RxBytes: 1<<64 - 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 9, TxPackets: 10, TxErrors: 11, TxDropped: 12},
		{Name: `a\x1b\x5c\xff`},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestParseTakesNothingElse(t *testing.T) {
	for _, line := range []string{
		"eth0 1 2 3", "eth0: 1 2 3", ": 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0", "e: -1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
		"e: 18446744073709551616 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0", "e: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0", "",
	} {
		if got, err := Parse(strings.NewReader(titles + line + "\n")); err == nil {
			t.Errorf("%q: got %+v", line, got)
		}
	}
}

func TestParseIsBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString(titles)
	for i := range 10000 {
		fmt.Fprintf(&b, "dummy%d: 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n", i)
	}
	got, err := Parse(strings.NewReader(b.String()))
	if err != nil || len(got) != maxInterfaces {
		t.Errorf("%d interfaces, %v", len(got), err)
	}
	if _, err := Parse(strings.NewReader(titles + strings.Repeat("x", 1<<20))); err == nil {
		t.Error("a line without an end was taken")
	}
}

func TestOfReadsThisKernel(t *testing.T) {
	got, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range got {
		if x.Name == "lo" {
			t.Error("lo is told of")
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(titles + "eth0: 1 2 3 4 0 0 0 8 9 10 11 12 0 0 0 0\n")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := Parse(strings.NewReader(s))
		if err != nil {
			return
		}
		for _, x := range got {
			if x.Name == "" || strings.ContainsFunc(x.Name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
				t.Errorf("name %q", x.Name)
			}
		}
	})
}
