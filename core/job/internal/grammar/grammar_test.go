package grammar

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestNames(t *testing.T) {
	for in, want := range map[string]bool{
		"a": true, "0": true, "a-b-": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "A": false, "a_b": false, "a.b": false, "ä": false, "a b": false, "a/b": false, "a\n": false, strings.Repeat("a", 64): false,
	} {
		if IsName(in) != want || (NameProblem(in) == "") != want {
			t.Errorf("IsName(%q) = %v", in, !want)
		}
	}
}

func TestNameOfIsAName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "program")
		if n := NameOf(s); !IsName(n) {
			t.Fatalf("NameOf(%q) = %q", s, n)
		}
	})
}

func TestUsers(t *testing.T) {
	for in, want := range map[string]bool{
		"root": true, "_apt": true, "svc$": true, "0": true, "1000:1000": true, "app:staff": true, "4294967294": true, "a.b-c": true,
		"": false, ":": false, "1000:": false, ":1": false, "4294967295": false, "4294967296": false, "01": false, "-1": false, "a b": false,
		"$a": false, "1a": false, "a:b:c": false, "a\x00": false, strings.Repeat("a", 33): false,
	} {
		if IsUser(in) != want {
			t.Errorf("IsUser(%q) = %v", in, !want)
		}
	}
}

func TestHostnames(t *testing.T) {
	for in, want := range map[string]bool{
		"web": true, "Web-1.example": true, "1": true, strings.Repeat("a", 63): true,
		"": false, ".": false, "a.": false, "-a": false, "a-": false, "a_b": false, "a..b": false, strings.Repeat("a", 64): false, "ä": false,
	} {
		if IsHostname(in) != want {
			t.Errorf("IsHostname(%q) = %v", in, !want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	if n := len(Capabilities()); n != 41 {
		t.Errorf("%d capabilities, Linux has 41", n)
	}
	for in, want := range map[string]string{"chown": "CAP_CHOWN", "CAP_chown": "CAP_CHOWN", "Net_Bind_Service": "CAP_NET_BIND_SERVICE"} {
		if got, ok := Capability(in); !ok || got != want {
			t.Errorf("Capability(%q) = %q, %v", in, got, ok)
		}
	}
	if c, ok := Capability("CAP_"); ok {
		t.Errorf("%q is a capability", c)
	}
}
