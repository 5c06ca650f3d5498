package batch

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

func get(ref secrets.Ref) (secrets.Secret, error) {
	switch ref.InstanceID {
	case "absent":
		return secrets.Secret{}, fault.New(fault.NotFound, "", "no such thing")
	case "broken":
		return secrets.Secret{}, errors.New("broken")
	}
	return secrets.Secret{Value: []byte(ref.InstanceID)}, nil
}

func TestFetchKeepsTheOrder(t *testing.T) {
	got, err := Fetch(t.Context(), []secrets.Ref{
		{Name: "a", InstanceID: "1"}, {Name: "b", InstanceID: "absent", Optional: true}, {Name: "c", InstanceID: "3"},
	}, get)
	if err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	if got[0].Name != "a" || string(got[0].Value) != "1" || got[2].Name != "c" || string(got[2].Value) != "3" {
		t.Errorf("got %+v", got)
	}
	if got[1].Name != "b" || !got[1].Absent || got[1].Value != nil {
		t.Errorf("absent: %+v", got[1])
	}
}

func TestFetchIsAllOrNothing(t *testing.T) {
	for _, last := range []secrets.Ref{{Name: "x", InstanceID: "absent"}, {Name: "x", InstanceID: "broken", Optional: true}} {
		value := []byte("s3cret")
		got, err := Fetch(t.Context(), []secrets.Ref{{Name: "a"}, last}, func(ref secrets.Ref) (secrets.Secret, error) {
			if ref.Name == "a" {
				return secrets.Secret{Value: value}, nil
			}
			return get(ref)
		})
		if got != nil || err == nil || !strings.HasPrefix(err.Error(), `secret "x": `) {
			t.Errorf("%s: %v, %v", last.InstanceID, got, err)
		}
		if !bytes.Equal(value, make([]byte, 6)) {
			t.Errorf("%s: the first value is still %q", last.InstanceID, value)
		}
	}
}

func TestFetchEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Fetch(ctx, []secrets.Ref{{Name: "a"}}, get); fault.Of(err) != fault.DeadlineExceeded {
		t.Errorf("error %v", err)
	}
}

func TestInstancesRefuseAnUnknownOne(t *testing.T) {
	var i Instances[int]
	i.Put("a", 1)
	if n, err := i.Get(secrets.Ref{InstanceID: "a"}); n != 1 || err != nil {
		t.Error(n, err)
	}
	if _, err := i.Get(secrets.Ref{InstanceID: "b"}); fault.Of(err) != fault.InvalidArgument {
		t.Errorf("error %v", err)
	}
}

func TestTrimTakesOneNewline(t *testing.T) {
	for v, want := range map[string]string{"": "", "a": "a", "a\n": "a", "a\n\n": "a\n", "a\r\n": "a", "a\r": "a\r", "\n": ""} {
		if got := Trim([]byte(v)); string(got) != want {
			t.Errorf("%q: %q, want %q", v, got, want)
		}
	}
}
