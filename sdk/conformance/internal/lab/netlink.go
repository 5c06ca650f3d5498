package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Message is a netlink message: its header, that of its family, attributes.
type Message []byte

// NewMessage begins one. Its number is set when it is sent.
func NewMessage(kind, flags uint16, header []byte) Message {
	m := make(Message, unix.NLMSG_HDRLEN, 128)
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], flags|unix.NLM_F_REQUEST)
	return append(m, header...)
}

// Attr adds an attribute.
func (m Message) Attr(kind uint16, data []byte) Message {
	m = binary.NativeEndian.AppendUint16(m, uint16(4+len(data)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = append(m, data...)
	return append(m, make([]byte, -len(data)&3)...)
}

// Text is Attr of a text that ends with a zero.
func (m Message) Text(kind uint16, s string) Message { return m.Attr(kind, append([]byte(s), 0)) }

// Uint32 is Attr of a number.
func (m Message) Uint32(kind uint16, n uint32) Message {
	return m.Attr(kind, binary.NativeEndian.AppendUint32(nil, n))
}

// Nest adds attributes within an attribute.
func (m Message) Nest(kind uint16, f func(Message) Message) Message {
	at := len(m)
	m = f(m.Attr(kind|unix.NLA_F_NESTED, nil))
	binary.NativeEndian.PutUint16(m[at:], uint16(len(m)-at))
	return m
}

// kindMask takes the flags from an attribute's kind (NLA_TYPE_MASK).
const kindMask = 0x3fff

// attributes by their kind. What is malformed is left out.
func attributes(b []byte) map[uint16][]byte {
	out := map[uint16][]byte{}
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			break
		}
		out[binary.NativeEndian.Uint16(b[2:])&kindMask] = b[4:n]
		b = b[min((n+3)&^3, len(b)):]
	}
	return out
}

func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// netlinkTime is more than the kernel takes for anything here, in seconds.
const netlinkTime = 10

func netlinkSocket(protocol int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err == nil {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: netlinkTime}))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Exchange sends a message over a netlink socket and gives all that is answered; each
// may be nil.
func Exchange(fd int, m Message, each func(kind uint16, payload []byte)) error {
	const seq = 1
	if binary.NativeEndian.Uint16(m[6:])&unix.NLM_F_DUMP != unix.NLM_F_DUMP {
		binary.NativeEndian.PutUint16(m[6:], binary.NativeEndian.Uint16(m[6:])|unix.NLM_F_ACK)
	}
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	binary.NativeEndian.PutUint32(m[8:], seq)
	if err := unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 64<<10)
	for over := false; !over; {
		n, err := receive(fd, buf)
		if err != nil {
			return err
		}
		err = messages(buf[:n], func(kind, _ uint16, _ uint32, payload []byte) error {
			switch kind {
			case unix.NLMSG_DONE:
				over = true
			case unix.NLMSG_ERROR:
				over = true
				return failure(payload)
			default:
				if each != nil {
					each(kind, payload)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func receive(fd int, buf []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if !errors.Is(err, unix.EINTR) {
			return n, os.NewSyscallError("recvfrom", err)
		}
	}
}

func failure(payload []byte) error {
	if code := int32(number(payload)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// messages goes through netlink messages.
func messages(b []byte, f func(kind, flags uint16, seq uint32, payload []byte) error) error {
	for len(b) >= unix.NLMSG_HDRLEN {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return fmt.Errorf("a netlink message of %d bytes", n)
		}
		err := f(binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:]), b[unix.NLMSG_HDRLEN:n])
		if err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

// once exchanges one message in the calling thread's namespace.
func once(protocol int, m Message, each func(kind uint16, payload []byte)) error {
	fd, err := netlinkSocket(protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return Exchange(fd, m, each)
}
