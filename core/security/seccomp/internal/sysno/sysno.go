// Package sysno owns the names and numbers of the system calls of the architectures that filters are built for.
//
// The tables are generated, sorted static data: looking a name up costs a binary search, and importing the package
// costs nothing at start.
package sysno

//go:generate go run ../gen/sysno

import "slices"

// Call is one system call of one architecture.
type Call struct {
	Name   string
	Number uint32
}

// Table returns the calls of a GOARCH, sorted by name, or nil for an architecture that filters are not built for.
func Table(goarch string) []Call {
	switch goarch {
	case "amd64":
		return amd64Calls
	case "arm64":
		return arm64Calls
	}
	return nil
}

// Number returns the number that name has on goarch.
func Number(goarch, name string) (uint32, bool) {
	table := Table(goarch)
	i, ok := slices.BinarySearchFunc(table, name, func(c Call, name string) int {
		switch {
		case c.Name < name:
			return -1
		case c.Name > name:
			return 1
		}
		return 0
	})
	if !ok {
		return 0, false
	}
	return table[i].Number, true
}

// Name returns the name that number has on goarch, or "".
func Name(goarch string, number uint32) string {
	for _, c := range Table(goarch) {
		if c.Number == number {
			return c.Name
		}
	}
	return ""
}

// Known tells whether name is a system call of any Linux architecture, of one that filters are built for or not.
// Portable profiles name calls of all of them.
func Known(name string) bool {
	for _, goarch := range []string{"amd64", "arm64"} {
		if _, ok := Number(goarch, name); ok {
			return true
		}
	}
	_, ok := slices.BinarySearch(foreignNames, name)
	return ok
}
