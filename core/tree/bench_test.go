package tree

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

// benchTree is NUCLEUS_BENCH_TREE, or a made-up tree of 2,000 small files and
// one large one.
func benchTree(b *testing.B) *os.File {
	b.Helper()
	if path := os.Getenv("NUCLEUS_BENCH_TREE"); path != "" {
		return open(b, path)
	}
	var nodes []node
	for d := range 20 {
		nodes = append(nodes, node{path: fmt.Sprintf("d%d/", d)})
		for f := range 100 {
			nodes = append(nodes, node{path: fmt.Sprintf("d%d/f%d", d, f), content: strings.Repeat("x", 100*f)})
		}
	}
	nodes = append(nodes, node{path: "large", content: strings.Repeat("x", 64<<20)})
	return open(b, plant(b, nodes...))
}

func BenchmarkDigest(b *testing.B) {
	for _, workers := range []int{1, 2} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			root := benchTree(b)
			b.ReportAllocs()
			for b.Loop() {
				s, err := Attest(context.Background(), root, workers)
				must(b, err)
				b.SetBytes(s.Bytes)
			}
		})
	}
}

var benchLimits = PackOptions{MaxBytes: 1 << 40, MaxFiles: 1 << 30}

func BenchmarkPack(b *testing.B) {
	root := benchTree(b)
	b.ReportAllocs()
	for b.Loop() {
		s, err := Pack(context.Background(), root, io.Discard, benchLimits)
		must(b, err)
		b.SetBytes(s.Bytes)
	}
}

// BenchmarkCopy is a whole copy through a pipe, as into a sandbox, on the file
// system of the test's directory.
func BenchmarkCopy(b *testing.B) {
	root := benchTree(b)
	base := b.TempDir()
	n := 0
	for b.Loop() {
		n++
		dst := fmt.Sprintf("%s/%d", base, n)
		must(b, os.Mkdir(dst, 0o755))
		r, w, err := os.Pipe()
		must(b, err)
		failed := make(chan error, 1)
		go func() {
			s, err := Pack(context.Background(), root, w, benchLimits)
			_ = w.Close()
			b.SetBytes(s.Bytes)
			failed <- err
		}()
		o := self()
		o.MaxBytes, o.MaxFiles, o.Verify = 1<<40, 1<<30, false
		dir := open(b, dst)
		_, err = Unpack(int(dir.Fd()), r, o)
		must(b, err)
		must(b, <-failed)
		_ = r.Close()
		b.StopTimer()
		must(b, os.RemoveAll(dst))
		b.StartTimer()
	}
}

// BenchmarkUnpackSmall is the usual context: a few files.
func BenchmarkUnpackSmall(b *testing.B) {
	_, stream := packed(b, plant(b, sample...), PackOptions{})
	base := b.TempDir()
	n := 0
	for b.Loop() {
		n++
		dst := fmt.Sprintf("%s/%d", base, n)
		must(b, os.Mkdir(dst, 0o755))
		dir := open(b, dst)
		_, err := Unpack(int(dir.Fd()), bytes.NewReader(stream), self())
		must(b, err)
	}
}
