package member

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestMessagesComeBackAsTheyWere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := Request{ID: rapid.Uint32().Draw(t, "id"), Job: rapid.StringMatching(`[a-z0-9_-]{1,63}`).Draw(t, "job")}
		if q.Protocol = rapid.SampledFrom([]Protocol{None, TCP, UDP}).Draw(t, "protocol"); q.Protocol != None {
			q.Family = rapid.SampledFrom([]Families{V4, V6}).Draw(t, "family")
			q.Port = rapid.Uint16Min(1).Draw(t, "port")
		}
		if got, err := DecodeRequest(q.Encode()); err != nil || got != q {
			t.Fatalf("%+v, %v, want %+v", got, err, q)
		}
		a := Answer{
			ID: q.ID, Outcome: rapid.SampledFrom([]Outcome{Done, Refused, Absent, Failed}).Draw(t, "outcome"),
			Families: rapid.SampledFrom([]Families{0, V4, V6, V4 | V6}).Draw(t, "families"),
		}
		if a.Outcome == Failed {
			a.Errno = rapid.Uint16Min(1).Draw(t, "errno")
		}
		if got, err := DecodeAnswer(a.Encode()); err != nil || got != a {
			t.Fatalf("%+v, %v, want %+v", got, err, a)
		}
	})
}

// What is taken means one thing: encoded again it is what came.
func TestBytesThatAreNoMessage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, MaxRequest+4).Draw(t, "bytes")
		if rapid.Bool().Draw(t, "nearly") { // one byte of a message is another one
			b = Request{ID: 1, Protocol: TCP, Family: V4, Port: 1, Job: "db"}.Encode()
			b[rapid.IntRange(0, len(b)-1).Draw(t, "place")] = rapid.Byte().Draw(t, "byte")
		}
		if q, err := DecodeRequest(b); err == nil && string(q.Encode()) != string(b) || err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatalf("%x is %+v, %v", b, q, err)
		}
		b = rapid.SliceOfN(rapid.Byte(), 0, AnswerSize+2).Draw(t, "answer")
		if a, err := DecodeAnswer(b); err == nil && string(a.Encode()) != string(b) || err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatalf("%x is %+v, %v", b, a, err)
		}
	})
}
