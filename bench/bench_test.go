package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	for _, test := range []struct {
		values  []float64
		q, want float64
	}{
		{[]float64{3}, 0.95, 3},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 2, 3}, 0.5, 2.5},
		{[]float64{0, 100}, 0.95, 95},
		{[]float64{1, 2, 3}, 1, 3},
	} {
		if got := quantile(test.values, test.q); got != test.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", test.values, test.q, got, test.want)
		}
	}
	if got := quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %v", got)
	}
}

func TestColdMeasuresWholeLifeOfSuccessfulStarts(t *testing.T) {
	r, err := measureCold(request{Count: 3, Command: command{Argv: []string{"/bin/sleep", "0.05"}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Times) != 3 {
		t.Fatalf("%d times, want 3", len(r.Times))
	}
	for _, took := range r.Times {
		if took < 50*time.Millisecond {
			t.Errorf("sleeping 50 ms took %v", took)
		}
	}
}

func TestMeasurementsRefuseFailures(t *testing.T) {
	failing := command{Argv: []string{"/bin/sh", "-c", "echo reason >&2; exit 3"}}
	if _, err := measureCold(request{Count: 1, Command: failing}); err == nil || !strings.Contains(err.Error(), "reason") {
		t.Errorf("cold: %v", err)
	}
	if _, err := measureRate(request{Parallel: 2, Millis: 50, Command: failing}); err == nil || !strings.Contains(err.Error(), "reason") {
		t.Errorf("rate: %v", err)
	}
}

// A shell is the sandbox, and what it says of itself the command that runs in it.
func TestExecMeasuresCommandsInOneSandboxAndEndsIt(t *testing.T) {
	dir := t.TempDir()
	c := command{
		Argv: []string{"/bin/sh", "-c", "mkdir " + dir + "/{ID}; " + strings.Join(payloadArgs, " ")},
		Exec: []string{"/bin/sh", "-c", "test -d " + dir + "/{ID} && sleep 0.02"},
	}
	r, err := measureExec(request{Count: 3, Serial: "s", Command: c})
	if err != nil {
		t.Fatal(err)
	}
	for _, took := range r.Times {
		if took < 20*time.Millisecond {
			t.Errorf("sleeping 20 ms took %v", took)
		}
	}
	if len(r.Times) != 3 || len(descendants()) != 0 {
		t.Errorf("%d times, want 3; left: %v", len(r.Times), descendants())
	}
}

func TestRateCountsFinishedStarts(t *testing.T) {
	r, err := measureRate(request{Parallel: 4, Millis: 200, Command: command{Argv: []string{"/bin/sleep", "0.1"}}})
	if err != nil {
		t.Fatal(err)
	}
	if perSecond := float64(r.Done) / r.Elapsed.Seconds(); r.Done < 4 || perSecond > 40 {
		t.Errorf("%d starts of 100 ms by 4 launchers in %v", r.Done, r.Elapsed)
	}
}

func TestEveryStartHasItsOwnNameAndFilter(t *testing.T) {
	dir := t.TempDir()
	filter := filepath.Join(dir, "filter")
	if err := os.WriteFile(filter, []byte("whole"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := `test "$(cat <&3)" = whole && mkdir ` + dir + `/{ID}`
	if _, err := measureCold(request{Count: 2, Serial: "s", Command: command{Argv: []string{"/bin/sh", "-c", script}, Filter: filter}}); err != nil {
		t.Fatal(err)
	}
}

func TestSumFields(t *testing.T) {
	text := []byte("Rss: 9 kB\nPss:                 12 kB\nPss_Anon: 5 kB\nSlab: 3 kB\n")
	if got := sumFields(text, "Pss:", "Slab:"); got != 15 {
		t.Errorf("got %v", got)
	}
}

func sample() *report {
	f := &fixture{nucleusLimits: true}
	r := newReport(options{rounds: 1, runs: 2, sandboxes: 1}, f, "root", true)
	r.rows = []*row{
		{peer: peer{name: "floor"}, cold: []float64{2, 4}, cpu: []float64{1}, rates: map[int][]float64{1: {100}}},
		{peer: peer{name: "crun"}, cold: []float64{30}, cpu: []float64{1}, commands: []float64{8}, commandCPU: []float64{1}},
		{peer: peer{name: "a <b> & c", skip: "not <installed>"}},
		{peer: peer{name: "nucleus", host: true}, cold: []float64{12}, cpu: []float64{1}, idles: &idleReply{SupportPSS: 4096}, commands: []float64{6, 2}, commandCPU: []float64{1}},
		{peer: peer{name: "nucleus, 1 secret", host: true, coldOnly: true}, cold: []float64{24}, cpu: []float64{1}},
	}
	return r
}

func TestReportStatesRatiosAndOmissions(t *testing.T) {
	page := sample().markdown()
	for _, want := range []string{"| nucleus |", "| 4.00 |\n", "nucleus takes 0.40 times as long as crun", "nucleus exec takes 0.50 times as long as crun exec", "nucleus, 1 secret takes 2.00 times as long as nucleus, 12.0 ms more", "a <b> & c was left out: not <installed>", "| 4096 |"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
}

func TestPlotIsWellFormed(t *testing.T) {
	r := sample()
	r.rows[2].cold = []float64{1}
	decoder := xml.NewDecoder(strings.NewReader(plot(r)))
	bars := 0
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "rect" {
			bars++
		}
	}
	if want := 1 + 5 + 1 + 1; bars != want { // background, cold, rate, idle
		t.Errorf("%d rectangles, want %d", bars, want)
	}
}
