package tree_test

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/nucleus-runtime/nucleus/core/tree"
)

// A directory is copied through a pipe, and the copy attested.
func ExamplePack() {
	src, dst := exampleDirs()
	defer os.RemoveAll(src.Name())
	defer os.RemoveAll(dst.Name())

	r, w := io.Pipe()
	go func() {
		_, err := tree.Pack(context.Background(), src, w, tree.PackOptions{Exclude: []string{"*.pem"}})
		w.CloseWithError(err)
	}()
	digest, err := tree.Unpack(int(dst.Fd()), r, tree.UnpackOptions{
		UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Verify: true,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	names, _ := dst.Readdirnames(-1)
	fmt.Println(names)
	fmt.Println(tree.Verify(context.Background(), dst, digest, 0))
	// Output:
	// [main.c]
	// <nil>
}

func exampleDirs() (src, dst *os.File) {
	dirs := [2]*os.File{}
	for i := range dirs {
		path, err := os.MkdirTemp("", "tree-example-")
		if err != nil {
			panic(err)
		}
		if dirs[i], err = os.Open(path); err != nil {
			panic(err)
		}
	}
	for _, name := range []string{"main.c", "key.pem"} {
		if err := os.WriteFile(dirs[0].Name()+"/"+name, []byte("x"), 0o644); err != nil {
			panic(err)
		}
	}
	return dirs[0], dirs[1]
}
