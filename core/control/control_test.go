package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// badMessages are what no server and no client takes.
var badMessages = []struct {
	name, wire, code, says string
}{
	{"not JSON", `hello`, CodeBadRequest, "not one JSON object"},
	{"cut short", `{"v":1,"kind":"ec`, CodeBadRequest, "not one JSON object"},
	{"not an object", `[1]`, CodeBadRequest, "not a JSON object"},
	{"null", `null`, CodeBadRequest, "not a JSON object"},
	{"data behind", `{"v":1,"kind":"echo"}{}`, CodeBadRequest, "after top-level value"},
	{"a NUL behind", "{\"v\":1,\"kind\":\"echo\"}\x00", CodeBadRequest, "after top-level value"},
	{"not UTF-8", "{\"v\":1,\"kind\":\"echo\",\"body\":\"\xff\"}", CodeBadRequest, "not UTF-8"},
	{"no version", `{"kind":"echo"}`, CodeVersion, "version 0"},
	{"later version", `{"v":2,"kind":"echo"}`, CodeVersion, "version 2"},
	{"later version with more fields", `{"v":2,"kind":"echo","deadline":3}`, CodeVersion, "version 2"},
	{"version of another type", `{"v":"1","kind":"echo"}`, CodeBadRequest, `field "v"`},
	{"unknown field", `{"v":1,"kind":"echo","extra":1}`, CodeBadRequest, `unknown field "extra"`},
	{"a name in other letters", `{"v":1,"KIND":"echo"}`, CodeBadRequest, `unknown field "KIND"`},
	{"kind twice", `{"v":1,"kind":"echo","kind":"kill"}`, CodeBadRequest, "twice"},
	{"body twice", `{"v":1,"kind":"echo","body":{},"body":{}}`, CodeBadRequest, "twice"},
	{"unknown twice", `{"v":1,"kind":"echo","x":{},"x":{}}`, CodeBadRequest, "twice"},
	{"no kind", `{"v":1}`, CodeBadRequest, "kind"},
	{"kind for a terminal", `{"v":1,"kind":"echo\u001b[2J"}`, CodeBadRequest, "kind"},
	{"kind too long", `{"v":1,"kind":"` + strings.Repeat("a", 33) + `"}`, CodeBadRequest, "kind"},
	{"too deep", `{"v":1,"kind":"echo","body":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`, CodeBadRequest, "depth"},
}

func TestParseTakesNothingAmbiguous(t *testing.T) {
	for _, bad := range badMessages {
		t.Run(bad.name, func(t *testing.T) {
			_, err := parse([]byte(bad.wire))
			if e := wantCode(t, err, bad.code); !strings.Contains(e.Text, bad.says) {
				t.Errorf("%q does not say %q", e.Text, bad.says)
			}
		})
	}
}

func TestErrorsOfAnotherReleaseAreHeard(t *testing.T) {
	m, err := parse([]byte(`{"v":7,"kind":"error","since":9,"body":{"code":"moved","text":"ask elsewhere","hint":"there","where":1}}`))
	if err != nil {
		t.Fatal(err)
	}
	if e := wantCode(t, m.Err(), "moved"); e.Text != "ask elsewhere" || e.Remedy() != "there" {
		t.Errorf("%+v", e)
	}
	m.Body = json.RawMessage(`[]`)
	wantCode(t, m.Err(), CodeFailed)
	m.Kind = KindOK
	if err := m.Err(); err != nil {
		t.Errorf("not an error message: %v", err)
	}
}

func TestDecodeTellsOfAnotherRelease(t *testing.T) {
	type body struct {
		Signal int `json:"signal"`
		Size   struct {
			Rows uint16 `json:"rows"`
		} `json:"size"`
	}
	for _, c := range []struct{ name, body, code, says string }{
		{"unknown field", `{"signal":9,"group":true}`, CodeVersion, `message "kill" is of another release: field "group"`},
		{"unknown field within", `{"size":{"rows":1,"pixels":2}}`, CodeVersion, `field "pixels"`},
		{"other type", `{"signal":"KILL"}`, CodeVersion, `field "signal" cannot be a string`},
		{"out of range", `{"size":{"rows":70000}}`, CodeVersion, `field "size.rows" cannot be a number 70000`},
		{"other body", `"x"`, CodeVersion, `body cannot be a string`},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Message{V: 1, Kind: "kill", Body: json.RawMessage(c.body)}.Decode(new(body))
			if e := wantCode(t, err, c.code); !strings.Contains(e.Text, c.says) {
				t.Errorf("%q does not say %q", e.Text, c.says)
			}
		})
	}
	got := body{Signal: 7}
	if err := (Message{Kind: "kill"}).Decode(&got); err != nil || got.Signal != 7 {
		t.Errorf("no body: %+v, %v", got, err)
	}
	if err := (Message{Kind: "kill", Body: json.RawMessage(`{"signal":9,"size":{"rows":24}}`)}).Decode(&got); err != nil || got.Signal != 9 || got.Size.Rows != 24 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestWhatCannotBeEncodedIsNotSent(t *testing.T) {
	envelope, err := encode("x", "")
	if err != nil {
		t.Fatal(err)
	}
	room := MaxMessage - len(envelope)
	b, err := encode("x", strings.Repeat("a", room))
	if err != nil || len(b) != MaxMessage {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	_, err = encode("x", strings.Repeat("a", room+1))
	var large *TooLargeError
	if !errors.As(err, &large) || large.Size != MaxMessage+1 || large.Max != MaxMessage {
		t.Errorf("%#v", err)
	}
	for _, kind := range []string{"", "a b", "A", "-a"} {
		if _, err := encode(kind, nil); err == nil {
			t.Errorf("kind %q was taken", kind)
		}
	}
	if _, err := encode("x", func() {}); err == nil {
		t.Error("a function was taken for a body")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"v":1,"kind":"exec","body":{"args":["sh"]}}`))
	f.Add([]byte(`{"v":9,"kind":"error","body":{"code":"version","text":"no"}}`))
	for _, bad := range badMessages {
		f.Add([]byte(bad.wire))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Code == "" || e.Text == "" {
				t.Fatalf("%#v cannot be sent as an answer", err)
			}
			if _, err := encode(KindError, e); err != nil && len(b) <= MaxMessage/8 {
				t.Fatalf("the answer cannot be sent: %v", err)
			}
			return
		}
		if m.V != Version {
			if m.Kind != KindError {
				t.Fatalf("version %d was taken", m.V)
			}
			_ = m.Err()
			return
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		n, err := parse(again)
		if err != nil || n.V != m.V || n.Kind != m.Kind {
			t.Fatalf("%q parsed, and as %q is %+v, %v", b, again, n, err)
		}
		var one, other bytes.Buffer
		if len(m.Body) > 0 && (json.Compact(&one, m.Body) != nil || json.Compact(&other, n.Body) != nil) {
			t.Fatalf("bodies %q and %q", m.Body, n.Body)
		}
	})
}
