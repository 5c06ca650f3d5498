package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

func TestTheSpecificationNamesItsNamespaces(t *testing.T) {
	got, err := rewrite([]byte(`{"ociVersion":"1.2.0","process":{"args":["a"]},"linux":{"resources":{"pids":{"limit":5}},"maskedPaths":["/proc/kcore"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	var is, want any
	if err := json.Unmarshal(got, &is); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{"ociVersion":"1.0.2","process":{"args":["a"]},"linux":{"maskedPaths":["/proc/kcore"],
		"namespaces":[{"type":"mount"},{"type":"pid"},{"type":"ipc"},{"type":"uts"}]}}`), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(is, want) {
		t.Errorf("got  %v\nwant %v", is, want)
	}
	for _, none := range []string{"", "{", "{}", "[]"} {
		if _, err := rewrite([]byte(none)); errs.CodeOf(err) != errs.Precondition {
			t.Errorf("%q was taken for one: %v", none, err)
		}
	}
}

func TestThePathIsChecked(t *testing.T) {
	c := &crun{jobs: map[string]job{}}
	plain := filepath.Join(t.TempDir(), "crun")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/nonexistent/crun", t.TempDir(), plain} {
		err := c.Configure(t.Context(), config.Instance{ID: "i"}, job{Crun: path})
		if e := errs.Of(err); e == nil || len(e.Diagnostics) != 1 || e.Diagnostics[0].Path.String() != "crun" {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestPrepare(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crun")
	if err := os.WriteFile(path, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	c := &crun{jobs: map[string]job{}}
	if err := c.Configure(t.Context(), config.Instance{ID: "i"}, job{Crun: path}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Prepare(t.Context(), &runtime.PrepareRequest{Call: runtime.Call{InstanceID: "i"}, Network: runtime.NetworkNone, Spec: []byte(`{"process":{},"hostname":"--root=/"}`)})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"crun", "--root=/state", "--cgroup-manager=disabled", "run", "--bundle=/bundle", "--pid-file={pid-file}", "{id}"}
	if !reflect.DeepEqual(got.Run.Args, want) || got.Program.Path != path || !got.Program.Libraries || got.Exec.Args != nil || got.Signal.Args != nil {
		t.Errorf("got %+v", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, err = c.Prepare(t.Context(), &runtime.PrepareRequest{Call: runtime.Call{InstanceID: "i"}, Network: runtime.NetworkOwn, Spec: []byte(`{"process":{}}`)})
	if errs.CodeOf(err) != errs.Precondition || !strings.Contains(err.Error(), "apt-get install crun") {
		t.Errorf("error %v", err)
	}
	_, err = c.Prepare(t.Context(), &runtime.PrepareRequest{Network: 99, Spec: []byte(`{"process":{}}`)})
	if errs.CodeOf(err) != errs.Precondition || !strings.Contains(err.Error(), "network 99") {
		t.Errorf("error %v", err)
	}
}
