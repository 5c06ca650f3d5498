package procstatus

import "testing"

func TestGet(t *testing.T) {
	text := Text("Name:\ta: CapEff: 1\nUid:\t1000\t1000\t1000\t1000\nGroups:\t \nCapEff:\t0000000000001000\nlast:\tno newline")
	for key, want := range map[string]string{
		"Name": "a: CapEff: 1", "Uid": "1000\t1000\t1000\t1000", "Groups": "", "CapEff": "0000000000001000", "last": "no newline", "Cap": "", "none": "",
	} {
		if got := text.Get(key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}

func TestFour(t *testing.T) {
	if got, want := Four(65534), "65534\t65534\t65534\t65534"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
