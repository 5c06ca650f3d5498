// Package changes owns what an overlay holds beyond its lower directory: how it is read,
// and how it travels from the process that reads it to whoever has asked.
//
// The upper directory is a workload's, which may write to it meanwhile. So it is walked by
// descriptors, no name is followed out of it, nothing but regular files is opened for
// reading, and what it can make its reader hold in memory is bounded.
package changes

import "errors"

// Change says what has become of a path.
type Change byte

// The changes, in the letters that they are shown by.
const (
	Added    Change = 'A'
	Modified Change = 'M'
	Deleted  Change = 'D'
)

// Type is what a path is now.
type Type byte

// The types. Other is what no archive has: a device, a socket, a FIFO, or whatever is
// named as archives name a deletion.
const (
	None      Type = '-' // of what was deleted
	File      Type = 'f'
	Directory Type = 'd'
	Symlink   Type = 'l'
	Hardlink  Type = 'h' // one more name of a file that came before
	Other     Type = 'o'
)

// Entry is one path that differs from the lower directory's.
type Entry struct {
	Change Change
	// Replaced: something else was there, of which nothing is left. It was deleted, and
	// the entry is Added.
	Replaced bool
	Type     Type
	Mode     uint32 // permissions
	UID, GID uint32 // as the user namespace of the reader numbers them
	Size     uint64 // of a File
	Sec      int64  // of the last modification
	Nsec     uint32
	Path     string // as the sandbox sees it
	Target   string // of a Symlink, or the path of a Hardlink's first name
}

// Whiteout begins the names that say in an archive what was deleted (the OCI image
// specification, layers). A workload's files of such names are in none.
const Whiteout = ".wh."

// Opaque is the name that says of its directory that nothing of the lower one shows.
const Opaque = Whiteout + Whiteout + ".opq"

// Limits of what is read. A sandbox can make more, and then gets no answer but an error.
const (
	maxDepth   = 256     // two descriptors each
	maxNames   = 1 << 20 // of one directory, which are held in memory
	maxHeld    = 128 << 20
	nameCost   = 16 // beside the name itself
	maxEntries = 1 << 22
	maxLinks   = 1 << 16 // files of several names that are known by them; others are copied
)

// ErrStream is returned for what is not a stream of this package, or not all of one.
var ErrStream = errors.New("malformed list of changes")
