package sysno

import (
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTablesAreSortedAndUnique(t *testing.T) {
	for _, goarch := range []string{"amd64", "arm64"} {
		table := Table(goarch)
		if len(table) < 300 {
			t.Fatalf("%s has only %d calls", goarch, len(table))
		}
		if !slices.IsSortedFunc(table, func(a, b Call) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("%s is not sorted", goarch)
		}
		seen := map[uint32]string{}
		for _, c := range table {
			if other, ok := seen[c.Number]; ok {
				t.Errorf("%s: %s and %s are both %d", goarch, other, c.Name, c.Number)
			}
			seen[c.Number] = c.Name
		}
	}
	if !slices.IsSorted(foreignNames) {
		t.Error("foreign names are not sorted")
	}
}

func TestLookups(t *testing.T) {
	for _, tc := range []struct {
		arch, name string
		number     uint32
	}{
		{"amd64", "read", 0},
		{"amd64", "newfstatat", 262},
		{"amd64", "clone3", 435},
		{"amd64", "futex_wait", 455},
		{"amd64", "open_tree_attr", 467},
		{"arm64", "read", 63},
		{"arm64", "clone3", 435},
		{"arm64", "newfstatat", 79},
	} {
		if got, ok := Number(tc.arch, tc.name); !ok || got != tc.number {
			t.Errorf("%s %s: %d %v, want %d", tc.arch, tc.name, got, ok, tc.number)
		}
		if got := Name(tc.arch, tc.number); got != tc.name {
			t.Errorf("%s %d: %q, want %q", tc.arch, tc.number, got, tc.name)
		}
	}
	if got, _ := Number(runtime.GOARCH, "openat2"); got != unix.SYS_OPENAT2 {
		t.Errorf("openat2 is %d here, want %d", got, unix.SYS_OPENAT2)
	}
}

func TestKnown(t *testing.T) {
	for name, want := range map[string]bool{
		"read":               true,
		"open":               true, // not on arm64
		"_llseek":            true, // 32-bit only
		"cacheflush":         true,
		"s390_pci_mmio_read": true,
		"opne":               false,
		"":                   false,
	} {
		if got := Known(name); got != want {
			t.Errorf("Known(%q) = %v, want %v", name, got, want)
		}
	}
	if _, ok := Number("arm64", "open"); ok {
		t.Error("arm64 has open")
	}
	if Table("mips") != nil {
		t.Error("mips has a table")
	}
}
