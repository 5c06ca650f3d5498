package resolver

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestSystem(t *testing.T) {
	for conf, want := range map[string]string{
		"nameserver 192.0.2.1\n": "[192.0.2.1:53]",
		"# a comment\nsearch example\n  nameserver\t2001:db8::1 # x\nnameserver 192.0.2.1": "[[2001:db8::1]:53 192.0.2.1:53]",
		"nameserver fe80::1%eth0\n":                         "[[fe80::1%eth0]:53]",
		"nameserver 1.1.1.1\nnameserver x\nnameserver\n":    "[1.1.1.1:53]",
		"nameserver 1\nnameserver 2\nnameservers 1.1.1.1\n": "[127.0.0.1:53]",
		"": "[127.0.0.1:53]",
		"nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4\n": "[1.1.1.1:53 1.1.1.2:53 1.1.1.3:53]",
	} {
		path := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := System(path); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v; want %s", conf, got, err, want)
		}
	}
	if got, err := System(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Errorf("without a file: %v", got)
	}
}
