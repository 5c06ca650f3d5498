package plainfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Regular reads a file of somebody else's tree, of at most most bytes; resolve is openat2(2)'s,
// and says where its links may lead. It is looked at before it is opened: a pipe would hold
// the opening up, and a device could take it for a command (a watchdog's begins to count, a
// tape is rewound).
func Regular(root int, path string, resolve uint64, most int) ([]byte, error) {
	fd, err := unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve})
	if err != nil {
		return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("not a regular file")
	}
	// Not to wait for who has a lease on it (fcntl(2), F_SETLEASE).
	f, err := Open("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > most {
		return nil, fmt.Errorf("larger than %d bytes", most)
	}
	return b, nil
}
