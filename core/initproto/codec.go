package initproto

import (
	"encoding/binary"
	"fmt"
)

// Every message is Version, Kind, then the fields of its payload in the order
// of the struct: integers little-endian, strings and slices behind a 32-bit
// length. Hand-written, because reflection-based codecs cost init a
// millisecond of start time and half a megabyte of memory.

// coder writes to or reads from buf; both directions share one description of
// each type, so they cannot drift apart.
type coder struct {
	buf  []byte
	text string // what is read, of which all strings are parts: one allocation
	off  int
	read bool
	bad  bool
}

func (c *coder) u8(v *uint8) {
	if !c.read {
		c.buf = append(c.buf, *v)
		return
	}
	if c.bad || len(c.buf)-c.off < 1 {
		c.bad = true
		return
	}
	*v = c.buf[c.off]
	c.off++
}

func (c *coder) u32(v *uint32) {
	if !c.read {
		c.buf = binary.LittleEndian.AppendUint32(c.buf, *v)
		return
	}
	if c.bad || len(c.buf)-c.off < 4 {
		c.bad = true
		return
	}
	*v = binary.LittleEndian.Uint32(c.buf[c.off:])
	c.off += 4
}

func (c *coder) i32(v *int32) {
	u := uint32(*v)
	c.u32(&u)
	*v = int32(u)
}

func (c *coder) u64(v *uint64) {
	lo, hi := uint32(*v), uint32(*v>>32)
	c.u32(&lo)
	c.u32(&hi)
	*v = uint64(lo) | uint64(hi)<<32
}

func (c *coder) flag(v *bool) {
	var b uint8
	if *v {
		b = 1
	}
	c.u8(&b)
	if c.read && b > 1 {
		c.bad = true
	}
	*v = b == 1
}

// size codes the length of a list whose elements take at least min bytes each,
// so that a hostile length cannot make the reader allocate more than it was sent.
func (c *coder) size(n, min int) int {
	u := uint32(n)
	c.u32(&u)
	if c.read && int64(u)*int64(min) > int64(len(c.buf)-c.off) {
		c.bad = true
		return 0
	}
	if c.bad {
		return 0
	}
	return int(u)
}

func (c *coder) str(v *string) {
	n := c.size(len(*v), 1)
	if !c.read {
		c.buf = append(c.buf, *v...)
		return
	}
	*v = c.text[c.off : c.off+n]
	c.off += n
}

// atMost codes what has a limit of its own.
func (c *coder) atMost(v *[]byte, limit int) {
	c.bytes(v)
	if c.read && len(*v) > limit {
		c.bad = true
	}
}

func (c *coder) bytes(v *[]byte) {
	n := c.size(len(*v), 1)
	if !c.read {
		c.buf = append(c.buf, *v...)
		return
	}
	*v = append([]byte(nil), c.buf[c.off:c.off+n]...)
	c.off += n
}

func list[T any](c *coder, v *[]T, min int, elem func(*coder, *T)) {
	n := c.size(len(*v), min)
	if c.read {
		*v = nil
		if n > 0 {
			*v = make([]T, n)
		}
	}
	for i := range *v {
		elem(c, &(*v)[i])
	}
}

func (c *coder) strs(v *[]string) { list(c, v, 4, func(c *coder, s *string) { c.str(s) }) }

func (o *Op) code(c *coder) {
	c.u8((*uint8)(&o.Code))
	c.u32(&o.Flags)
	c.i32(&o.FD)
	c.u32(&o.Mode)
	c.u32(&o.UID)
	c.u32(&o.GID)
	c.u64(&o.Set)
	c.u64(&o.Clear)
	c.str(&o.Target)
	c.str(&o.Source)
	c.str(&o.FSType)
	c.str(&o.Data)
}

