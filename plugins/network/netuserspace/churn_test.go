package netuserspace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
)

// How a connection ends, of which the first byte tells the server.
const (
	clientIsDone = iota // first, and the server after it
	serverIsDone        // first, and the client sends more
	clientBreaks        // when all has come
	serverBreaks
	bothBreak // at once, whatever is on its way
	ways
)

// short is a connection whose bytes are nobody else's.
type short struct {
	way, id, size uint32
}

const shortHead = 12

func (c short) head() []byte {
	b := binary.BigEndian.AppendUint32(nil, c.way)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, c.id), c.size)
}

// bytes are those of the request, of the answer, and of what comes after that.
func (c short) bytes(part uint32) []byte {
	b := make([]byte, 0, c.size+shortHead)
	for n := uint32(0); len(b) < int(c.size); n++ {
		b = binary.BigEndian.AppendUint32(b, c.id*3+part)
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return b[:c.size]
}

// expect reads one part.
func (c short) expect(from io.Reader, part uint32) error {
	want := c.bytes(part)
	got := make([]byte, len(want))
	n, err := io.ReadFull(from, got)
	if !bytes.Equal(got[:n], want[:n]) {
		return fmt.Errorf("%+v: %w", c, errOthers)
	}
	return err
}

var errOthers = errors.New("bytes of another connection")

// expectEnd reads what is to be nothing, and then this.
func expectEnd(from io.Reader, end error) error {
	n, err := from.Read(make([]byte, 1))
	if n != 0 || !errors.Is(err, end) {
		return fmt.Errorf("%d bytes and %w, where %w was to come", n, err, end)
	}
	return nil
}

func breaks(c *net.TCPConn) error { return errors.Join(c.SetLinger(0), c.Close()) }

// client is the sandbox's end, which sends and reads so many bytes.
func (c short) client(conn *net.TCPConn) (tx, rx uint64, err error) {
	tx, rx = uint64(shortHead+c.size), uint64(c.size)
	if _, err := conn.Write(append(c.head(), c.bytes(0)...)); err != nil {
		return tx, rx, err
	}
	if c.way == clientIsDone {
		if err := conn.CloseWrite(); err != nil {
			return tx, rx, err
		}
	}
	if c.way == bothBreak {
		_, err = conn.Read(make([]byte, 1))
		return tx, rx, errors.Join(err, breaks(conn))
	}
	if err := c.expect(conn, 1); err != nil {
		return tx, rx, err
	}
	switch c.way {
	case clientIsDone:
		err = expectEnd(conn, io.EOF)
	case serverIsDone:
		tx += uint64(c.size)
		if err = expectEnd(conn, io.EOF); err == nil {
			_, err = conn.Write(c.bytes(2))
		}
	case clientBreaks:
		err = breaks(conn)
	case serverBreaks:
		tx++
		if _, err = conn.Write([]byte{1}); err == nil {
			err = expectEnd(conn, syscall.ECONNRESET)
		}
	}
	return tx, rx, err
}

func serveShort(conn *net.TCPConn) error {
	head := make([]byte, shortHead)
	if _, err := io.ReadFull(conn, head); err != nil {
		return err
	}
	c := short{binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint32(head[8:])}
	if c.way >= ways || c.size > 1<<20 {
		return fmt.Errorf("%+v: %w", c, errOthers)
	}
	err := c.expect(conn, 0)
	if err == nil && c.way == clientIsDone {
		err = expectEnd(conn, io.EOF)
	}
	if err == nil {
		_, err = conn.Write(c.bytes(1))
	}
	if err != nil {
		return err
	}
	switch c.way {
	case serverIsDone:
		if err = conn.CloseWrite(); err == nil {
			err = errors.Join(c.expect(conn, 2), expectEnd(conn, io.EOF))
		}
	case clientBreaks:
		err = expectEnd(conn, syscall.ECONNRESET)
	case serverBreaks:
		if _, err = io.ReadFull(conn, head[:1]); err == nil {
			err = breaks(conn)
		}
	case bothBreak:
		err = breaks(conn)
	}
	return err
}

// errHalfway is of a connection whose listener went while it was being made: the kernel
// finds no way for a reset that is of no socket's, and whose source is not an address of
// the namespace's.
var errHalfway = errors.New("nobody was there yet")

// halfway tells whether nothing but SYN was ever acknowledged.
func halfway(c net.Conn) (yes bool) {
	_ = relay.Control(c.(*net.TCPConn), func(fd int) error {
		i, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		yes = err == nil && i.Bytes_acked <= 1 && i.Segs_in <= 1
		return err
	})
	return yes
}

// churn makes short connections from the sandbox, of so many ways, until there are as many
// as the limit or no client is to go on, and tells what each end came to.
func churn(t *testing.T, lab *netlab.Lab, s *sandbox, ways, limit uint32, client func(tx, rx uint64, err error) (goOn bool), server func(error)) {
	l, err := lab.Internet.Listen("tcp", "[::]:9000")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				server(serveShort(c.(*net.TCPConn)))
			})
		}
	})
	var clients sync.WaitGroup
	const workers = 32
	for w := range uint32(workers) {
		clients.Go(func() {
			s.do(func() {
				for i := w; i < limit; i += workers {
					c := short{i / workers % ways, i, 1 + i*7919%3000}
					if i/workers%17 == 0 { // one that is worth a relay of its own
						c.size = 300 << 10
					}
					at := []string{"93.184.216.34:9000", "[2606:2800:220::7]:9000"}[i/7%2]
					conn, err := (&net.Dialer{Timeout: 3 * time.Second}).Dial("tcp", at)
					if err != nil {
						if !client(0, 0, err) {
							return
						}
						continue
					}
					_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
					tx, rx, err := c.client(conn.(*net.TCPConn))
					if errors.Is(err, os.ErrDeadlineExceeded) && halfway(conn) {
						err = errors.Join(err, errHalfway)
					}
					conn.Close()
					if !client(tx, rx, err) {
						return
					}
				}
			})
		})
	}
	clients.Wait()
	l.Close()
	all.Wait()
}

