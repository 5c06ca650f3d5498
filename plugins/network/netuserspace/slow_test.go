package netuserspace

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
)

// connected gives the two ends of a connection of the sandbox's.
func connected(t *testing.T, lab *netlab.Lab, s *sandbox) (in, out *net.TCPConn) {
	t.Helper()
	l, err := lab.Internet.Listen("tcp4", "0.0.0.0:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := s.mustDial("tcp", "93.184.216.34:9000")
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), far.(*net.TCPConn)
}

// trickle writes data piece by piece, each after a pause, and closes.
func trickle(c *net.TCPConn, data []byte, piece int, pause time.Duration) {
	defer c.Close()
	for len(data) > 0 {
		n := min(len(data), piece)
		_, _ = c.Write(data[:n])
		data = data[n:]
		for began := time.Now(); time.Since(began) < pause; { // a sleep takes a millisecond
		}
	}
}

// arrives reads all, after a while in which nothing is read.
func arrives(t *testing.T, c *net.TCPConn, want []byte, after time.Duration) {
	t.Helper()
	time.Sleep(after)
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes came, or not those: %v", len(got), len(want), err)
	}
}

// Bytes that come one by one, while nobody reads them, are many pieces by then.
func TestManyPiecesBehindAClosedWindow(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	in, out := connected(t, lab, attach(t, lab, options{egress: anywhere()}))
	if err := in.SetReadBuffer(32 << 10); err != nil {
		t.Fatal(err)
	}
	const bulk, pieces = 512 << 10, 6000
	data := random(bulk + pieces)
	go func() {
		_, _ = out.Write(data[:bulk])
		trickle(out, data[bulk:], 1, 100*time.Microsecond)
	}()
	arrives(t, in, data, 1500*time.Millisecond)
}

// What comes in small pieces, to an end that does not read them, is carried on from
// where the end had no room any more.
func TestNothingIsLostWhereAnEndHasNoRoom(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: anywhere()})
	for _, up := range []bool{true, false} {
		from, to := connected(t, lab, s)
		if !up {
			from, to = to, from
		}
		if err := to.SetReadBuffer(8 << 10); err != nil {
			t.Fatal(err)
		}
		data := random(240 << 10)
		go trickle(from, data, 1000, 200*time.Microsecond)
		arrives(t, to, data, 500*time.Millisecond)
		to.Close()
	}
}
