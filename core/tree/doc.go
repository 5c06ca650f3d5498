// Package tree owns directory trees as values: the digest that attests what a
// tree contains, the stream that carries a tree into a sandbox, and the
// comparison of the two ends.
//
// A tree is read and written through directory handles only. Every open takes
// one name relative to the handle of its parent directory, beneath the root,
// and follows no symbolic link and no mount; so whoever may rename and relink
// inside the tree while it is read cannot lead the reader out of it, and links
// are recorded, never followed. A file or directory that changes while it is
// read is an error, within the resolution of the file system's timestamps.
//
// The package also runs inside nucleus-init: it imports nothing that is costly
// at program start and starts goroutines only when asked to use more than one
// worker. It never logs, and never decides which trees a job may use.
package tree
