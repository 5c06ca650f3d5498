package state

import (
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func steps(rs []Record) string {
	var out []string
	for _, r := range rs {
		out = append(out, r.Step+string(r.Data))
	}
	return strings.Join(out, " ")
}

func TestPending(t *testing.T) {
	for _, test := range []struct{ what, text, want, wantErr string }{
		{"an empty journal", "", "", ""},
		{"intents in their order", `{"phase":"intent","step":"a","data":1}` + "\n" + `{"phase":"intent","step":"b","data":2}` + "\n", "a1 b2", ""},
		{"done is still to be undone", `{"phase":"intent","step":"a"}` + "\n" + `{"phase":"done","step":"a"}` + "\n", "a", ""},
		{"undone is not", `{"phase":"intent","step":"a"}` + "\n" + `{"phase":"undone","step":"a"}` + "\n", "", ""},
		{"a later intent knows more of its step", `{"phase":"intent","step":"a","data":1}` + "\n" + `{"phase":"intent","step":"b"}` + "\n" + `{"phase":"intent","step":"a","data":2}` + "\n", "a2 b", ""},
		{"undone takes its step whole", `{"phase":"intent","step":"a","data":1}` + "\n" + `{"phase":"intent","step":"a","data":2}` + "\n" + `{"phase":"undone","step":"a"}` + "\n", "", ""},
		{"undone of what never was", `{"phase":"undone","step":"a"}` + "\n", "", ""},
		{"a torn last record never happened", `{"phase":"intent","step":"a"}` + "\n" + `{"phase":"intent","st`, "a", ""},
		{"a damaged record in the middle", `{"phase":"intent","step":"a"}` + "\n" + "\x00\x00\n" + `{"phase":"intent","step":"b"}` + "\n", "", "journal: "},
	} {
		got, err := pending(strings.NewReader(test.text))
		if test.wantErr == "" && err != nil || test.wantErr != "" && (err == nil || !strings.Contains(err.Error(), test.wantErr)) {
			t.Errorf("%s: error %v, want %q", test.what, err, test.wantErr)
		}
		if steps(got) != test.want {
			t.Errorf("%s: %q, want %q", test.what, steps(got), test.want)
		}
	}
}

// A record that follows a torn one must not become a part of it: the journal
// would be unreadable for good, and its sandbox with it.
func TestTornRecordIsCutOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), journalName)
	whole := `{"seq":1,"phase":"intent","step":"a"}` + "\n" + `{"seq":2,"phase":"intent","step":"b"}` + "\n"
	if err := os.WriteFile(path, []byte(whole+`{"seq":3,"phase":"inte`), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Undone("b"); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := pending(f)
	if err != nil || steps(got) != "a" {
		t.Errorf("pending after a torn record: %q, %v, want a", steps(got), err)
	}
}

func TestJournalRefusesWhatIsNone(t *testing.T) {
	for _, test := range []struct {
		what string
		make func(path string) error
	}{
		{"a directory", func(p string) error { return os.Mkdir(p, 0o700) }},
		{"a link", func(p string) error { return os.Symlink("/dev/null", p) }},
		{"a FIFO, at once", mkfifo},
		{"a file of 17 MiB", func(p string) error {
			if err := os.WriteFile(p, nil, 0o600); err != nil {
				return err
			}
			return os.Truncate(p, 17<<20)
		}},
	} {
		path := filepath.Join(t.TempDir(), journalName)
		if err := test.make(path); err != nil {
			t.Fatal(err)
		}
		if j, err := openJournal(path); err == nil {
			t.Errorf("%s was opened as a journal", test.what)
			_ = j.Close()
		}
	}
}

// What the journal says is read through the open file: who removes the state
// root under a live sandbox must not make its effects outlive it.
func TestPendingOutlivesTheDirectory(t *testing.T) {
	root := open(t, filepath.Join(t.TempDir(), "root"))
	d := create(t, root, NewID(), "x")
	if err := d.Journal.Intent("a", 1); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(root.Path()); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Pending(); err != nil || steps(got) != "a1" {
		t.Errorf("pending: %q, %v, want a1", steps(got), err)
	}
	if err := d.Remove(); err != nil {
		t.Errorf("removing what is gone already: %v", err)
	}
}

