package format

import "testing"

func TestSource(t *testing.T) {
	in := "job \"x\" {\ncommand=[\"/bin/true\"] # why\n  mode = \"agent\"\n}\n"
	want := "job \"x\" {\n  command = [\"/bin/true\"] # why\n  mode    = \"agent\"\n}\n"
	got := string(Source([]byte(in)))
	if got != want {
		t.Errorf("Source:\n%s\nwant:\n%s", got, want)
	}
	if again := string(Source([]byte(got))); again != got {
		t.Errorf("not stable:\n%s", again)
	}
}