func (l *Landlock) code(c *coder) {
	c.i32(&l.ABI)
	c.u64(&l.HandledFS)
	c.u64(&l.HandledNet)
	c.u64(&l.Scoped)
	list(c, &l.Rules, 13, func(c *coder, r *PathRule) {
		c.str(&r.Path)
		c.u64(&r.Access)
		c.flag(&r.Optional)
	})
	list(c, &l.Ports, 16, func(c *coder, r *PortRule) {
		c.u64(&r.Port)
		c.u64(&r.Access)
	})
}

func (p *Process) code(c *coder) {
	c.strs(&p.Paths)
	c.strs(&p.Args)
	c.strs(&p.Env)
	c.str(&p.Cwd)
	c.u32(&p.UID)
	c.u32(&p.GID)
	list(c, &p.Groups, 4, func(c *coder, g *uint32) { c.u32(g) })
	c.flag(&p.SetGroups)
	c.u32(&p.Umask)
	p.Caps.code(c)
	list(c, &p.Rlimits, 20, func(c *coder, r *Rlimit) { r.code(c) })
	c.flag(&p.TTY)
	c.flag(&p.NewKeyring)
	c.bytes(&p.Filter)
	c.u32(&p.FilterFlags)
	list(c, &p.Narrow, 4, func(c *coder, b *[]byte) { c.bytes(b) })
	c.i32(&p.Gate)
	list(c, &p.SecretEnv, 8, func(c *coder, v *SecretVar) {
		c.str(&v.Name)
		c.i32(&v.FD)
	})
	list(c, &p.Listen, 4, func(c *coder, v *int32) { c.i32(v) })
	c.str(&p.ListenNames)
}

func (s *Caps) code(c *coder) {
	c.u64(&s.Bounding)
	c.u64(&s.Effective)
	c.u64(&s.Permitted)
	c.u64(&s.Inheritable)
	c.u64(&s.Ambient)
}

func (r *Rlimit) code(c *coder) {
	c.u32(&r.Resource)
	c.u64(&r.Soft)
	c.u64(&r.Hard)
}

func (n *Narrow) code(c *coder) {
	c.strs(&n.Env)
	n.Caps.code(c)
	list(c, &n.Rlimits, 20, func(c *coder, r *Rlimit) { r.code(c) })
	c.u64(&n.InitCaps)
}

func (s *Setup) code(c *coder) {
	c.str(&s.Hostname)
	list(c, &s.Ops, 53, func(c *coder, o *Op) { o.code(c) })
	s.Landlock.code(c)
	s.Process.code(c)
	c.bytes(&s.InitFilter)
	c.flag(&s.CgroupNS)
	c.flag(&s.SetIDs)
	c.flag(&s.UserNS)
	c.flag(&s.Direct)
	c.flag(&s.Hold)
	c.u64(&s.InitCaps)
	s.Files.code(c)
	c.bytes(&s.CPUs)
	c.u32(&s.Late)
	if c.read && s.Late > MaxLate {
		c.bad = true
	}
}

func (e *Exited) code(c *coder) {
	c.u32(&e.Status)
	c.u32((*uint32)(&e.Step))
	c.u32(&e.Errno)
	c.u32(&e.ExecIndex)
}

func (f *FSDone) code(c *coder) { c.strs(&f.Digests) }

func (f *Failed) code(c *coder) {
	c.i32(&f.Op)
	c.i32(&f.Rule)
	c.i32(&f.Hook)
	c.u32(&f.Errno)
	c.str(&f.What)
}

func (h *Hooks) code(c *coder) {
	c.bytes(&h.State)
	list(c, &h.Hooks, 12, func(c *coder, h *Hook) {
		c.strs(&h.Args)
		c.strs(&h.Env)
		c.u32(&h.Timeout)
	})
	c.bytes(&h.Filter)
	c.u32(&h.FilterFlags)
}

func (o *Open) code(c *coder) {
	list(c, &o.Openings, 27, func(c *coder, o *Opening) {
		c.str(&o.Name)
		c.u8(&o.Kind)
		c.bytes(&o.IP)
		c.u32(&o.Port)
		c.str(&o.IfName)
		c.u32(&o.Index)
		c.u32(&o.Count)
		c.flag(&o.Transparent)
		c.flag(&o.Optional)
	})
	list(c, &o.Setups, 17, func(c *coder, s *NetSetup) {
		c.str(&s.Name)
		c.u32(&s.Protocol)
		c.bytes(&s.Messages)
		c.flag(&s.Optional)
		c.str(&s.After)
	})
}