func FuzzPending(f *testing.F) {
	f.Add(`{"phase":"intent","step":"a","data":1}` + "\n" + `{"phase":"undone","step":"a"}` + "\n")
	f.Add("{\"phase\":\"intent\",\"step\":\"a\"}\n{\"pha")
	f.Add("\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := pending(strings.NewReader(text))
		if err != nil && got != nil {
			t.Errorf("records beside the error %v", err)
		}
		if len(got) > strings.Count(text, "\n") {
			t.Errorf("%d records from %d lines", len(got), strings.Count(text, "\n"))
		}
	})
}

// What could not be read again is not written: neither a record that is too long, nor
// one that the file has no room for.
func TestRecordsAreBounded(t *testing.T) {
	j, err := createJournal(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := j.Intent("big", strings.Repeat("x", maxRecord)); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("error %v", err)
	}
	written := 0
	for err == nil {
		if err = j.Intent(strconv.Itoa(written), strings.Repeat("x", maxRecord-1000)); err == nil {
			written++
		}
	}
	got, perr := pending(io.NewSectionReader(j.f, 0, maxJournal))
	if perr != nil || len(got) != written || written < 10 {
		t.Errorf("%d of %d records, %v", len(got), written, perr)
	}
}

// What comes and goes all the time, as a pause does, leaves the journal as it was.
func TestRetractTakesTheIntentBack(t *testing.T) {
	j, err := createJournal(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	do := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(what, left string, records int) {
		t.Helper()
		b, err := os.ReadFile(j.f.Name())
		got, perr := pending(strings.NewReader(string(b)))
		if err != nil || perr != nil || steps(got) != left || strings.Count(string(b), "\n") != records || int64(len(b)) != j.size {
			t.Errorf("%s: %q, want %q in %d records: %s (%v, %v)", what, steps(got), left, records, b, err, perr)
		}
	}
	do(j.Intent("a", 1))
	for range 3 {
		do(j.Intent("b", 2), j.Retract("b"))
	}
	want("three times", "a1", 1)
	do(j.Intent("b", 2), j.Intent("c", 3), j.Retract("b"))
	want("with another behind it", "a1 c3", 4)
	do(j.Retract("c"))
	want("behind an undone one", "a1", 5)
	do(j.Undone("a"), j.Reset(), j.Intent("d", 4), j.Retract("d"), j.Intent("d", 5))
	want("begun anew", "d5", 1)
}

// TestWhatIsRememberedIsWhatTheFileHas: gc finds what a supervisor would have undone itself.
func TestWhatIsRememberedIsWhatTheFileHas(t *testing.T) {
	root := open(t, filepath.Join(t.TempDir(), "root"))
	d := create(t, root, NewID(), "x")
	defer d.Remove()
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 500 {
		step := string(rune('a' + random.IntN(4)))
		var err error
		switch random.IntN(8) {
		case 0, 1, 2:
			err = d.Journal.Intent(step, i)
		case 3:
			err = d.Journal.Done(step)
		case 4, 5:
			err = d.Journal.Undone(step)
		case 6: // of a step without an earlier intent
			if got, _ := d.Pending(); !strings.Contains(steps(got), "r") {
				if err = d.Journal.Intent("r", i); err == nil && random.IntN(2) == 0 {
					err = d.Journal.Done(step) // then it is not the last record
				}
			}
			if err == nil {
				err = d.Journal.Retract("r")
			}
		case 7:
			if random.IntN(8) == 0 {
				err = d.Journal.Reset()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.Pending()
		if err != nil {
			t.Fatal(err)
		}
		want, err := pending(io.NewSectionReader(d.Journal.f, 0, maxJournal))
		if err != nil || steps(got) != steps(want) {
			t.Fatalf("after %d: %q is remembered, the file has %q (%v)", i, steps(got), steps(want), err)
		}
	}
}
