package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
)

func TestRunCompilesThePolicyOnStandardInput(t *testing.T) {
	policy := seccomp.DefaultPolicy(runtime.GOARCH)
	input, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(nil, bytes.NewReader(input), &out); err != nil {
		t.Fatal(err)
	}
	if err := seccomp.Verify(policy, out.Bytes()); err != nil {
		t.Error(err)
	}
}

func TestRunRefusesBadInput(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	for name, tc := range map[string]struct {
		args        []string
		input, want string
	}{
		"arguments":          {[]string{"policy.json"}, "", "no arguments"},
		"empty":              {nil, "", "reading policy"},
		"not JSON":           {nil, "policy", "reading policy"},
		"unknown key":        {nil, `{"arch": "amd64", "rule": []}`, "unknown field"},
		"other architecture": {nil, `{"arch": "` + other + `"}`, "this helper"},
		"invalid rule":       {nil, `{"arch": "` + runtime.GOARCH + `", "rules": [{"number": 1, "action": 5}]}`, "not valid"},
		"too long":           {nil, strings.Repeat(" ", maxInput+1), "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := run(tc.args, strings.NewReader(tc.input), &out)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if out.Len() != 0 {
				t.Errorf("%d bytes came out all the same", out.Len())
			}
		})
	}
}

func TestVersionNamesTheLibrary(t *testing.T) {
	var out bytes.Buffer
	if err := run([]string{"-version"}, nil, &out); err != nil || !strings.HasPrefix(out.String(), "libseccomp 2.") {
		t.Errorf("%q %v", out.String(), err)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("pipe is gone") }

func TestRunReportsALostReader(t *testing.T) {
	input, err := json.Marshal(seccomp.Policy{Arch: runtime.GOARCH, Default: seccomp.ActAllow})
	if err != nil {
		t.Fatal(err)
	}
	if err := run(nil, bytes.NewReader(input), brokenWriter{}); err == nil {
		t.Error("no error")
	}
}