// Numbers of descriptors are used again at once, by the thread that sets connections up,
// while that which carries them has others in hand.
func TestShortConnectionsGetTheirOwnBytesAndEnds(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: anywhere()})
	var conns, tx, rx atomic.Uint64
	churn(t, lab, s, bothBreak, 6000, func(sent, read uint64, err error) bool {
		conns.Add(1)
		tx.Add(sent)
		rx.Add(read)
		if err != nil {
			t.Errorf("in the sandbox: %v", err)
		}
		return err == nil
	}, func(err error) {
		if err != nil {
			t.Errorf("at the server: %v", err)
		}
	})
	if t.Failed() {
		return
	}
	flows := s.askStatus().Flows
	if len(flows) != 1 || flows[0].Connections != conns.Load() || flows[0].TxBytes != tx.Load() || flows[0].RxBytes != rx.Load() {
		t.Errorf("%+v are counted of %d connections, with %d bytes out and %d in", flows, conns.Load(), tx.Load(), rx.Load())
	}
	s.detach()
	if !s.plugin.ProcessState.Success() {
		t.Errorf("the plugin: %s", s.plugin.ProcessState)
	}
}

func TestTheEndComesAmongShortConnections(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	for range 3 {
		s := attach(t, lab, options{egress: anywhere()})
		var conns atomic.Int32
		var ending atomic.Bool
		ended := make(chan time.Duration, 1)
		wrong := func(err error) bool {
			return errors.Is(err, errOthers) || errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, errHalfway)
		}
		churn(t, lab, s, ways, 1<<31, func(_, _ uint64, err error) bool {
			if conns.Add(1) == 1000 {
				go func() {
					ending.Store(true)
					began := time.Now()
					s.detach()
					ended <- time.Since(began)
				}()
			}
			if !ending.Load() {
				return true
			}
			var dial *net.OpError
			if errors.As(err, &dial) && dial.Op == "dial" {
				return false
			}
			if wrong(err) {
				t.Errorf("in the sandbox: %v", err)
			}
			return true
		}, func(err error) {
			if wrong(err) {
				t.Errorf("at the server: %v", err)
			}
		})
		if took := <-ended; took > 5*time.Second || !s.plugin.ProcessState.Success() {
			t.Errorf("the end took %s; the plugin: %s", took, s.plugin.ProcessState)
		}
		if t.Failed() {
			return
		}
	}
}
