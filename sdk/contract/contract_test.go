package contract_test

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/contract"
)

func TestHandlesHaveBounds(t *testing.T) {
	for _, tc := range []struct {
		name string
		h    contract.Handle
		zero bool
		want string // "" for no error
	}{
		{"none", contract.Handle{}, true, ""},
		{"empty", contract.Handle{Version: 1}, false, ""},
		{"as large as it may be", contract.Handle{Version: 1, Opaque: make([]byte, contract.MaxHandle-3), Info: map[string]string{"a": "bc"}}, false, ""},
		{"larger", contract.Handle{Version: 1, Opaque: make([]byte, contract.MaxHandle-2), Info: map[string]string{"a": "bc"}}, false, "65537 bytes"},
		{"no version", contract.Handle{Info: map[string]string{"a": "b"}}, false, "no version"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.h.IsZero() != tc.zero {
				t.Errorf("IsZero: %v", !tc.zero)
			}
			if err := tc.h.Check(); (err != nil) != (tc.want != "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestNamespacesAreTheOnesMeant(t *testing.T) {
	of := func(path string) contract.Namespace {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return contract.Namespace{Path: path, Dev: st.Dev, Ino: st.Ino}
	}
	ns := of("/proc/self/ns/net")
	f, err := ns.Open()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	other := of("/proc/self/ns/uts")
	other.Path = ns.Path
	if f, err := other.Open(); err == nil {
		f.Close()
		t.Error("another namespace was opened")
	}
	if _, err := (contract.Namespace{Path: t.TempDir() + "/ns"}).Open(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
