package tree

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// drawTree draws a tree with unusual names, nesting, modes and contents.
func drawTree(t *rapid.T) []node {
	name := rapid.OneOf(
		rapid.SampledFrom([]string{"a", "a-b", "a.b", "ab", "A", " ", "\n", "...", "-rf", "*", "é", "\xff", "\x01", strings.Repeat("n", maxName)}),
		rapid.StringMatching(`[a-z]{1,3}`),
	)
	seen := map[string]bool{}
	dirs := []string{""}
	var nodes []node
	for range rapid.IntRange(0, 25).Draw(t, "entries") {
		path := rapid.SampledFrom(dirs).Draw(t, "directory") + name.Draw(t, "name")
		if seen[path] {
			continue
		}
		seen[path] = true
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			// Owners may always search and write: anyone can clean up.
			mode := rapid.Uint32Range(0, 0o77).Draw(t, "mode") | 0o700
			nodes = append(nodes, node{path: path + "/", mode: mode})
			dirs = append(dirs, path+"/")
		case 1:
			target := rapid.StringMatching(`(\.\./|/)?[a-z]{1,5}`).Draw(t, "target")
			nodes = append(nodes, node{path: path, target: target})
		default:
			size := rapid.SampledFrom([]int{0, 1, 100, 4096, streamBuffer - 1, streamBuffer, streamBuffer + 1, chunk + 1}).Draw(t, "size")
			mode := rapid.Uint32Range(0, 0o377).Draw(t, "mode") | 0o400
			nodes = append(nodes, node{path: path, content: strings.Repeat(path[:1], size), mode: mode})
		}
	}
	return nodes
}

// Whatever the tree: its copy has the same digest, and the digest of the copy
// is what Pack and Unpack announced.
func TestRoundTrip(t *testing.T) {
	base := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		src, dst := fmt.Sprintf("%s/%d.src", base, n), fmt.Sprintf("%s/%d.dst", base, n)
		plantAt(t, src, drawTree(rt)...)
		plantAt(t, dst)
		defer os.RemoveAll(src)
		defer os.RemoveAll(dst)
		from, to := mustOpen(rt, src), mustOpen(rt, dst)
		defer from.Close()
		defer to.Close()

		want, err := Digest(context.Background(), from)
		if err != nil {
			rt.Fatal(err)
		}
		var stream bytes.Buffer
		s, err := Pack(context.Background(), from, &stream, PackOptions{})
		if err != nil {
			rt.Fatal(err)
		}
		got, err := Unpack(int(to.Fd()), &stream, self())
		if err != nil {
			rt.Fatal(err)
		}
		if s.Digest != want || got != want {
			rt.Fatalf("digest of the source %s, Pack %s, Unpack %s", want, s.Digest, got)
		}
		a, b := list(t, src), list(t, dst)
		if len(a) != len(b) {
			rt.Fatalf("source has %d entries, copy %d", len(a), len(b))
		}
		for path, desc := range a {
			if b[path] != desc {
				rt.Fatalf("%q is %.80q, copy %.80q", filepath.Clean(path), desc, b[path])
			}
		}
	})
}

// Two trees that differ have different digests: the canonical form is injective.
func TestDifferentTreesDiffer(t *testing.T) {
	base := t.TempDir()
	type tree struct{ nodes, from string }
	digests := map[string]tree{}
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		src := fmt.Sprintf("%s/%d", base, n)
		plantAt(t, src, drawTree(rt)...)
		defer os.RemoveAll(src)
		f := mustOpen(rt, src)
		defer f.Close()
		d, err := Digest(context.Background(), f)
		if err != nil {
			rt.Fatal(err)
		}
		entries := list(t, src)
		var b strings.Builder
		for path, desc := range entries {
			// Without the time, which is no part of a digest.
			fields := strings.SplitN(desc, " ", 3)
			entries[path] = fields[0] + " " + strings.Join(fields[2:], "")
		}
		fmt.Fprintf(&b, "%q", entries) // fmt sorts maps
		if other, ok := digests[d]; ok && other.nodes != b.String() {
			rt.Fatalf("one digest for\n%s\n%s", other.nodes, b.String())
		}
		digests[d] = tree{b.String(), src}
	})
	if len(digests) < 10 {
		t.Errorf("only %d different trees were drawn", len(digests))
	}
}

func mustOpen(t *rapid.T, path string) *os.File {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
