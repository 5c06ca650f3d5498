package netlink

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// link asks for the link of an index.
func link(index int32, flags uint16, seq uint32) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN+unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.RTM_GETLINK)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(b[8:], seq)
	binary.NativeEndian.PutUint32(b[unix.NLMSG_HDRLEN+4:], uint32(index))
	return b
}

func TestTransact(t *testing.T) {
	const nobody = 1 << 30
	ask := uint16(unix.NLM_F_ACK)
	for name, c := range map[string]struct {
		batch []byte
		want  error
		seq   uint32 // of the message that is refused
	}{
		"loopback, twice":         {append(link(1, ask, 1), link(1, ask, 2)...), nil, 0},
		"ends at the first":       {append(link(nobody, ask, 1), link(1, ask, 2)...), unix.ENODEV, 1},
		"the second is refused":   {append(link(1, ask, 1), link(nobody, ask, 2)...), unix.ENODEV, 2},
		"nothing is asked for":    {link(1, 0, 1), ErrMalformed, 0},
		"nothing at all":          {nil, ErrMalformed, 0},
		"a header that is cut":    {link(1, ask, 1)[:7], ErrMalformed, 0},
		"a message that is cut":   {link(1, ask, 1)[:20], ErrMalformed, 0},
		"a length that is no one": {make([]byte, 16), ErrMalformed, 0},
	} {
		err := Transact(unix.NETLINK_ROUTE, c.batch)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		var r *Refused
		if errors.As(err, &r) != (c.seq != 0) || r != nil && r.Seq != c.seq {
			t.Errorf("%s: refused %+v, want message %d", name, r, c.seq)
		}
	}
}
