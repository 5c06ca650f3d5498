package env

import (
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

func TestFetchReadsAllowedVariables(t *testing.T) {
	p, err := New(Config{Allow: []string{"NUCLEUS_TEST_A", "NUCLEUS_TEST_EMPTY", "NUCLEUS_TEST_UNSET"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NUCLEUS_TEST_A", "one\n")
	t.Setenv("NUCLEUS_TEST_EMPTY", "")
	var refs []secrets.Ref
	for _, name := range []string{"NUCLEUS_TEST_A", "NUCLEUS_TEST_EMPTY", "NUCLEUS_TEST_UNSET"} {
		if err := p.Configure(name, Instance{Name: name}); err != nil {
			t.Fatal(err)
		}
		refs = append(refs, secrets.Ref{Name: name, InstanceID: name, Optional: true})
	}
	got, err := p.Fetch(t.Context(), secrets.Call{}, refs)
	if err != nil {
		t.Fatal(err)
	}
	if string(got[0].Value) != "one\n" || got[1].Absent || len(got[1].Value) != 0 || !got[2].Absent {
		t.Errorf("got %+v", got)
	}
	refs[2].Optional = false
	if _, err := p.Fetch(t.Context(), secrets.Call{}, refs); fault.Of(err) != fault.NotFound || strings.Contains(err.Error(), "one") {
		t.Errorf("error %v", err)
	}
}

func TestAVariableThatIsNotAllowedIsRefused(t *testing.T) {
	t.Setenv("NUCLEUS_TEST_B", "s3cret")
	p, err := New(Config{Allow: []string{"NUCLEUS_TEST_A"}})
	if err != nil {
		t.Fatal(err)
	}
	err = p.Configure("b", Instance{Name: "NUCLEUS_TEST_B"})
	if fault.Of(err) != fault.PermissionDenied || !strings.Contains(err.Error(), `allow = ["NUCLEUS_TEST_B"]`) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("error %v", err)
	}
	if _, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{{Name: "b", InstanceID: "b", Optional: true}}); fault.Of(err) != fault.InvalidArgument {
		t.Errorf("error %v", err)
	}
}

func TestNamesAreChecked(t *testing.T) {
	for _, name := range []string{"", "*", "A=B", "1A", "A B"} {
		if _, err := New(Config{Allow: []string{name}}); fault.Of(err) != fault.InvalidArgument {
			t.Errorf("allow %q: %v", name, err)
		}
		p, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Configure("x", Instance{Name: name}); fault.Of(err) != fault.InvalidArgument {
			t.Errorf("name %q: %v", name, err)
		}
	}
}