func (o *Opened) code(c *coder) {
	c.strs(&o.Names)
	c.strs(&o.Missing)
	c.strs(&o.Reasons)
}

func (n *Connected) code(c *coder) {
	list(c, &n.Files, 8, func(c *coder, f *Content) {
		c.str(&f.Path)
		c.str(&f.Data)
	})
}

func (l *Lend) code(c *coder) {
	c.str(&l.Source)
	c.u64(&l.Set)
}

func (s *Signal) code(c *coder) {
	c.u32(&s.Number)
	c.flag(&s.All)
	c.u32(&s.Spawned)
}

func (s *Spawn) code(c *coder) {
	c.u32(&s.ID)
	c.strs(&s.Paths)
	c.strs(&s.Args)
	c.strs(&s.Env)
	c.str(&s.Cwd)
	c.u32(&s.UID)
	c.u32(&s.GID)
	list(c, &s.Groups, 4, func(c *coder, g *uint32) { c.u32(g) })
	c.flag(&s.TTY)
	c.flag(&s.Pass)
	c.str(&s.Remove)
	s.Dial.code(c)
}

func (d *Dial) code(c *coder) {
	list(c, &d.Addrs, 8, func(c *coder, a *Addr) {
		c.bytes(&a.IP)
		c.u32(&a.Port)
	})
	c.bytes(&d.Request)
	c.u32(&d.Answer)
}

func (s *Spawned) code(c *coder) {
	c.u32(&s.ID)
	c.u32(&s.Errno)
	c.str(&s.What)
}

func (s *Socket) code(c *coder) {
	c.u32(&s.ID)
	c.flag(&s.V6)
	c.flag(&s.Datagram)
}

func (s *SocketMade) code(c *coder) {
	c.u32(&s.ID)
	c.u32(&s.Errno)
}

func (e *Ended) code(c *coder) {
	c.u32(&e.ID)
	e.Exited.code(c)
	c.atMost(&e.Answer, MaxAnswer)
}

// Body is the payload of a message.
type Body interface{ code(*coder) }

// Encode gives the bytes of a message; body is nil for a kind without payload.
func Encode(k Kind, body Body) []byte {
	c := coder{buf: make([]byte, 0, 4096)}
	c.buf = append(c.buf, Version, byte(k))
	if body != nil {
		body.code(&c)
	}
	return c.buf
}

// KindOf checks the head of a message and tells its kind.
func KindOf(msg []byte) (Kind, error) {
	if len(msg) < 2 {
		return 0, ErrMessage
	}
	if msg[0] != Version {
		return 0, fmt.Errorf("%w: version %d, want %d: nucleus and nucleus-init are of different releases", ErrMessage, msg[0], Version)
	}
	return Kind(msg[1]), nil
}

// Decode reads the payload of a message into body. Trailing bytes are an error.
func Decode(msg []byte, body Body) error {
	if _, err := KindOf(msg); err != nil {
		return err
	}
	c := coder{buf: msg[2:], text: string(msg[2:]), read: true}
	body.code(&c)
	if c.bad || c.off != len(c.buf) {
		return ErrMessage
	}
	return nil
}

// NoteSize is the size of the memory that a direct stage 2 notes its progress
// in: step, errno and index of the last candidate, 32 bits each.
const NoteSize = 12

// DecodeNote reads a stage 2's progress into the report of its end.
func DecodeNote(b []byte, status uint32) Exited {
	e := Exited{Status: status}
	if len(b) < NoteSize {
		return e
	}
	step, errno := Step(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:])
	if errno != 0 || step != StepExec {
		e.Step, e.Errno, e.ExecIndex = step, errno, binary.NativeEndian.Uint32(b[8:])
	}
	return e
}
