package tree

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"strconv"

	"golang.org/x/sys/unix"
)

// formatLine versions the canonical form; it changes whenever a tree would get
// another digest than before.
const formatLine = "nucleus-tree-v1\n"

// digestPrefix names the algorithm in a printed digest.
const digestPrefix = "sha256:"

// manifest is the canonical form of a tree, hashed as it grows. Each record
// ends with NUL and its free-form fields come last, so no two trees have the
// same form. Its definition for others is docs/rootfs.md.
type manifest struct {
	h   hash.Hash
	buf []byte
}

func newManifest() *manifest {
	m := &manifest{h: sha256.New()}
	m.h.Write([]byte(formatLine))
	return m
}

func (m *manifest) dir(mode uint32, path string) {
	m.start('d', mode)
	m.end(path)
}

func (m *manifest) file(mode uint32, size int64, sum []byte, path string) {
	m.start('f', mode)
	m.buf = strconv.AppendInt(m.buf, size, 10)
	m.buf = append(m.buf, ' ')
	m.buf = hex.AppendEncode(m.buf, sum)
	m.buf = append(m.buf, ' ')
	m.end(path)
}

// link has no mode: Linux keeps none for symbolic links.
func (m *manifest) link(path, target string) {
	m.buf = append(m.buf[:0], 'l', ' ')
	m.buf = append(m.buf, path...)
	m.buf = append(m.buf, 0)
	m.end(target)
}

// special records a device, FIFO or socket.
func (m *manifest) special(st *unix.Stat_t, path string) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		m.start('c', st.Mode)
	case unix.S_IFBLK:
		m.start('b', st.Mode)
	case unix.S_IFIFO:
		m.start('p', st.Mode)
		m.end(path)
		return
	default:
		m.start('s', st.Mode)
		m.end(path)
		return
	}
	m.buf = strconv.AppendUint(m.buf, uint64(unix.Major(st.Rdev)), 10)
	m.buf = append(m.buf, ':')
	m.buf = strconv.AppendUint(m.buf, uint64(unix.Minor(st.Rdev)), 10)
	m.buf = append(m.buf, ' ')
	m.end(path)
}

// caps follows the record of a file that has file capabilities.
func (m *manifest) caps(value []byte, path string) {
	m.buf = append(m.buf[:0], 'x', ' ')
	m.buf = hex.AppendEncode(m.buf, value)
	m.buf = append(m.buf, ' ')
	m.end(path)
}

func (m *manifest) start(kind byte, mode uint32) {
	m.buf = append(m.buf[:0], kind, ' ')
	for shift := 9; shift >= 0; shift -= 3 {
		m.buf = append(m.buf, '0'+byte(mode>>shift)&7)
	}
	m.buf = append(m.buf, ' ')
}

func (m *manifest) end(last string) {
	m.buf = append(m.buf, last...)
	m.buf = append(m.buf, 0)
	m.h.Write(m.buf)
}

func (m *manifest) sum() []byte { return m.h.Sum(nil) }

func digestString(sum []byte) string { return digestPrefix + hex.EncodeToString(sum) }

// Revisions of security.capability, linux/capability.h.
const (
	capRevisionMask = 0xff000000
	capRevision2    = 0x02000000
	capRevision3    = 0x03000000
	capSize2        = 20
	capSize3        = 24
)

// normalCaps drops the owner of the user namespace from a revision 3 value: it
// is ownership, which is no part of a digest.
func normalCaps(v []byte) []byte {
	if len(v) != capSize3 {
		return v
	}
	magic := binary.LittleEndian.Uint32(v)
	if magic&capRevisionMask != capRevision3 {
		return v
	}
	out := append([]byte(nil), v[:capSize2]...)
	binary.LittleEndian.PutUint32(out, magic&^capRevisionMask|capRevision2)
	return out
}
