package netuserspace

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
)

// What comes in small pieces, to an end that does not read them, is carried on from
// where the end had no room any more.
func TestNothingIsLostWhereAnEndHasNoRoom(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: anywhere()})
	l, err := lab.Internet.Listen("tcp4", "0.0.0.0:9000")
	if err != nil {
		t.Fatal(err)
	}
	for _, up := range []bool{true, false} {
		c := s.mustDial("tcp", "93.184.216.34:9000")
		out, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		from, to := c, out
		if !up {
			from, to = out, c
		}
		if err := to.(*net.TCPConn).SetReadBuffer(8 << 10); err != nil {
			t.Fatal(err)
		}
		data := random(240 << 10)
		go func() {
			defer from.Close()
			for left := data; len(left) > 0; {
				n := min(len(left), 1000)
				_, _ = from.Write(left[:n])
				left = left[n:]
				for began := time.Now(); time.Since(began) < 200*time.Microsecond; {
				}
			}
		}()
		time.Sleep(500 * time.Millisecond)
		_ = to.SetDeadline(time.Now().Add(time.Minute))
		if got, err := io.ReadAll(to); err != nil || !bytes.Equal(got, data) {
			t.Errorf("up %t: %d of %d bytes came, and not all of them whole: %v", up, len(got), len(data), err)
		}
		to.Close()
	}
}
